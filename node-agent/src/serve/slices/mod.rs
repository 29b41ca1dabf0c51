//! The slices of this host: loads and unloads them to match the wanted ones.

mod attempts;
mod decide;

pub(crate) use attempts::Attempts;
pub(crate) use decide::key_of;
use decide::{Action, decide};

use crate::blobs::{BlobError, BlobSource};
use crate::net::Backoff;
use crate::serve::deadline::Deadline;
use crate::serve::engine::{Batches, Engine, EngineError, Loaded, Run, Segment, Terms, Together};
use crate::serve::specs::{SpecError, value_specs};
use crate::telemetry::SegmentKey;
use attempts::Deadly;
use lamina_crds::compute_node::{Slice, SliceState, SliceStatus};
use lamina_crds::{Encoding, Hop};
use lamina_model::{Digest, Tensor, ValueSpec};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio_util::task::AbortOnDropHandle;

/// Tries for a blob that is missing in the store or arrives damaged.
const FINAL_TRIES: u32 = 3;

/// A slice that serves.
#[derive(Clone)]
pub(crate) struct Serving {
    /// Its inputs, in order.
    pub(crate) inputs: Arc<[ValueSpec]>,
    /// Its outputs, in order.
    pub(crate) outputs: Arc<[ValueSpec]>,
    /// The next host; `None` if this one replies.
    pub(crate) next: Option<Hop>,
    /// The encoding of its outputs to the next host, if they are encoded.
    pub(crate) encoding: Option<Arc<Encoding>>,
    /// Names of the hosts that may call it, if given.
    pub(crate) callers: Option<Arc<[String]>>,
    /// Which requests may be computed together.
    together: Option<Together>,
    /// The graph.
    pub(crate) segment: Arc<dyn Segment>,
}

impl Serving {
    /// See [`Segment::run`].
    pub(crate) async fn run(
        &self,
        inputs: Vec<Tensor>,
        deadline: Deadline,
    ) -> Result<Run, EngineError> {
        let terms = Terms {
            deadline,
            together: self.together,
        };
        self.segment.run(inputs, terms).await
    }
}

/// Every slice that this host holds or tries to hold. Clones share it.
#[derive(Clone)]
pub(crate) struct Slices {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    blobs: Arc<dyn BlobSource>,
    held: RwLock<BTreeMap<SegmentKey, Entry>>,
    /// Segments by model and content: two revisions with the same blocks on this host share one.
    /// Models do not share, since each is accountable for its own. Locked while loading, so that a
    /// second one waits and shares.
    loaded: Mutex<BTreeMap<(String, Vec<String>), Cached>>,
    attempts: Attempts,
    changed: Arc<Notify>,
}

struct Cached {
    segment: Weak<dyn Segment>,
    run_seconds: f64,
    resident_bytes: u64,
}

struct Entry {
    spec: Slice,
    progress: Progress,
    /// Its useful batch sizes, once measured.
    batches: Option<Batches>,
    // Dropping the entry cancels its fetching and measuring.
    _work: AbortOnDropHandle<()>,
}

enum Progress {
    Fetching(String),
    /// As before, while the disk is full.
    NoSpace(String),
    Loading,
    Ready {
        serving: Serving,
        run_seconds: f64,
        resident_bytes: u64,
    },
    Failed(String),
}

/// Totals over all slices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Slices that serve.
    pub(crate) ready: u32,
    /// Slices being fetched or loaded.
    pub(crate) pending: u32,
    /// Slices that cannot be loaded.
    pub(crate) failed: u32,
    /// Memory of those that serve, as the engine reports it.
    pub(crate) resident_bytes: u64,
    /// Block files of those that serve.
    pub(crate) file_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
enum SliceError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Deadly(#[from] Deadly),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Digest(#[from] lamina_model::DigestError),
}

