use super::{Engine, EngineError, Loaded, Run, Segment};
use async_trait::async_trait;
use lamina_model::{Tensor, ValueSpec};
use lamina_torchscript::{LoadOptions, LoadReport, RunError, Slice};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tokio::sync::oneshot;

/// Runs that may wait for the compute thread. Beyond it an answer would come
/// too late anyway.
const QUEUED_RUNS: usize = 256;
/// Loads that may wait for the loading thread.
const QUEUED_LOADS: usize = 64;
/// How much the loading thread gives way to the computing one.
const LOADER_NICENESS: i32 = 10;

/// How torch is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TorchOptions {
    /// Threads inside one forward; 1 unless the CPU quota is 2 or more.
    pub(crate) threads: u32,
    /// Optimize merged graphs.
    pub(crate) optimize: bool,
    /// Forwards before a slice counts as ready.
    pub(crate) warmup_runs: u32,
}

/// Torch on two threads of its own: one computes, first come first served; one
/// loads, so that a new revision does not hold up requests on the old one.
#[derive(Debug)]
pub(crate) struct TorchEngine {
    loads: SyncSender<LoadJob>,
    runs: SyncSender<RunJob>,
    threads: [JoinHandle<()>; 2],
}

struct LoadJob {
    blocks: Vec<PathBuf>,
    inputs: Vec<ValueSpec>,
    reply: oneshot::Sender<Result<(Slice, LoadReport), EngineError>>,
}

struct RunJob {
    slice: Arc<Mutex<Slice>>,
    inputs: Vec<Tensor>,
    queued: Instant,
    reply: oneshot::Sender<Result<Run, EngineError>>,
}

struct TorchSegment {
    slice: Arc<Mutex<Slice>>,
    runs: SyncSender<RunJob>,
}

impl TorchEngine {
    /// Starts the threads; they end when the engine and its segments are gone.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(options: TorchOptions) -> io::Result<Self> {
        let (loads, load_jobs) = sync_channel(QUEUED_LOADS);
        let (runs, run_jobs) = sync_channel(QUEUED_RUNS);
        let compute = thread::Builder::new()
            .name("compute".into())
            .spawn(move || compute(&run_jobs))?;
        let load = thread::Builder::new()
            .name("load".into())
            .spawn(move || load(&load_jobs, options))?;
        Ok(Self {
            loads,
            runs,
            threads: [compute, load],
        })
    }
}

#[async_trait]
impl Engine for TorchEngine {
    async fn load(
        &self,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError> {
        let (reply, answer) = oneshot::channel();
        let job = LoadJob {
            blocks,
            inputs,
            reply,
        };
        send(&self.loads, job, QUEUED_LOADS)?;
        let (slice, report) = answer.await.map_err(|_| EngineError::Stopped)??;
        Ok(Loaded {
            segment: Arc::new(TorchSegment {
                slice: Arc::new(Mutex::new(slice)),
                runs: self.runs.clone(),
            }),
            run_seconds: report.run_seconds.p50,
            resident_bytes: report.resident_bytes,
        })
    }

    fn is_alive(&self) -> bool {
        self.threads.iter().all(|t| !t.is_finished())
    }
}

#[async_trait]
impl Segment for TorchSegment {
    async fn run(&self, inputs: Vec<Tensor>) -> Result<Run, EngineError> {
        let (reply, answer) = oneshot::channel();
        let job = RunJob {
            slice: Arc::clone(&self.slice),
            inputs,
            queued: Instant::now(),
            reply,
        };
        send(&self.runs, job, QUEUED_RUNS)?;
        answer.await.map_err(|_| EngineError::Stopped)?
    }
}

fn send<T>(queue: &SyncSender<T>, job: T, limit: usize) -> Result<(), EngineError> {
    queue.try_send(job).map_err(|e| match e {
        TrySendError::Full(_) => EngineError::Busy(limit),
        TrySendError::Disconnected(_) => EngineError::Stopped,
    })
}

fn compute(jobs: &Receiver<RunJob>) {
    for job in jobs {
        // Its request was cancelled or timed out while it waited.
        if job.reply.is_closed() {
            continue;
        }
        let queue = job.queued.elapsed();
        let start = Instant::now();
        let slice = job.slice.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = guarded(EngineError::Forward, || {
            slice.run(&job.inputs).map_err(run_error)
        });
        let answer = outputs.map(|outputs| Run {
            outputs,
            queue,
            compute: start.elapsed(),
        });
        drop(slice);
        // Nobody waits for it any more.
        let _ = job.reply.send(answer);
    }
}

fn load(jobs: &Receiver<LoadJob>, options: TorchOptions) {
    // For this thread alone, as Linux has it; without it loading is merely rude.
    let _ = rustix::process::nice(LOADER_NICENESS);
    let options = LoadOptions {
        threads: options.threads,
        optimize: options.optimize,
        warmup_runs: options.warmup_runs,
    };
    for job in jobs {
        if job.reply.is_closed() {
            continue;
        }
        let loaded = guarded(EngineError::Load, || {
            Slice::load(&job.blocks, &job.inputs, &options)
                .map_err(|e| EngineError::Load(e.to_string()))
        });
        let _ = job.reply.send(loaded);
    }
}

/// A panic inside a binding must not take the thread, and with it every model.
fn guarded<T>(
    error: fn(String) -> EngineError,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(error("libtorch's binding panicked; see the log".into())))
}

fn run_error(error: RunError) -> EngineError {
    match error {
        RunError::Input(e) => EngineError::Input(e),
        RunError::Forward { reason } if tells_of_an_index(&reason) => EngineError::Value(reason),
        other => EngineError::Forward(other.to_string()),
    }
}

/// Whether libtorch stopped at an index that a tensor does not have. Shapes were checked
/// before, and the probe has passed, so it came with the request.
fn tells_of_an_index(reason: &str) -> bool {
    const WORDS: [&str; 6] = [
        // Embeddings, index_select.
        "index out of range in self",
        // gather, scatter, indexing by a tensor.
        "is out of bounds for dimension",
        // embedding_bag.
        "which is not in the valid range",
        // take.
        "out of range: tried to access index",
        // select.
        "out of range for tensor of size",
        // one_hot.
        "Class values must be ",
    ];
    WORDS.iter().any(|words| reason.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_a_tensor_lacks_is_the_requests_fault() {
        let error = |reason: &str| {
            run_error(RunError::Forward {
                reason: reason.to_owned(),
            })
        };
        for reason in [
            "index out of range in self",
            "index 9 is out of bounds for dimension 0 with size 5",
            "Index 0 of input takes value 9 which is not in the valid range [0, 5)",
            "out of range: tried to access index 9 on a tensor of 5 elements.",
            "select(): index 9 out of range for tensor of size [5] at dimension 0",
            "Class values must be smaller than num_classes.",
        ] {
            assert_eq!(error(reason), EngineError::Value(reason.to_owned()));
        }
        let other = error("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)");
        assert!(matches!(other, EngineError::Forward(_)), "{other}");
    }
}
