//! A worker as seen from outside: a process, its two queues, and its watchdog.

use super::super::{Batches, EngineError, Run, Terms};
use super::lines::{Lines, Taker};
use super::loads::{self, Asked, LoadJob, Report};
use super::process::{Process, Unreaped};
use super::queue::Refused;
use super::records::Crash;
use super::runs::{self, Fault, RunJob};
use futures::FutureExt as _;
use futures::future::select_all;
use lamina_model::{Tensor, ValueSpec};
use rustix::process::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{RwLock, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How far a run may exceed its limit before the agent itself counts as stuck.
const OVERDUE: Duration = Duration::from_secs(15);

/// A worker; dropping the last handle ends it.
#[derive(Debug)]
pub(super) struct Worker {
    /// Memory that it may ever take, in bytes; by now it may be less.
    pub(super) memory_limit_bytes: u64,
    runs: Lines,
    loads: mpsc::UnboundedSender<LoadJob>,
    state: Arc<State>,
    _end: DropGuard,
}

#[derive(Debug)]
struct State {
    process: Unreaped,
    /// Fires when the process has ended and its end was handled.
    over: CancellationToken,
    is_over: AtomicBool,
    /// How it ended.
    cause: OnceLock<String>,
    /// For each lane, the running model and its time limit.
    runs: Mutex<BTreeMap<usize, (Arc<str>, Instant)>>,
    loads: Mutex<Option<Arc<str>>>,
    residents: Mutex<Vec<Arc<str>>>,
}

/// The outcome of a job.
#[derive(Debug)]
pub(super) enum Outcome<T> {
    Answered(Result<T, EngineError>),
    /// The worker ended before it answered; whether it had started the job.
    Lost {
        had_begun: bool,
    },
}

/// A run for a worker.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) model: Arc<str>,
    pub(super) slice: u64,
    pub(super) inputs: Vec<Tensor>,
    /// Its size relative to batch 1, which takes `usual_seconds`.
    pub(super) rows: f64,
    pub(super) usual_seconds: f64,
    pub(super) terms: Terms,
    /// It was there when a worker ended.
    pub(super) is_suspect: bool,
    pub(super) answer_bytes: Arc<AtomicU64>,
    pub(super) queued: Instant,
}

impl Worker {
    /// Takes over `process`; `crashed` is called when it ends by itself or must be ended.
    pub(super) fn new(
        group: String,
        process: Process,
        crashed: impl FnOnce(Crash) + Send + 'static,
    ) -> Arc<Self> {
        let (runs, run_jobs) = Lines::new(process.lanes());
        let (loads, load_jobs) = mpsc::unbounded_channel();
        let state = Arc::new(State {
            process: Unreaped::of(&process.child),
            over: CancellationToken::new(),
            is_over: AtomicBool::new(false),
            cause: OnceLock::new(),
            runs: Mutex::default(),
            loads: Mutex::default(),
            residents: Mutex::default(),
        });
        let end = CancellationToken::new();
        let worker = Arc::new(Self {
            memory_limit_bytes: process.memory_limit_bytes,
            runs,
            loads,
            state: Arc::clone(&state),
            _end: end.clone().drop_guard(),
        });
        tokio::spawn(watch(
            group, process, run_jobs, load_jobs, state, end, crashed,
        ));
        worker
    }

    /// Whether it accepts jobs.
    pub(super) fn is_alive(&self) -> bool {
        !self.state.is_over.load(Ordering::Acquire)
    }

    /// What `work` makes of its process's number, which nobody else gets meanwhile; `None` once the
    /// process has ended.
    pub(super) fn with_process<T>(&self, work: impl FnOnce(Pid) -> T) -> Option<T> {
        self.state.process.with(work)
    }

    /// Whether a run has exceeded its limit.
    pub(super) fn is_overdue(&self) -> bool {
        let runs = lock(&self.state.runs);
        let now = Instant::now();
        self.is_alive() && runs.values().any(|(_, due)| *due + OVERDUE < now)
    }

    /// How it ended, once it has.
    pub(super) async fn over(&self) -> String {
        self.state.over.cancelled().await;
        self.state.cause.get().cloned().unwrap_or_default()
    }

    pub(super) async fn run(&self, wanted: Wanted) -> Outcome<Run> {
        let (reply, answer) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let job = RunJob {
            model: wanted.model,
            slice: wanted.slice,
            came: 0,
            inputs: wanted.inputs,
            rows: wanted.rows,
            usual_seconds: wanted.usual_seconds,
            // One of those computed with it may have ended the worker.
            together: wanted.terms.together.filter(|_| !wanted.is_suspect),
            is_suspect: wanted.is_suspect,
            deadline: wanted.terms.deadline,
            limit: runs::patience(wanted.usual_seconds, wanted.rows),
            answer_bytes: wanted.answer_bytes,
            begun: Arc::clone(&begun),
            queued: wanted.queued,
            reply,
        };
        match self.runs.push(job) {
            Ok(()) => outcome(answer.await, &begun),
            Err(Refused::Full { waiting, again }) => {
                Outcome::Answered(Err(EngineError::Busy { waiting, again }))
            }
            Err(Refused::Crowded { wait, again }) => {
                Outcome::Answered(Err(EngineError::Crowded { wait, again }))
            }
            Err(Refused::Closed) => Outcome::Lost { had_begun: false },
        }
    }

