//! A lane of a worker: one call at a time, for one run or for several that are computed together:
//! inputs into the shared memory, a call, outputs out of it. The result is checked: the worker may
//! have been taken over.

use super::super::{EngineError, Run, Together};
use super::channel::Channel;
use super::group::Group;
use super::lines::Taker;
use crate::serve::deadline::Deadline;
use lamina_model::{Tensor, ValueSpec};
use lamina_worker_link::frame::FrameError;
use lamina_worker_link::memory::Arena;
use lamina_worker_link::message::{Refusal, Region, RunCall, RunReply, aligned};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, oneshot};
use tokio::time::timeout;

/// The least shared memory: enough for small requests and their answers.
const ARENA_BYTES: u64 = 256 << 10;
/// Larger memory is not kept for requests that need less than a quarter of it.
const KEPT_BYTES: usize = 16 << 20;
/// A run that takes this many times its usual time counts as endless.
const PATIENCE: f64 = 30.0;
/// Least time limit, since the host itself may stall.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);
const LONGEST_PATIENCE: Duration = Duration::from_secs(600);

/// A run that is waiting or running.
#[derive(Debug)]
pub(super) struct RunJob {
    pub(super) model: Arc<str>,
    pub(super) slice: u64,
    /// Its number among all arrivals.
    pub(super) came: u64,
    pub(super) inputs: Vec<Tensor>,
    /// Its size relative to batch 1.
    pub(super) rows: f64,
    /// Seconds per row when the slice was loaded.
    pub(super) usual_seconds: f64,
    /// With which others it may be computed.
    pub(super) together: Option<Together>,
    /// It runs alone, because it was there when a worker ended.
    pub(super) is_suspect: bool,
    pub(super) deadline: Deadline,
    pub(super) limit: Duration,
    /// Size of the last answer.
    pub(super) answer_bytes: Arc<AtomicU64>,
    /// Set when the worker is called.
    pub(super) begun: Arc<AtomicBool>,
    pub(super) queued: Instant,
    pub(super) reply: oneshot::Sender<Result<Run, EngineError>>,
}

/// Why the worker is unusable.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no memory to share: {0}")]
    Memory(io::Error),
    #[error("it did not end within {} ms", .0.as_millis())]
    Stuck(Duration),
    #[error("it gave an answer that makes no sense: {0}")]
    Nonsense(&'static str),
    #[error("{0}")]
    Broken(String),
}

/// How many times as long as one row of typical sizes `inputs` may take. Beyond those sizes, time
/// may grow with the square: in attention every position looks at all others.
pub(super) fn rows(specs: &[ValueSpec], inputs: &[Tensor]) -> f64 {
    let times = specs.iter().zip(inputs).map(|(spec, tensor)| {
        let times = spec.times(&tensor.shape);
        if spec.sizes.is_empty() {
            times
        } else {
            times * times.max(1.0)
        }
    });
    times.fold(1.0, f64::max)
}

/// Time limit for a run of this many rows that take `run_seconds` each.
pub(super) fn patience(run_seconds: f64, rows: f64) -> Duration {
    let seconds = run_seconds.max(0.0) * rows * PATIENCE;
    Duration::try_from_secs_f64(seconds)
        .unwrap_or(LONGEST_PATIENCE)
        .clamp(LEAST_PATIENCE, LONGEST_PATIENCE)
}

/// Does `jobs` until one breaks the worker, in parallel with the other lanes, with which it shares
/// `beside`. Answers of more than `most` bytes are left there. `now` receives the model that runs.
pub(super) async fn serve(
    channel: Channel,
    mut jobs: Taker,
    most: u64,
    beside: Arc<RwLock<()>>,
    now: impl Fn(Option<(Arc<str>, Duration)>),
) -> Fault {
    let mut desk = Desk {
        channel,
        arena: None,
        most,
        now,
    };
    loop {
        let group = jobs.next_group().await;
        // A run that was there when a worker ended has the next one for itself, which shows who
        // ends it.
        let is_suspect = group.first().is_some_and(|job| job.is_suspect);
        let (_alone, _beside) = if is_suspect {
            (Some(beside.write().await), None)
        } else {
            (None, Some(beside.read().await))
        };
        // Their requests were cancelled or timed out while they waited.
        let group = group.without_the_gone();
        let (work, start) = (jobs.begin(&group), Instant::now());
        if let Err(fault) = desk.run(group).await {
            return fault;
        }
        if let Some(work) = work {
            jobs.done(&work, start.elapsed());
        }
    }
}

