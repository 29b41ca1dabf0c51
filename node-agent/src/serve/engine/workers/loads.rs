//! One load at a time. Block files are linked into the one folder that the worker reads, so that a
//! model that takes it over sees at most its own group's blocks, and only while they are loaded.

use super::super::{Batches, EngineError};
use super::channel::Channel;
use super::runs::Fault;
use futures::TryFutureExt as _;
use lamina_model::ValueSpec;
use lamina_worker_link::message::{LoadCall, LoadReply, Refusal};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Time limit for reading, optimizing and warming up a slice: minutes if it is large and the host
/// small.
const LOAD_LIMIT: Duration = Duration::from_secs(600);

/// A job on a slice.
#[derive(Debug)]
pub(super) enum LoadJob {
    Load {
        slice: u64,
        blocks: Arc<[PathBuf]>,
        inputs: Arc<[ValueSpec]>,
        asked: Asked<Report>,
    },
    Specialize {
        slice: u64,
        /// Numbers of rows to try.
        rows: Vec<i64>,
        asked: Asked<Batches>,
    },
    Unload {
        slice: u64,
    },
}

/// Who waits for a job.
#[derive(Debug)]
pub(super) struct Asked<T> {
    pub(super) model: Arc<str>,
    /// Set when the worker is called.
    pub(super) begun: Arc<AtomicBool>,
    pub(super) reply: oneshot::Sender<Result<T, EngineError>>,
}

impl<T> Asked<T> {
    /// Answers with what comes of `work`, which is not begun where nobody waits any more.
    ///
    /// # Errors
    /// It broke the worker.
    async fn answer(
        self,
        work: impl Future<Output = Result<Result<T, EngineError>, Fault>>,
        now: &impl Fn(Option<Arc<str>>),
    ) -> Result<(), Fault> {
        if self.reply.is_closed() {
            return Ok(());
        }
        self.begun.store(true, Ordering::Release);
        now(Some(self.model));
        let done = timeout(LOAD_LIMIT, work).await;
        let answer = done.unwrap_or(Err(Fault::Stuck(LOAD_LIMIT)))?;
        // Where it broke the worker, its model is to be known as the one at work.
        now(None);
        // Where nobody waits any more, what was loaded is unloaded next.
        let _ = self.reply.send(answer);
        Ok(())
    }
}

/// What loading found out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Report {
    pub(super) run_seconds: f64,
    pub(super) resident_bytes: u64,
}

/// Does `jobs` until one breaks the worker. `now` receives the model being loaded.
pub(super) async fn serve(
    mut channel: Channel,
    folder: &Path,
    mut jobs: mpsc::UnboundedReceiver<LoadJob>,
    now: impl Fn(Option<Arc<str>>),
) -> Fault {
    while let Some(job) = jobs.recv().await {
        let done = match job {
            LoadJob::Load {
                slice,
                blocks,
                inputs,
                asked,
            } => {
                let loading = load(&mut channel, folder, slice, &blocks, inputs.to_vec());
                asked.answer(loading, &now).await
            }
            LoadJob::Specialize { slice, rows, asked } => {
                let trying = specialize(&mut channel, slice, rows);
                asked.answer(trying.map_ok(Ok), &now).await
            }
            LoadJob::Unload { slice } => unload(&mut channel, slice).await,
        };
        if let Err(fault) = done {
            return fault;
        }
    }
    // Nobody uses this worker any more; it is ended for that.
    std::future::pending().await
}

async fn unload(channel: &mut Channel, slice: u64) -> Result<(), Fault> {
    channel.send(&LoadCall::Unload { slice }, None).await?;
    match channel.receive().await? {
        LoadReply::Unloaded => Ok(()),
        _ => Err(Fault::Nonsense("another reply than to unloading")),
    }
}

async fn specialize(channel: &mut Channel, slice: u64, rows: Vec<i64>) -> Result<Batches, Fault> {
    let call = LoadCall::Specialize { slice, rows };
    channel.send(&call, None).await?;
    match channel.receive().await? {
        LoadReply::Specialized { gains } => {
            tracing::info!(slice, ?gains, "rows that are computed faster together");
            Ok(Batches::of(gains.into_iter().map(|(rows, _)| rows)))
        }
        _ => Err(Fault::Nonsense("another reply than to specializing")),
    }
}

async fn load(
    channel: &mut Channel,
    folder: &Path,
    slice: u64,
    blocks: &[PathBuf],
    inputs: Vec<ValueSpec>,
) -> Result<Result<Report, EngineError>, Fault> {
    let links: Vec<PathBuf> = (0..blocks.len())
        .map(|at| folder.join(format!("{slice}-{at}.pt")))
        .collect();
    for (block, link) in blocks.iter().zip(&links) {
        if let Err(error) = lend(block, link).await {
            let error = format!("cannot give {} to a worker: {error}", block.display());
            return Ok(Err(EngineError::Load(error)));
        }
    }
    let call = LoadCall::Load {
        slice,
        blocks: links.clone(),
        inputs,
    };
    channel.send(&call, None).await?;
    let reply = channel.receive().await?;
    for link in links {
        // The folder is removed with the worker.
        let _ = tokio::fs::remove_file(link).await;
    }
    match reply {
        LoadReply::Loaded {
            run_seconds,
            resident_bytes,
        } if run_seconds.is_finite() && run_seconds >= 0.0 => Ok(Ok(Report {
            run_seconds,
            resident_bytes,
        })),
        LoadReply::Refused(Refusal::Broken(reason)) => Err(Fault::Broken(reason)),
        LoadReply::Refused(Refusal::Memory(reason)) => Ok(Err(EngineError::Load(format!(
            "out of memory: {reason}; a smaller slice fits, or a larger limit for workers"
        )))),
        LoadReply::Refused(Refusal::Forward(reason) | Refusal::Value(reason)) => {
            Ok(Err(EngineError::Load(reason)))
        }
        _ => Err(Fault::Nonsense("another reply than to loading")),
    }
}

/// Hard-links `block` to `link`; copies it if the file system has no hard links.
async fn lend(block: &Path, link: &Path) -> io::Result<()> {
    match tokio::fs::hard_link(block, link).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => tokio::fs::copy(block, link).await.map(drop),
    }
}