    pub(super) async fn load(
        &self,
        model: &Arc<str>,
        slice: u64,
        blocks: &Arc<[PathBuf]>,
        inputs: &Arc<[ValueSpec]>,
    ) -> Outcome<Report> {
        lock(&self.state.residents).push(Arc::clone(model));
        let job = |asked| LoadJob::Load {
            slice,
            blocks: Arc::clone(blocks),
            inputs: Arc::clone(inputs),
            asked,
        };
        let loaded = self.ask(model, job).await;
        if matches!(loaded, Outcome::Answered(Err(_))) {
            self.forget(model);
        }
        loaded
    }

    /// The numbers in `rows` for which `slice` of `model` is faster together; it is now prepared
    /// for them.
    pub(super) async fn specialize(
        &self,
        model: &Arc<str>,
        slice: u64,
        rows: Vec<i64>,
    ) -> Outcome<Batches> {
        let job = |asked| LoadJob::Specialize { slice, rows, asked };
        self.ask(model, job).await
    }

    /// What comes of a job for `model`.
    async fn ask<T>(&self, model: &Arc<str>, job: impl FnOnce(Asked<T>) -> LoadJob) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let asked = Asked {
            model: Arc::clone(model),
            begun: Arc::clone(&begun),
            reply,
        };
        if self.loads.send(job(asked)).is_err() {
            return Outcome::Lost { had_begun: false };
        }
        outcome(answer.await, &begun)
    }

    fn forget(&self, model: &Arc<str>) {
        let mut residents = lock(&self.state.residents);
        if let Some(at) = residents.iter().position(|resident| resident == model) {
            residents.swap_remove(at);
        }
    }

    /// Drops `slice` of `model`.
    pub(super) fn unload(&self, model: &Arc<str>, slice: u64) {
        self.forget(model);
        self.runs.forget(slice);
        // A worker that is gone holds nothing.
        let _ = self.loads.send(LoadJob::Unload { slice });
    }
}

fn outcome<T>(
    answer: Result<Result<T, EngineError>, oneshot::error::RecvError>,
    begun: &AtomicBool,
) -> Outcome<T> {
    match answer {
        Ok(answer) => Outcome::Answered(answer),
        Err(_) => Outcome::Lost {
            had_begun: begun.load(Ordering::Acquire),
        },
    }
}

async fn watch(
    group: String,
    process: Process,
    run_jobs: Vec<Taker>,
    load_jobs: mpsc::UnboundedReceiver<LoadJob>,
    state: Arc<State>,
    end: CancellationToken,
    crashed: impl FnOnce(Crash) + Send,
) {
    let most = process.answer_limit_bytes;
    let (inner, rest) = process.split();
    let fault = {
        let beside = Arc::new(RwLock::new(()));
        let state = &*state;
        let lanes = inner.runs.into_iter().zip(run_jobs).enumerate();
        let runs = lanes.map(|(lane, (channel, jobs))| {
            let now = move |now: Option<(Arc<str>, Duration)>| {
                let mut runs = lock(&state.runs);
                match now {
                    Some((model, limit)) => runs.insert(lane, (model, Instant::now() + limit)),
                    None => runs.remove(&lane),
                };
            };
            runs::serve(channel, jobs, most, Arc::clone(&beside), now).boxed()
        });
        let runs = select_all(runs);
        let loads = loads::serve(inner.loads, rest.folder(), load_jobs, |now| {
            *lock(&state.loads) = now;
        });
        tokio::select! {
            (fault, _, _) = runs => Some(fault),
            fault = loads => Some(fault),
            () = state.process.ended() => Some(Fault::Broken(String::new())),
            () = end.cancelled() => None,
        }
    };
    // Only from here on is it reaped.
    state.process.release();
    // From here on jobs are lost, and their callers wait until it is over.
    state.is_over.store(true, Ordering::Release);
    let Some(fault) = fault else {
        rest.kill(inner.child).await;
        state.over.cancel();
        return;
    };
    let ended = match fault {
        // It may be dying of its own fault.
        Fault::Frame(_) => rest.end(inner.child).await,
        Fault::Broken(reason) if reason.is_empty() => rest.end(inner.child).await,
        other => {
            rest.kill(inner.child).await;
            other.to_string()
        }
    };
    let name = |model: &Arc<str>| model.to_string();
    let running: BTreeSet<String> = lock(&state.runs).values().map(|(m, _)| name(m)).collect();
    let loading = lock(&state.loads).as_ref().map(name);
    let residents: BTreeSet<String> = lock(&state.residents).iter().map(name).collect();
    let _ = state.cause.set(ended.clone());
    crashed(Crash {
        group,
        residents,
        suspects: running.into_iter().chain(loading).collect(),
        cause: ended,
    });
    state.over.cancel();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