struct Desk<N> {
    channel: Channel,
    arena: Option<Arena>,
    most: u64,
    now: N,
}

impl<N: Fn(Option<(Arc<str>, Duration)>)> Desk<N> {
    /// Answers all of `group`, or stops with the worker's fault: runs without an answer are then
    /// repeated.
    async fn run(&mut self, group: Group) -> Result<(), Fault> {
        if group.jobs().len() > 1
            && let Some(runs) = self.together(&group).await?
        {
            for (job, run) in group.into_jobs().into_iter().zip(runs) {
                // Nobody waits for it any more.
                let _ = job.reply.send(Ok(run));
            }
            return Ok(());
        }
        for job in group.jobs() {
            // A fault of one must not be held against the others.
            job.begun.store(false, Ordering::Release);
        }
        for job in group.into_jobs() {
            self.alone(job).await?;
        }
        Ok(())
    }

    async fn alone(&mut self, job: RunJob) -> Result<(), Fault> {
        job.begun.store(true, Ordering::Release);
        (self.now)(Some((Arc::clone(&job.model), job.limit)));
        let start = Instant::now();
        let call = Call {
            slice: job.slice,
            inputs: &job.inputs,
            answer_bytes: &job.answer_bytes,
            most: self.most,
        };
        let exchanged = exchange(&mut self.channel, &mut self.arena, &call);
        let Ok(answer) = timeout(job.limit, exchanged).await else {
            // Another try would take as long.
            let _ = job.reply.send(Err(EngineError::Stuck(job.limit)));
            return Err(Fault::Stuck(job.limit));
        };
        let answer = answer?;
        (self.now)(None);
        let run = answer.map(|outputs| Run {
            outputs,
            queue: start - job.queued,
            compute: start.elapsed(),
        });
        // Nobody waits for it any more.
        let _ = job.reply.send(run);
        Ok(())
    }

    /// The answers to all of `group`, computed at once; `None` if each must be computed alone, to
    /// find the guilty one or because the batch cannot be split.
    async fn together(&mut self, group: &Group) -> Result<Option<Vec<Run>>, Fault> {
        let (Some(first), Some(inputs)) = (group.first(), group.merged()) else {
            return Ok(None);
        };
        let limit = group.jobs().iter().map(|job| job.limit).sum();
        for job in group.jobs() {
            job.begun.store(true, Ordering::Release);
        }
        (self.now)(Some((Arc::clone(&first.model), limit)));
        let start = Instant::now();
        let call = Call {
            slice: first.slice,
            inputs: &inputs,
            answer_bytes: &first.answer_bytes,
            most: self.most,
        };
        let exchanged = exchange(&mut self.channel, &mut self.arena, &call);
        let Ok(answer) = timeout(limit, exchanged).await else {
            return Err(Fault::Stuck(limit));
        };
        let answer = answer?;
        (self.now)(None);
        let Some(answers) = answer.ok().and_then(|all| group.split(&all)) else {
            return Ok(None);
        };
        let took = start.elapsed();
        let run = |(job, outputs): (&RunJob, Vec<Tensor>)| {
            let compute = took.mul_f64(group.share(job));
            Run {
                outputs,
                queue: start - job.queued + took.saturating_sub(compute),
                compute,
            }
        };
        Ok(Some(group.jobs().iter().zip(answers).map(run).collect()))
    }
}

/// A call to the worker.
struct Call<'a> {
    slice: u64,
    inputs: &'a [Tensor],
    answer_bytes: &'a AtomicU64,
    /// The largest answer that is taken, in bytes.
    most: u64,
}

type Answer = Result<Vec<Tensor>, EngineError>;

