//! One job of the operator, from the source's URI to the manifest in the store.

use super::child::Asked;
use super::fetch::{Credentials, Fetcher, Source, SourceArgs, shown};
use super::limits::scan_blocks;
use super::lines::Told;
use super::updates::Updates;
use super::{Failure, Program, Reason, Step, StepName};
use crate::blobs::{BlobError, Blobs, PutError};
use lamina_model::{Declared, Digest, Manifest};
use lamina_proto::control::{Prepare, PrepareUpdate};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The environment of jobs. Clones share it.
#[derive(Debug, Clone)]
pub struct Tools {
    blobs: Arc<Blobs>,
    program: Program,
    fetcher: Fetcher,
    /// Each job has its own folder in it while it runs.
    work_dir: PathBuf,
}

/// The parsed job.
struct Wanted {
    uri: String,
    sha256: Option<Digest>,
    secret: Credentials,
    inputs: Vec<Declared>,
    samples: Option<WantedSamples>,
}

/// The user's own requests.
struct WantedSamples {
    uri: String,
    sha256: Digest,
}

impl Tools {
    /// Jobs fetch by `sources`, and keep their files in `work_dir`, which is emptied of files
    /// from a process that died.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub fn new(
        blobs: Arc<Blobs>,
        program: Program,
        work_dir: PathBuf,
        sources: SourceArgs,
    ) -> io::Result<Self> {
        match std::fs::remove_dir_all(&work_dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::create_dir_all(&work_dir)?,
        }
        Ok(Self {
            blobs,
            program,
            fetcher: Fetcher::new(sources),
            work_dir,
        })
    }
}

/// Runs `job` and sends `updates`: progress, then Done or Failed; nothing after `cancel`. Its files
/// are removed in every case, and no process of it is left.
pub async fn run_job(
    job: Prepare,
    tools: Tools,
    updates: mpsc::Sender<PrepareUpdate>,
    cancel: CancellationToken,
) {
    let mut updates = Updates::new(job.job.clone(), updates);
    let outcome = match new_folder(tools.work_dir.clone()).await {
        Ok(folder) => {
            let outcome = work(&job, &tools, &folder, &mut updates, &cancel).await;
            // Gigabytes, perhaps.
            let _ = tokio::task::spawn_blocking(move || drop(folder)).await;
            outcome
        }
        Err(e) => Some(Err(Failure::retryable(
            Reason::PrepareFailed,
            format!("cannot make a folder for the job: {e}"),
        ))),
    };
    match outcome {
        Some(outcome) => updates.end(outcome).await,
        None => tracing::info!(job = job.job, "preparing was cancelled"),
    }
}

async fn new_folder(work_dir: PathBuf) -> io::Result<TempDir> {
    let made = tokio::task::spawn_blocking(move || tempfile::tempdir_in(work_dir)).await;
    made.map_err(io::Error::other)?
}

/// The manifest's digest, or `None` when cancelled.
async fn work(
    job: &Prepare,
    tools: &Tools,
    folder: &TempDir,
    updates: &mut Updates,
    cancel: &CancellationToken,
) -> Option<Result<Digest, Failure>> {
    let wanted = match read(job) {
        Ok(wanted) => wanted,
        Err(failure) => return Some(Err(failure)),
    };
    let source = folder.path().join("source");
    let out = folder.path().join("blocks");
    let samples = folder.path().join("samples");
    let fetching = async {
        let mut progress = |step| updates.progress(step);
        let fetcher = &tools.fetcher;
        // First: they are small, and mistakes in them are reported at once.
        if let Some(asked) = &wanted.samples {
            let room = tools.blobs.room_for_work().await.map_err(|e| no_room(&e))?;
            let source = Source {
                uri: &asked.uri,
                expected: Some(&asked.sha256),
                // The credentials are for the server of the model.
                secret: &Credentials::default(),
            };
            fetcher
                .fetch(source, &samples, room, &mut progress)
                .await
                .map_err(of_samples)?;
        }
        let room = tools.blobs.room_for_work().await.map_err(|e| no_room(&e))?;
        let wanted = Source {
            uri: &wanted.uri,
            expected: wanted.sha256.as_ref(),
            secret: &wanted.secret,
        };
        fetcher.fetch(wanted, &source, room, &mut progress).await
    };
    if let Err(failure) = cancel.run_until_cancelled(fetching).await? {
        return Some(Err(failure));
    }
    let mut told = |told| match told {
        Told::Step(step) => updates.progress(step),
        Told::Warning(warning) => tracing::warn!(warning, "preparing a model"),
    };
    let asked = Asked {
        inputs: &wanted.inputs,
        samples: wanted.samples.is_some().then_some(&*samples),
    };
    let child = tools.program.run(&source, &asked, &out, &mut told, cancel);
    let manifest = match child.await? {
        Ok(manifest) => manifest,
        Err(failure) => {
            let failure = named(failure, &source, &wanted.uri);
            let uri = wanted.samples.as_ref().map_or("", |s| s.uri.as_str());
            return Some(Err(named(failure, &samples, uri)));
        }
    };
    let storing = async {
        let manifest = checked(manifest, out.clone()).await?;
        store(&tools.blobs, &manifest, &out, updates).await
    };
    cancel.run_until_cancelled(storing).await
}