impl Slices {
    /// As [`Slices::noting`], without records of earlier processes.
    #[cfg(test)]
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        blobs: Arc<dyn BlobSource>,
        changed: Arc<Notify>,
    ) -> Self {
        Self::noting(engine, blobs, changed, Attempts::default())
    }

    /// Starts empty; `changed` is notified when a status changes, and `attempts` has the loads that
    /// ended earlier processes.
    pub(crate) fn noting(
        engine: Arc<dyn Engine>,
        blobs: Arc<dyn BlobSource>,
        changed: Arc<Notify>,
        attempts: Attempts,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                engine,
                blobs,
                held: RwLock::default(),
                loaded: Mutex::default(),
                attempts,
                changed,
            }),
        }
    }

    /// Starts the steps to `wanted`; loading continues in separate tasks.
    pub(crate) fn apply(&self, wanted: &[Slice]) {
        let mut held = self.shared.write();
        let specs = held
            .iter()
            .map(|(key, entry)| (key.clone(), entry.spec.clone()))
            .collect();
        for action in decide(wanted, &specs) {
            match action {
                Action::Unload(key) => {
                    tracing::info!(?key, "slice unloaded");
                    held.remove(&key);
                }
                Action::Readdress(spec) => {
                    let key = key_of(&spec);
                    if readdress(&mut held, spec)
                        && let Some(entry) = held.get_mut(&key)
                    {
                        let trying = Arc::clone(&self.shared).specialize(key);
                        entry._work = AbortOnDropHandle::new(tokio::spawn(trying));
                    }
                }
                Action::Load(spec) => {
                    let task = tokio::spawn(Arc::clone(&self.shared).bring_up(spec.clone()));
                    let entry = Entry {
                        progress: Progress::Fetching(String::new()),
                        batches: None,
                        _work: AbortOnDropHandle::new(task),
                        spec,
                    };
                    held.insert(key_of(&entry.spec), entry);
                }
            }
        }
        drop(held);
        self.shared.changed.notify_one();
    }

    /// The slice, if it serves.
    pub(crate) fn get(&self, key: &SegmentKey) -> Option<Serving> {
        match self.shared.read().get(key)?.progress {
            Progress::Ready { ref serving, .. } => Some(serving.clone()),
            _ => None,
        }
    }

    /// Whether there is a slice of the Placement, in any state.
    pub(crate) fn has_part_of(&self, placement_uid: &str) -> bool {
        let held = self.shared.read();
        held.keys().any(|key| key.placement_uid == placement_uid)
    }

    /// The maximum of `of` over the digests of the blocks that this host runs of a revision.
    pub(crate) fn most_of_blocks(
        &self,
        placement_uid: &str,
        revision: i64,
        of: impl Fn(&str) -> u64,
    ) -> u64 {
        let held = self.shared.read();
        let parts = held
            .iter()
            .filter(|(key, _)| key.placement_uid == placement_uid && key.revision == revision);
        let blocks = parts.flat_map(|(_, entry)| &entry.spec.blocks);
        blocks.map(|block| of(&block.digest)).max().unwrap_or(0)
    }

    /// The maximum of `of` over the inputs of the serving slices.
    pub(crate) fn most_of_inputs(&self, of: impl Fn(&[ValueSpec]) -> u64) -> u64 {
        let held = self.shared.read();
        let serving = held.values().filter_map(|entry| match &entry.progress {
            Progress::Ready { serving, .. } => Some(&serving.inputs),
            _ => None,
        });
        serving.map(|inputs| of(inputs)).max().unwrap_or(0)
    }

    /// The status of each slice.
    pub(crate) fn statuses(&self) -> Vec<SliceStatus> {
        self.shared.read().values().map(status).collect()
    }

    /// A problem that blocks the wanted slices until somebody fixes it, if there is one.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.shared
            .read()
            .values()
            .find_map(|entry| match &entry.progress {
                Progress::NoSpace(message) => {
                    Some(format!("a slice of {} waits: {message}", entry.spec.model))
                }
                _ => None,
            })
    }

    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for entry in self.shared.read().values() {
            match &entry.progress {
                Progress::Ready { resident_bytes, .. } => {
                    totals.ready += 1;
                    totals.resident_bytes += resident_bytes;
                    totals.file_bytes += entry.spec.blocks.iter().map(|b| b.bytes).sum::<u64>();
                }
                Progress::Failed(_) => totals.failed += 1,
                _ => totals.pending += 1,
            }
        }
        totals
    }
}