async fn exchange(
    channel: &mut Channel,
    arena: &mut Option<Arena>,
    asked: &Call<'_>,
) -> Result<Answer, Fault> {
    let (regions, free_from) = laid_out(asked.inputs);
    let wanted = free_from + asked.answer_bytes.load(Ordering::Relaxed);
    let (arena, is_new) = fitting(arena, wanted)?;
    for (region, tensor) in regions.iter().zip(asked.inputs) {
        let offset = usize::try_from(region.offset).unwrap_or(usize::MAX);
        if !arena.write(offset, &tensor.data) {
            return Err(Fault::Memory(io::ErrorKind::OutOfMemory.into()));
        }
    }
    let call = RunCall::Run {
        slice: asked.slice,
        inputs: regions,
        free_from,
        arena: is_new.then_some(arena.bytes() as u64),
    };
    let descriptor = is_new.then(|| arena.descriptor());
    channel.send(&call, descriptor).await?;
    match channel.receive().await? {
        RunReply::Done { outputs } => taken(arena, &outputs, asked),
        RunReply::Refused(refusal) => refused(refusal).map(Err),
        RunReply::NoRoom { bytes } => {
            let most = asked.most;
            if bytes > most {
                return Ok(Err(EngineError::TooLarge { bytes, most }));
            }
            *arena = new_arena(aligned(bytes) + free_from)?;
            let call = RunCall::Collect {
                arena: arena.bytes() as u64,
            };
            channel.send(&call, Some(arena.descriptor())).await?;
            match channel.receive().await? {
                RunReply::Done { outputs } => taken(arena, &outputs, asked),
                RunReply::Refused(refusal) => refused(refusal).map(Err),
                RunReply::NoRoom { .. } => Err(Fault::Nonsense("no room in the room it wanted")),
            }
        }
    }
}

/// Where the inputs go, one after the other, and where the outputs may start.
fn laid_out(inputs: &[Tensor]) -> (Vec<Region>, u64) {
    let mut offset = 0;
    let region = |tensor: &Tensor| {
        let region = Region {
            datatype: tensor.datatype,
            shape: tensor.shape.clone(),
            offset,
        };
        offset = aligned(offset + tensor.data.len() as u64);
        region
    };
    let regions = inputs.iter().map(region).collect();
    (regions, offset)
}

/// The memory for a run that needs `wanted` bytes, and whether it is new to the worker.
fn fitting(arena: &mut Option<Arena>, wanted: u64) -> Result<(&mut Arena, bool), Fault> {
    let fits = arena.as_ref().is_some_and(|arena| {
        let bytes = arena.bytes();
        bytes as u64 >= wanted && (bytes <= KEPT_BYTES || wanted >= bytes as u64 / 4)
    });
    if !fits {
        // One at a time: free the old one before the new one is created.
        *arena = None;
    }
    let is_new = arena.is_none();
    let arena = match arena {
        Some(arena) => arena,
        None => arena.insert(new_arena(wanted)?),
    };
    Ok((arena, is_new))
}

fn new_arena(wanted: u64) -> Result<Arena, Fault> {
    let bytes = wanted.max(ARENA_BYTES).checked_next_power_of_two();
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| Fault::Memory(io::ErrorKind::OutOfMemory.into()))?;
    Arena::new(bytes).map_err(Fault::Memory)
}

/// Copies the outputs from where the worker says they are.
fn taken(arena: &Arena, outputs: &[Region], asked: &Call<'_>) -> Result<Answer, Fault> {
    let mut tensors = Vec::with_capacity(outputs.len());
    let (mut sum, mut end) = (0, 0);
    for region in outputs {
        let range = region.range(arena.bytes());
        let range = range.ok_or(Fault::Nonsense("an output outside of the memory"))?;
        sum += range.len();
        end = end.max(aligned(range.end as u64));
        // Otherwise a small answer could become a large one here.
        if sum > arena.bytes() {
            return Err(Fault::Nonsense("outputs that lie in each other"));
        }
        let (bytes, most) = (sum as u64, asked.most);
        if bytes > most {
            return Ok(Err(EngineError::TooLarge { bytes, most }));
        }
        let data = arena.read(range.start, range.len());
        tensors.push(Tensor {
            datatype: region.datatype,
            shape: region.shape.clone(),
            data: data.unwrap_or_default().into(),
        });
    }
    asked.answer_bytes.store(end, Ordering::Relaxed);
    Ok(Ok(tensors))
}

