//! Slices in worker processes: which worker a slice is in, and how it is restored.
//!
//! Everything of a model is loaded and run by a worker, which may crash, hang or be taken over
//! by it. A worker that ends is replaced, its slices are reloaded from disk, and lost runs are
//! repeated: inference is pure. `docs/decisions/0017-workers.md`.

mod channel;
mod group;
mod lines;
mod loads;
mod memory;
mod process;
mod queue;
mod records;
mod runs;
mod worker;

pub(crate) use process::WorkerOptions;
pub(crate) use records::Sharing;

use super::{Batches, Engine, EngineError, Loaded, ModelCrashes, Run, Segment, Terms, Vitals};
use async_trait::async_trait;
use lamina_model::{Tensor, ValueSpec};
use loads::Report;
use records::{Crash, Records};
use rustix::process::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime};
use std::{fs, io};
use tokio::sync::Notify;
use worker::{Outcome, Wanted, Worker};

/// A request that ends this many workers while it runs is given up: it had the last one for itself.
const RUN_TRIES: u32 = 2;
/// A slice that ends this many workers is given up for now. Some of them may die of their other
/// models.
const LOAD_TRIES: u32 = 4;

/// The engine of an agent. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: WorkerOptions,
    records: Mutex<Records>,
    /// The worker of each group; locked while it is being started, so that only one is.
    workers: Mutex<BTreeMap<String, Slot>>,
    lodgers: Mutex<Vec<Weak<Lodger>>>,
    next: AtomicU64,
    /// Why the last one could not be started, if so.
    trouble: Mutex<Option<String>>,
    /// Notified when there is something to report.
    changed: Arc<Notify>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Worker>>>>;