fn read(job: &Prepare) -> Result<Wanted, Failure> {
    let refuse = |reason, what: String| Failure::new(reason, what);
    let inputs = serde_json::from_str(&job.inputs_json).map_err(|e| {
        refuse(
            Reason::InputMismatch,
            format!("the declared inputs cannot be read: {e}"),
        )
    })?;
    let digest = |text: &str| {
        text.parse()
            .map_err(|e| refuse(Reason::ChecksumMismatch, format!("the declared {e}")))
    };
    let sha256 = match job.sha256.as_str() {
        "" => None,
        text => Some(digest(text)?),
    };
    let samples = match job.samples_uri.as_str() {
        "" => None,
        uri => Some(WantedSamples {
            uri: uri.to_owned(),
            sha256: digest(&job.samples_sha256).map_err(of_samples)?,
        }),
    };
    Ok(Wanted {
        uri: job.uri.clone(),
        sha256,
        secret: secret(job),
        inputs,
        samples,
    })
}

fn secret(job: &Prepare) -> Credentials {
    let entries = job.secret.iter().flat_map(|secret| &secret.entries);
    Credentials::new(entries.map(|(key, value)| (key.clone(), value.to_vec())))
}

/// `manifest`, once its blocks are safe for agents to load.
async fn checked(manifest: Manifest, out: PathBuf) -> Result<Manifest, Failure> {
    let scanning = tokio::task::spawn_blocking(move || {
        let scanned = scan_blocks(&manifest, &out);
        scanned.map(|()| manifest).map_err(|e| Failure::from(&e))
    });
    scanning.await.unwrap_or_else(|e| {
        let what = format!("scanning the blocks failed: {e}");
        Err(Failure::retryable(Reason::PrepareFailed, what))
    })
}

/// A failure that is about the samples, not the model.
fn of_samples(failure: Failure) -> Failure {
    let message = failure.message.replace("spec.source", "spec.samples");
    Failure {
        message: format!("spec.samples: {message}"),
        ..failure
    }
}

/// The temporary file's name is meaningless to people.
fn named(mut failure: Failure, source: &Path, uri: &str) -> Failure {
    let source = source.display().to_string();
    failure.message = failure.message.replace(&source, &shown(uri));
    failure
}

/// Stores blocks and probe, and the manifest last: once it is there, everything is. They stay in
/// the cache here too.
async fn store(
    blobs: &Blobs,
    manifest: &Manifest,
    dir: &Path,
    updates: &mut Updates,
) -> Result<Digest, Failure> {
    let blocks = manifest
        .blocks
        .iter()
        .map(|b| (&b.digest, b.kind.extension()));
    let files: Vec<_> = blocks.chain([(&manifest.probe, "safetensors")]).collect();
    let total = files.len() as u64 + 1;
    for (done, (digest, extension)) in (0..).zip(files) {
        updates.progress(storing(done, total));
        let path = dir.join(format!("{digest}.{extension}"));
        let stored = blobs.put_file(digest, &path).await;
        stored.map_err(|e| not_stored(&e))?;
        blobs.adopt_file(digest, &path).await;
    }
    updates.progress(storing(total - 1, total));
    let json = serde_json::to_vec(manifest).map_err(|e| {
        let what = format!("the manifest cannot be written: {e}");
        Failure::new(Reason::PrepareFailed, what)
    })?;
    let digest = blobs.put_bytes(&json).await.map_err(|e| not_stored(&e))?;
    blobs.adopt_bytes(&digest, json).await;
    Ok(digest)
}

const fn storing(done: u64, total: u64) -> Step {
    Step {
        step: StepName::Storing,
        done,
        total,
    }
}

fn no_room(error: &BlobError) -> Failure {
    Failure::retryable(Reason::PrepareFailed, crate::causes::with_causes(error))
}

fn not_stored(error: &PutError) -> Failure {
    Failure::retryable(Reason::PrepareFailed, crate::causes::with_causes(error))
}
