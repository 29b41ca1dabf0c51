//! What is remembered between two looks at the world. All of it may be lost: a
//! restarted operator takes up the work from the objects alone, and only waits,
//! learns and tells again.

use super::ids::{JobId, PlacementKey};
use super::links::Pair;
use super::snapshot::{Remark, Snapshot};
use super::time::Moment;
use super::wish::{ValidModel, Wish};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lamina_crds::compute_node::Blob;
use lamina_crds::dnn_model::Move;
use lamina_crds::placement::{Plan, RedeployPhases, Segment};
use lamina_placement::adapt::{Measured, Switched, WorkFunction};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything remembered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// By UID of the DnnModel.
    pub models: BTreeMap<String, ModelMemory>,
    /// By model and entry.
    pub placements: BTreeMap<PlacementKey, PlacementMemory>,
    /// What is wrong with models that cannot be read, as people were told.
    pub unreadable: BTreeMap<(String, String), String>,
    /// Models about which deciding broke off, by UID.
    pub aside: BTreeMap<String, Aside>,
    /// The last crash that was told, by node and by namespace and name of the model.
    pub crashes: BTreeMap<(String, String), Time>,
    /// Hosts that could compute, as the last look found them.
    pub fit: Arc<BTreeSet<String>>,
    /// When a question ahead was last asked for any Placement.
    pub asked_ahead: Option<Moment>,
    /// What was learned of hosts. Questions under way hold on to it as it was.
    pub learned: Arc<Learned>,
}

/// A model about which deciding broke off.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Aside {
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// When it last broke off.
    pub at: Moment,
    /// How often it did with this spec.
    pub times: u32,
    /// As people are told.
    pub why: String,
}

/// What was learned of hosts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Learned {
    /// Measured over predicted time by node and manifest digest.
    pub corrections: BTreeMap<(String, String), f64>,
    /// When a node last failed to load blocks of a manifest.
    pub load_failures: BTreeMap<(String, String), Moment>,
}

/// Of one DnnModel.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelMemory {
    /// Tries at preparing.
    pub tries: Tries,
    /// The spec of this generation, validated once; or what is wrong with it.
    pub valid: Option<(i64, Result<Arc<ValidModel>, String>)>,
    /// The accepted spec of this generation, validated once.
    pub accepted: Option<(i64, Option<Arc<Wish>>)>,
    /// Moves that `status.history` does not hold yet.
    pub moves: Vec<Move>,
    /// When progress was last written.
    pub progress_written: Option<Moment>,
}

/// Tries at one prepare job.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tries {
    /// The job.
    pub job: JobId,
    /// Tries that failed.
    pub failed: u32,
    /// Nodes that tried.
    pub nodes: BTreeSet<String>,
    /// Not again before this moment, which people read in the failure's message.
    pub not_before: Option<Moment>,
    /// The last failure: reason and message.
    pub failure: Option<(String, String)>,
}

/// Of one Placement.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacementMemory {
    /// How long the deployment's present step has made no progress.
    pub clock: Clock,
    /// When a strategy was last asked.
    pub solved_at: Option<Moment>,
    /// When one last answered, whatever it said.
    pub answered_at: Option<Moment>,
    /// Hosts that could compute then.
    pub fit: Arc<BTreeSet<String>>,
    /// Shares of requests that left at each exit then.
    pub exit_shares: Vec<f64>,
    /// Generation of the DnnModel that was last planned for.
    pub planned_generation: Option<i64>,
    /// Generation of the wish that what serves meets, as the last answer found.
    pub met_generation: Option<i64>,
    /// The wish of this generation cannot be met: what serves is kept alive by the
    /// last that was.
    pub unmet_generation: Option<i64>,
    /// Since when.
    pub unmet_since: Option<Moment>,
    /// Links of the path as they were when it was chosen.
    pub links: BTreeMap<Pair, LinkReference>,
    /// Revision of the plan whose links those are.
    pub links_of: i64,
    /// Links as people were last told, and when.
    pub told_links: BTreeMap<Pair, (LinkReference, Option<Moment>)>,
    /// A better path that was found.
    pub candidate: Option<Candidate>,
    /// The suppressed move that was told: path and why.
    pub suppressed: Option<String>,
    /// Why the model cannot be placed as it should be: reason and message.
    pub problem: Option<(&'static str, String)>,
    /// The problem that people were told.
    pub told_problem: Option<String>,
    /// Why requests are refused, as people were told.
    pub told_refusal: Option<String>,
    /// What is wrong with the plugin that was asked.
    pub remark: Option<Remark>,
    /// When the plan that failed may be tried again, and how often plans failed.
    pub retry: Option<(Moment, u32)>,
    /// The newest revision whose failure is counted there.
    pub failed_revision: i64,
    /// Since when the first plan is awaited.
    pub waiting_since: Option<Moment>,
    /// The revision that serves, and since when this process has seen it.
    pub settling: Option<(i64, Moment)>,
    /// When the measured latency was last written.
    pub measured_written: Option<Moment>,
    /// The link of a path that became slower last, by which ratio, and when that was seen.
    pub slowed: Option<(Pair, f64, Moment)>,
    /// When the first sign was seen of what may lead to a move.
    pub noticed: Option<Moment>,
    /// The newest plan, until it is seen in the object: a write may fail or be put off.
    pub unwritten: Option<Plan>,
    /// How far the revision on its way is.
    pub stages: Option<Stages>,
    /// Moves made, on this process's clock; those of before it come from the status.
    pub moves: Option<Vec<Switched>>,
    /// A move for a gain whose outcome is being measured.
    pub trial: Option<Trial>,
    /// Paths that measured worse than what they replaced, and until when they are
    /// left alone.
    pub rejected: BTreeMap<String, Moment>,
    /// Paths under the work-function policy, with what each would have cost.
    pub work: Option<Work>,
    /// Blocks that hosts fetch ahead.
    pub standby: StandbyMemory,
}