fn refused(refusal: Refusal) -> Result<EngineError, Fault> {
    Ok(match refusal {
        Refusal::Value(reason) => EngineError::Value(reason),
        Refusal::Forward(reason) => EngineError::Forward(reason),
        Refusal::Memory(reason) => EngineError::Memory(reason),
        Refusal::Broken(reason) => return Err(Fault::Broken(reason)),
    })
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in super::super) type Answer = oneshot::Receiver<Result<Run, EngineError>>;

    /// A run of slice 1 without inputs, and the receiver of its answer.
    pub(in super::super) fn job(model: &str) -> (RunJob, Answer) {
        let (reply, answer) = oneshot::channel();
        let job = RunJob {
            model: model.into(),
            slice: 1,
            came: 0,
            inputs: Vec::new(),
            rows: 1.0,
            usual_seconds: 0.001,
            together: None,
            is_suspect: false,
            deadline: Deadline::after(Duration::from_secs(60)),
            limit: Duration::from_secs(1),
            answer_bytes: Arc::default(),
            begun: Arc::default(),
            queued: Instant::now(),
            reply,
        };
        (job, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::{DataType, FreeSize};

    fn fp32(shape: &[i64]) -> Tensor {
        Tensor {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            data: vec![0; shape.iter().product::<i64>() as usize * 4].into(),
        }
    }

    fn region(shape: &[i64], offset: u64) -> Region {
        Region {
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
            offset,
        }
    }

    #[test]
    fn patience_grows_with_the_batch_and_has_ends() {
        let spec = ValueSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, 3],
            sizes: Vec::new(),
        };
        let of = |seconds, count| {
            let rows = rows(std::slice::from_ref(&spec), &[fp32(&[count, 3])]);
            patience(seconds, rows).as_secs_f64()
        };
        assert_eq!(of(1e-3, 1), 3.0);
        assert_eq!(of(0.5, 2), 30.0);
        let sized = ValueSpec {
            sizes: vec![FreeSize::parse("seq:1..1000@100", 1).unwrap()],
            shape: vec![-1, -1],
            ..spec.clone()
        };
        let of_size = |size| {
            let rows = rows(std::slice::from_ref(&sized), &[fp32(&[1, size])]);
            patience(0.5, rows).as_secs_f64()
        };
        assert_eq!((of_size(100), of_size(200)), (15.0, 60.0));
        for wild in [1e9, f64::INFINITY, f64::NAN] {
            assert!([3.0, 600.0].contains(&of(wild, 2)));
        }
    }

    #[test]
    fn inputs_lie_behind_each_other() {
        let (regions, free_from) = laid_out(&[fp32(&[1, 3]), fp32(&[17])]);
        assert_eq!(regions, [region(&[1, 3], 0), region(&[17], 64)]);
        assert_eq!(free_from, 192);
        assert_eq!(laid_out(&[]), (Vec::new(), 0));
    }

    #[test]
    fn memory_is_used_again_unless_it_is_far_too_large() {
        let mut arena = None;
        let mut of = |wanted| {
            let (arena, is_new) = fitting(&mut arena, wanted).unwrap();
            (arena.bytes(), is_new)
        };
        assert_eq!(of(1), (256 << 10, true));
        assert_eq!(of(200 << 10), (256 << 10, false));
        assert_eq!(of(33 << 20), (64 << 20, true));
        assert_eq!(of(16 << 20), (64 << 20, false));
        assert_eq!(of(1 << 20), (1 << 20, true));
        assert!(matches!(new_arena(u64::MAX), Err(Fault::Memory(_))));
    }

    #[test]
    fn what_a_worker_says_of_its_answer_is_not_believed() {
        let mut arena = Arena::new(4096).unwrap();
        assert!(arena.write(64, &1.5_f32.to_le_bytes()));
        let known = AtomicU64::new(0);
        let of_at_most = |most| Call {
            slice: 1,
            inputs: &[],
            answer_bytes: &known,
            most,
        };
        let asked = of_at_most(4096);
        let good = taken(&arena, &[region(&[1], 64)], &asked).unwrap().unwrap();
        assert_eq!(&good[0].data[..], 1.5_f32.to_le_bytes());
        assert_eq!(known.load(Ordering::Relaxed), 128);
        for outputs in [
            vec![region(&[1], 4093)],
            vec![region(&[-1], 0)],
            vec![region(&[i64::MAX], 0)],
            vec![region(&[1], u64::MAX)],
            vec![region(&[1000], 0); 2],
        ] {
            let fault = taken(&arena, &outputs, &asked).unwrap_err();
            assert!(matches!(fault, Fault::Nonsense(_)), "{outputs:?}: {fault}");
        }
        // Together they are too large for this host.
        let two = [region(&[1], 64), region(&[1], 128)];
        assert!(taken(&arena, &two, &of_at_most(8)).unwrap().is_ok());
        let refused = taken(&arena, &two, &of_at_most(7)).unwrap().unwrap_err();
        assert!(matches!(
            refused,
            EngineError::TooLarge { bytes: 8, most: 7 }
        ));
    }
}