/// Whether its batch sizes must be measured again.
fn readdress(held: &mut BTreeMap<SegmentKey, Entry>, spec: Slice) -> bool {
    let Some(entry) = held.get_mut(&key_of(&spec)) else {
        return false;
    };
    let most = |spec: &Slice| spec.batching.map(|batching| batching.max_rows);
    let is_other = most(&entry.spec) != most(&spec);
    if is_other {
        entry.batches = None;
    }
    let mut is_ready = false;
    if let Progress::Ready { serving, .. } = &mut entry.progress {
        is_ready = true;
        serving.next.clone_from(&spec.next);
        serving.callers = spec.callers.as_deref().map(Into::into);
        serving.together = together(&spec, entry.batches);
    }
    entry.spec = spec;
    is_other && is_ready
}

/// Which requests may be computed together: `None` until it is known what pays.
fn together(spec: &Slice, batches: Option<Batches>) -> Option<Together> {
    let batching = spec.batching?;
    let rows = batches.filter(|batches| batches.largest() > 1)?;
    Some(Together {
        rows,
        max_delay: Duration::from_millis(batching.max_delay_ms.into()),
    })
}

/// Whether all inputs and outputs have one row per row of a request: otherwise the answers to
/// several could not be split.
fn have_rows(serving: &Serving) -> bool {
    let mut values = serving.inputs.iter().chain(&*serving.outputs);
    values.all(ValueSpec::has_rows)
}

/// The message about batching, if it is configured.
fn said_of_batches(entry: &Entry) -> String {
    match (entry.spec.batching, entry.batches) {
        (None, _) => String::new(),
        (Some(_), None) => "trying how many rows are computed faster together".to_owned(),
        (Some(batching), Some(batches)) => {
            let rows = Batches::candidates(batching.max_rows.into());
            let rows = rows.into_iter().filter(|rows| batches.has(*rows));
            let rows: Vec<String> = rows.map(|rows| rows.to_string()).collect();
            if rows.is_empty() {
                "rows are computed one by one: together they are not faster here".to_owned()
            } else {
                format!(
                    "so many rows are computed faster together: {}",
                    rows.join(", ")
                )
            }
        }
    }
}