/// Blocks that hosts fetch ahead.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StandbyMemory {
    /// When it was last asked which, and of which revision.
    pub asked: Option<(Moment, i64)>,
    /// The blocks by host; `None` until a strategy answered or the objects were read.
    pub hosts: Option<BTreeMap<String, Vec<Blob>>>,
}

/// A better path that waits for a second look.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// The path.
    pub path: String,
    /// Its links, which are measured before it is taken.
    pub links: Vec<Pair>,
    /// When it was found.
    pub found: Moment,
    /// What had changed then.
    pub trigger: Option<String>,
}

/// A link as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkReference {
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Round trip in seconds.
    pub rtt_seconds: f64,
}

/// When a revision on its way reached each stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stages {
    /// The revision.
    pub revision: i64,
    /// The first sign of what led to it.
    pub noticed: Moment,
    /// It was decided.
    pub decided: Moment,
    /// Every host had its blocks.
    pub fetched: Option<Moment>,
    /// Every slice was loaded.
    pub loaded: Option<Moment>,
    /// The probe had passed.
    pub verified: Option<Moment>,
}

impl Stages {
    /// Seconds of each phase, for a revision that serves since `now`. A stage that
    /// no look saw ended with the next one.
    pub(crate) fn phases(&self, now: Moment) -> RedeployPhases {
        let verified = self.verified.unwrap_or(now);
        let loaded = self.loaded.unwrap_or(verified);
        let fetched = self.fetched.unwrap_or(loaded);
        let tenths = |seconds: f64| (seconds * 10.0).round() / 10.0;
        RedeployPhases {
            decide_seconds: tenths(self.decided.since(self.noticed)),
            fetch_seconds: tenths(fetched.since(self.decided)),
            load_seconds: tenths(loaded.since(fetched)),
            verify_seconds: tenths(verified.since(loaded)),
            flip_seconds: tenths(now.since(verified)),
        }
    }
}

/// A move for a gain whose outcome is being measured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trial {
    /// Revision that was moved to.
    pub revision: i64,
    /// Where the blocks were before.
    pub from: Vec<Segment>,
    /// Thresholds of exits that were chosen there.
    pub thresholds: BTreeMap<String, f64>,
    /// What was measured there.
    pub before: Measured,
    /// Mean of the rows of a request there, 1 at least.
    pub rows: f64,
    /// What the old path would have taken by then, as it was estimated.
    pub old_path_seconds: f64,
    /// Since when the revision serves; `None` while it is on its way.
    pub since: Option<Moment>,
}

/// Paths of the work-function policy, the first being where the blocks are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    /// The paths.
    pub paths: Vec<Vec<Segment>>,
    /// What each would have cost.
    pub function: WorkFunction,
    /// When it was last brought up to date.
    pub at: Moment,
}

/// Measures how long something has stayed the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Clock {
    key: String,
    since: Option<Moment>,
}

impl Clock {
    /// Seconds since `key` became what it is.
    pub(crate) fn seconds(&mut self, snapshot: &Snapshot, key: String) -> f64 {
        if self.key != key {
            self.key = key;
            self.since = None;
        }
        snapshot.seconds_since(*self.since.get_or_insert(snapshot.now))
    }
}

impl Memory {
    /// Forgets what is gone.
    pub(crate) fn forget_absent(&mut self, snapshot: &Snapshot) {
        let models: BTreeSet<&str> = snapshot
            .models
            .iter()
            .filter_map(|m| m.metadata.uid.as_deref())
            .collect();
        self.models.retain(|uid, _| models.contains(uid.as_str()));
        self.aside.retain(|uid, _| models.contains(uid.as_str()));
        self.placements
            .retain(|key, _| models.contains(key.model_uid.as_str()));
        let known = |node: &str, manifest: &str| {
            snapshot.compute_nodes.contains_key(node) && snapshot.manifests.contains_key(manifest)
        };
        let is_stale = |learned: &Learned| {
            learned.corrections.keys().any(|(n, m)| !known(n, m))
                || learned
                    .load_failures
                    .keys()
                    .any(|(n, _)| !snapshot.compute_nodes.contains_key(n))
        };
        if is_stale(&self.learned) {
            let learned = Arc::make_mut(&mut self.learned);
            learned.corrections.retain(|(n, m), _| known(n, m));
            learned
                .load_failures
                .retain(|(n, _), _| snapshot.compute_nodes.contains_key(n));
        }
    }
}