/// A segment, in whichever worker.
#[derive(Debug)]
struct Lodger {
    slice: u64,
    model: Arc<str>,
    blocks: Arc<[PathBuf]>,
    inputs: Arc<[ValueSpec]>,
    answer_bytes: Arc<AtomicU64>,
    /// The batch sizes it was prepared for, and is again after moving.
    batches: Mutex<Batches>,
    home: Mutex<Option<Home>>,
    /// Locked while it moves.
    moving: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
struct Home {
    worker: Arc<Worker>,
    report: Report,
}

struct WorkerSegment(Arc<Lodger>);

impl Workers {
    /// An engine without workers, in a runtime; they are started when there is something to
    /// load. `changed` is notified when one has crashed.
    ///
    /// # Errors
    /// The folder cannot be emptied or created.
    pub(crate) fn new(
        options: WorkerOptions,
        sharing: Sharing,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        match fs::remove_dir_all(&options.folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::create_dir_all(&options.folder)?,
        }
        let shared = Arc::new(Shared {
            options,
            records: Mutex::new(Records::new(sharing)),
            workers: Mutex::default(),
            lodgers: Mutex::default(),
            next: AtomicU64::new(1),
            trouble: Mutex::default(),
            changed,
        });
        tokio::spawn(memory::keep_within(Arc::downgrade(&shared)));
        Ok(Self { shared })
    }
}

#[async_trait]
impl Engine for Workers {
    async fn load(
        &self,
        model: &str,
        blocks: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError> {
        let lodger = Arc::new(Lodger {
            slice: self.shared.next.fetch_add(1, Ordering::Relaxed),
            model: model.into(),
            blocks: blocks.into(),
            inputs: inputs.into(),
            answer_bytes: Arc::default(),
            batches: Mutex::default(),
            home: Mutex::default(),
            moving: tokio::sync::Mutex::default(),
            shared: Arc::clone(&self.shared),
        });
        lock(&self.shared.lodgers).push(Arc::downgrade(&lodger));
        let Report {
            run_seconds,
            resident_bytes,
        } = lodger.home().await?.report;
        Ok(Loaded {
            segment: Arc::new(WorkerSegment(lodger)),
            run_seconds,
            resident_bytes,
        })
    }

    fn is_alive(&self) -> bool {
        !self
            .shared
            .living()
            .iter()
            .any(|worker| worker.is_overdue())
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    fn crashes(&self) -> Vec<ModelCrashes> {
        lock(&self.shared.records).told(Instant::now())
    }

    fn vitals(&self) -> Vitals {
        let workers = self.shared.living();
        let resident = workers
            .iter()
            .filter_map(|w| w.with_process(resident_bytes)?);
        Vitals {
            workers: u32::try_from(workers.len()).unwrap_or(u32::MAX),
            resident_bytes: resident.sum(),
            crashes: lock(&self.shared.records).total(),
        }
    }
}

#[async_trait]
impl Segment for WorkerSegment {
    async fn run(&self, inputs: Vec<Tensor>, terms: Terms) -> Result<Run, EngineError> {
        let lodger = &self.0;
        for (tensor, spec) in inputs.iter().zip(lodger.inputs.iter()) {
            tensor.check(spec)?;
        }
        let queued = Instant::now();
        let rows = runs::rows(&lodger.inputs, &inputs);
        let mut tries = 0;
        loop {
            let Home { worker, report } = lodger.home().await?;
            let is_suspect = tries > 0;
            let wanted = Wanted {
                model: Arc::clone(&lodger.model),
                slice: lodger.slice,
                inputs: inputs.clone(),
                rows,
                usual_seconds: report.run_seconds,
                terms,
                is_suspect,
                answer_bytes: Arc::clone(&lodger.answer_bytes),
                queued,
            };
            match worker.run(wanted).await {
                Outcome::Answered(answer) => return answer,
                Outcome::Lost { had_begun } => {
                    let cause = worker.over().await;
                    tries += u32::from(had_begun);
                    if tries >= RUN_TRIES {
                        return Err(EngineError::Crashed(cause));
                    }
                }
            }
        }
    }

    async fn specialize(&self, max_rows: i64) -> Result<Batches, EngineError> {
        let lodger = Arc::clone(&self.0);
        // Continues even if nobody waits, so that a worker is not asked twice in vain.
        let tried = tokio::spawn(async move { lodger.specialize(max_rows).await }).await;
        tried.unwrap_or_else(|e| Err(EngineError::NoWorker(e.to_string())))
    }
}

impl Lodger {
    /// The worker it is in, replaced if needed. Continues even if nobody waits.
    async fn home(self: &Arc<Self>) -> Result<Home, EngineError> {
        if let Some(home) = self.present_home() {
            return Ok(home);
        }
        let this = Arc::clone(self);
        let moved = tokio::spawn(async move { this.move_in().await }).await;
        moved.unwrap_or_else(|e| Err(EngineError::NoWorker(e.to_string())))
    }

    fn present_home(&self) -> Option<Home> {
        lock(&self.home)
            .clone()
            .filter(|home| home.worker.is_alive())
    }

    async fn move_in(self: &Arc<Self>) -> Result<Home, EngineError> {
        let _one = self.moving.lock().await;
        let mut cause = String::new();
        for _ in 0..LOAD_TRIES {
            if let Some(home) = self.present_home() {
                return Ok(home);
            }
            lock(&self.shared.records).admit(&self.model, Instant::now())?;
            let worker = self.shared.worker_of(&self.model).await?;
            let loaded = worker.load(&self.model, self.slice, &self.blocks, &self.inputs);
            match loaded.await {
                Outcome::Answered(report) => {
                    let home = Home {
                        report: report?,
                        worker,
                    };
                    self.specialize_again(&home.worker);
                    *lock(&self.home) = Some(home.clone());
                    return Ok(home);
                }
                Outcome::Lost { .. } => cause = worker.over().await,
            }
        }
        let message = format!("its worker ends while it is loaded: {cause}");
        Err(EngineError::Load(message))
    }
}

impl Lodger {
    /// Has a new worker prepare it for its earlier batch sizes, in parallel with its requests.
    fn specialize_again(self: &Arc<Self>, worker: &Arc<Worker>) {
        let batches = *lock(&self.batches);
        if batches == Batches::default() {
            return;
        }
        let (lodger, worker) = (Arc::clone(self), Arc::clone(worker));
        tokio::spawn(async move {
            let rows = Batches::candidates(batches.largest());
            // The result shows in the time of its runs.
            let _ = worker.specialize(&lodger.model, lodger.slice, rows).await;
        });
    }

    async fn specialize(self: &Arc<Self>, max_rows: i64) -> Result<Batches, EngineError> {
        let rows = Batches::candidates(max_rows);
        for _ in 0..LOAD_TRIES {
            let worker = self.home().await?.worker;
            let tried = worker.specialize(&self.model, self.slice, rows.clone());
            match tried.await {
                Outcome::Answered(batches) => {
                    let batches = batches?;
                    *lock(&self.batches) = batches;
                    return Ok(batches);
                }
                // It runs, but ends the worker when tried with several rows.
                Outcome::Lost { had_begun: true } => return Ok(Batches::default()),
                Outcome::Lost { had_begun: false } => {
                    worker.over().await;
                }
            }
        }
        Ok(Batches::default())
    }
}

impl Drop for Lodger {
    fn drop(&mut self) {
        if let Some(home) = lock(&self.home).take() {
            home.worker.unload(&self.model, self.slice);
        }
        self.shared.end_idle_workers();
    }
}

impl Shared {
    /// The worker for `model`, started if there is none.
    async fn worker_of(self: &Arc<Self>, model: &str) -> Result<Arc<Worker>, EngineError> {
        let group = lock(&self.records).group_of(model);
        let slot = Arc::clone(lock(&self.workers).entry(group.clone()).or_default());
        let mut slot = slot.lock().await;
        if let Some(worker) = slot.as_ref().filter(|worker| worker.is_alive()) {
            return Ok(Arc::clone(worker));
        }
        let begin = Instant::now();
        let process = match self.options.start().await {
            Ok(process) => process,
            Err(error) => {
                let error = error.to_string();
                tracing::error!(error, "a worker cannot be started");
                *lock(&self.trouble) = Some(error.clone());
                return Err(EngineError::NoWorker(error));
            }
        };
        *lock(&self.trouble) = None;
        tracing::info!(
            group,
            start_ms = begin.elapsed().as_millis(),
            "worker started"
        );
        let shared = Arc::downgrade(self);
        let worker = Worker::new(group, process, move |crash| {
            if let Some(shared) = shared.upgrade() {
                shared.crashed(&crash);
            }
        });
        *slot = Some(Arc::clone(&worker));
        Ok(worker)
    }

    fn crashed(self: &Arc<Self>, crash: &Crash) {
        tracing::error!(
            group = crash.group,
            cause = crash.cause,
            suspects = ?crash.suspects,
            "a worker crashed"
        );
        let now = (Instant::now(), SystemTime::now());
        lock(&self.records).crashed(crash, now);
        self.changed.notify_one();
        self.bring_back(crash);
    }

    /// Reloads the slices of a crashed worker before they are needed; those of its suspects last.
    fn bring_back(&self, crash: &Crash) {
        let mut homeless = self.lodgers();
        homeless.retain(|lodger| {
            let home = lock(&lodger.home);
            home.as_ref().is_some_and(|home| !home.worker.is_alive())
        });
        homeless.sort_by_key(|lodger| crash.suspects.contains(&*lodger.model));
        tokio::spawn(async move {
            for lodger in homeless {
                if let Err(error) = lodger.home().await {
                    tracing::warn!(model = %lodger.model, %error, "a slice stays away");
                }
            }
        });
    }

    fn lodgers(&self) -> Vec<Arc<Lodger>> {
        lock(&self.lodgers)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    fn living(&self) -> Vec<Arc<Worker>> {
        let slots: Vec<Slot> = lock(&self.workers).values().cloned().collect();
        // One that is being started is missing here.
        let workers = slots
            .iter()
            .filter_map(|slot| slot.try_lock().ok()?.clone());
        workers.filter(|worker| worker.is_alive()).collect()
    }

    /// Ends the workers of groups that have no slice.
    fn end_idle_workers(&self) {
        lock(&self.lodgers).retain(|lodger| lodger.strong_count() > 0);
        let lodgers = self.lodgers();
        let groups: BTreeSet<String> = {
            let records = lock(&self.records);
            lodgers.iter().map(|l| records.group_of(&l.model)).collect()
        };
        lock(&self.workers).retain(|group, slot| {
            // One that is being started is needed.
            groups.contains(group) || slot.try_lock().is_err()
        });
    }
}

/// Resident memory of a process.
fn resident_bytes(process: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