fn status(entry: &Entry) -> SliceStatus {
    let (state, message, run_ms) = match &entry.progress {
        Progress::Fetching(message) | Progress::NoSpace(message) => {
            (SliceState::Fetching, message.clone(), None)
        }
        Progress::Loading => (SliceState::Loading, String::new(), None),
        Progress::Ready { run_seconds, .. } => (
            SliceState::Ready,
            said_of_batches(entry),
            Some(run_seconds * 1e3),
        ),
        Progress::Failed(message) => (SliceState::Failed, message.clone(), None),
    };
    SliceStatus {
        placement_uid: entry.spec.placement_uid.clone(),
        revision: entry.spec.revision,
        segment: entry.spec.segment,
        state,
        message,
        run_ms,
    }
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<SegmentKey, Entry>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<SegmentKey, Entry>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bring_up(self: Arc<Self>, spec: Slice) {
        let key = key_of(&spec);
        match self.load(&key, &spec).await {
            Ok(loaded) => {
                tracing::info!(?key, run_ms = loaded.run_seconds * 1e3, "slice ready");
                self.serve(&key, loaded);
                Arc::clone(&self).specialize(key).await;
            }
            Err(error) => {
                tracing::warn!(?key, %error, "slice failed");
                self.note(&key, Progress::Failed(error.to_string()));
            }
        }
    }

    async fn load(&self, key: &SegmentKey, spec: &Slice) -> Result<Loaded, SliceError> {
        let inputs = value_specs(&spec.inputs)?;
        value_specs(&spec.outputs)?;
        let mut files = Vec::with_capacity(spec.blocks.len());
        for (done, blob) in spec.blocks.iter().enumerate() {
            let digest: Digest = blob.digest.parse()?;
            self.note(
                key,
                Progress::Fetching(format!("{done}/{} blocks", spec.blocks.len())),
            );
            files.push(self.fetch(key, &digest, blob.bytes).await?);
        }
        self.note(key, Progress::Loading);
        self.load_or_share(spec, files, inputs).await
    }

    async fn fetch(
        &self,
        key: &SegmentKey,
        digest: &Digest,
        bytes: u64,
    ) -> Result<PathBuf, SliceError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let mut final_tries = 0;
        loop {
            let error = match self.blobs.ensure(digest, bytes).await {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            final_tries += u32::from(!error.is_passing());
            if final_tries >= FINAL_TRIES {
                return Err(error.into());
            }
            let told: fn(String) -> Progress = match error {
                BlobError::Full { .. } => Progress::NoSpace,
                _ => Progress::Fetching,
            };
            self.note(key, told(error.to_string()));
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn load_or_share(
        &self,
        spec: &Slice,
        files: Vec<PathBuf>,
        inputs: Vec<ValueSpec>,
    ) -> Result<Loaded, SliceError> {
        let digests: Vec<String> = spec.blocks.iter().map(|b| b.digest.clone()).collect();
        let content = (spec.model.clone(), digests);
        let mut loaded = self.loaded.lock().await;
        loaded.retain(|_, cached| cached.segment.strong_count() > 0);
        if let Some(cached) = loaded.get(&content)
            && let Some(segment) = cached.segment.upgrade()
        {
            return Ok(Loaded {
                segment,
                run_seconds: cached.run_seconds,
                resident_bytes: cached.resident_bytes,
            });
        }
        let bytes = spec.blocks.iter().map(|b| b.bytes).sum();
        let attempt = self.attempts.begin(&content.0, &content.1, bytes)?;
        let new = self.engine.load(&spec.model, files, inputs).await;
        drop(attempt);
        let new = new?;
        let cached = Cached {
            segment: Arc::downgrade(&new.segment),
            run_seconds: new.run_seconds,
            resident_bytes: new.resident_bytes,
        };
        loaded.insert(content, cached);
        Ok(new)
    }

    fn serve(&self, key: &SegmentKey, loaded: Loaded) {
        if let Some(entry) = self.write().get_mut(key) {
            // Checked before loading.
            let specs = |list| value_specs(list).unwrap_or_default();
            let (inputs, outputs) = (specs(&entry.spec.inputs), specs(&entry.spec.outputs));
            entry.progress = Progress::Ready {
                serving: Serving {
                    together: together(&entry.spec, entry.batches),
                    inputs: inputs.into(),
                    outputs: outputs.into(),
                    next: entry.spec.next.clone(),
                    encoding: entry.spec.encoding.clone().map(Arc::new),
                    callers: entry.spec.callers.as_deref().map(Into::into),
                    segment: loaded.segment,
                },
                run_seconds: loaded.run_seconds,
                resident_bytes: loaded.resident_bytes,
            };
        }
        self.changed.notify_one();
    }

    /// Measures which batch sizes pay, if requests may be computed together. It serves meanwhile.
    async fn specialize(self: Arc<Self>, key: SegmentKey) {
        let wanted = {
            let held = self.read();
            let entry = held.get(&key);
            entry.and_then(|entry| match &entry.progress {
                Progress::Ready { serving, .. } => {
                    let segment = have_rows(serving).then(|| Arc::clone(&serving.segment));
                    Some((segment, entry.spec.batching?.max_rows))
                }
                _ => None,
            })
        };
        let Some((segment, max_rows)) = wanted else {
            return;
        };
        let batches = match segment {
            Some(segment) => segment.specialize(max_rows.into()).await,
            None => Ok(Batches::default()),
        };
        let batches = batches.unwrap_or_else(|error| {
            tracing::warn!(?key, %error, "cannot try rows together");
            Batches::default()
        });
        if let Some(entry) = self.write().get_mut(&key)
            && entry.spec.batching.map(|b| b.max_rows) == Some(max_rows)
        {
            entry.batches = Some(batches);
            if let Progress::Ready { serving, .. } = &mut entry.progress {
                serving.together = together(&entry.spec, Some(batches));
            }
        }
        self.changed.notify_one();
    }

    fn note(&self, key: &SegmentKey, progress: Progress) {
        if let Some(entry) = self.write().get_mut(key) {
            entry.progress = progress;
        }
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
