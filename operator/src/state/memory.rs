//! What is remembered between two looks. All of it may be lost: a restarted operator resumes from
//! the objects alone, and only repeats some waits, measurements and Events.

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
    /// Errors of unreadable models that were reported.
    pub unreadable: BTreeMap<(String, String), String>,
    /// Models whose decisions panicked, by UID.
    pub aside: BTreeMap<String, Aside>,
    /// The last reported crash, by node and by namespace and name of the model.
    pub crashes: BTreeMap<(String, String), Time>,
    /// Hosts that could compute in the last look.
    pub fit: Arc<BTreeSet<String>>,
    /// When the last question ahead was asked for any Placement.
    pub asked_ahead: Option<Moment>,
    /// What was learned about hosts. Questions in progress keep their version.
    pub learned: Arc<Learned>,
}

/// A model whose decisions panicked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Aside {
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// When it last panicked.
    pub at: Moment,
    /// How often it panicked with this spec.
    pub times: u32,
    /// The message for its status.
    pub why: String,
}

/// What was learned about hosts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Learned {
    /// Ratio of measured to predicted time, by node and manifest digest.
    pub corrections: BTreeMap<(String, String), f64>,
    /// When a node last failed to load blocks of a manifest.
    pub load_failures: BTreeMap<(String, String), Moment>,
}

/// Memory of one DnnModel.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelMemory {
    /// Tries at preparing.
    pub tries: Tries,
    /// The validated spec of this generation, or its error.
    pub valid: Option<(i64, Result<Arc<ValidModel>, String>)>,
    /// The validated accepted spec of this generation.
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
    /// The next try is not before this time, which the failure's message gives.
    pub not_before: Option<Moment>,
    /// The last failure: reason and message.
    pub failure: Option<(String, String)>,
}

/// Memory of one Placement.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacementMemory {
    /// How long the deployment's present step has made no progress.
    pub clock: Clock,
    /// When a strategy was last asked.
    pub solved_at: Option<Moment>,
    /// When one last answered, whatever the answer.
    pub answered_at: Option<Moment>,
    /// Hosts that could compute at that time.
    pub fit: Arc<BTreeSet<String>>,
    /// Hosts that it considered, in order.
    pub considered: Vec<String>,
    /// When a link between two of them became faster, and which: not yet answered for.
    pub faster_link: Option<(Moment, String)>,
    /// Shares of requests that left at each exit then.
    pub exit_shares: Vec<f64>,
    /// Generation of the DnnModel that was last planned for.
    pub planned_generation: Option<i64>,
    /// Generation of the wish that the serving plan meets, by the last answer.
    pub met_generation: Option<i64>,
    /// The wish of this generation cannot be met: the last one that was met keeps the model
    /// serving.
    pub unmet_generation: Option<i64>,
    /// Since when.
    pub unmet_since: Option<Moment>,
    /// Links of the path when it was chosen.
    pub links: BTreeMap<Pair, LinkReference>,
    /// Revision of the plan of those links.
    pub links_of: i64,
    /// Links as last reported, and when.
    pub told_links: BTreeMap<Pair, (LinkReference, Option<Moment>)>,
    /// A better path that was found.
    pub candidate: Option<Candidate>,
    /// The reported suppressed move: path and reason.
    pub suppressed: Option<String>,
    /// Why the model cannot be placed properly: reason and message.
    pub problem: Option<(&'static str, String)>,
    /// The reported problem.
    pub told_problem: Option<String>,
    /// The reported reason for refusing requests.
    pub told_refusal: Option<String>,
    /// The fault of the plugin that was asked.
    pub remark: Option<Remark>,
    /// When the failed plan may be tried again, and how many plans failed.
    pub retry: Option<(Moment, u32)>,
    /// The newest revision counted there.
    pub failed_revision: i64,
    /// Since when the first plan has been waited for.
    pub waiting_since: Option<Moment>,
    /// The revision that serves, and since when this process has seen it.
    pub settling: Option<(i64, Moment)>,
    /// When the measured latency was last written.
    pub measured_written: Option<Moment>,
    /// The link of a path that last became slower, its ratio, and when that was noticed.
    pub slowed: Option<(Pair, f64, Moment)>,
    /// When the first sign of a possible move was noticed.
    pub noticed: Option<Moment>,
    /// The newest plan, until it is seen in the object: a write may fail or be deferred.
    pub unwritten: Option<Plan>,
    /// The stages of the revision being deployed.
    pub stages: Option<Stages>,
    /// Moves on this process's clock; earlier ones come from the status.
    pub moves: Option<Vec<Switched>>,
    /// A move for a gain that is being judged.
    pub trial: Option<Trial>,
    /// Paths that measured worse than the ones they replaced, and until when to avoid them.
    pub rejected: BTreeMap<String, Moment>,
    /// Paths under the work-function policy, with their accumulated costs.
    pub work: Option<Work>,
    /// Blocks that hosts fetch ahead.
    pub standby: StandbyMemory,
}

/// Blocks that hosts fetch ahead.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StandbyMemory {
    /// When it was last asked, and for which revision.
    pub asked: Option<(Moment, i64)>,
    /// The blocks by host; `None` until a strategy has answered or the objects were read.
    pub hosts: Option<BTreeMap<String, Vec<Blob>>>,
}

/// A better path that waits for a second look.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidate {
    /// The path.
    pub path: String,
    /// Its links, which must be measured before it is taken.
    pub links: Vec<Pair>,
    /// When it was found.
    pub found: Moment,
    /// The change that led to it.
    pub trigger: Option<String>,
    /// It only promises a gain: nothing became worse.
    pub is_calm: bool,
}

/// A link as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkReference {
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Round trip in seconds.
    pub rtt_seconds: f64,
}

/// When the revision being deployed reached each stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stages {
    /// The revision.
    pub revision: i64,
    /// The first sign of the change that led to it.
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
    /// Seconds of each phase, for a revision that has served since `now`. A stage that no look saw
    /// ended together with the next one.
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

/// A move for a gain that is being judged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trial {
    /// Revision that was moved to.
    pub revision: i64,
    /// Where the blocks were before.
    pub from: Vec<Segment>,
    /// Thresholds of exits that were chosen there.
    pub thresholds: BTreeMap<String, f64>,
    /// Measurements there.
    pub before: Measured,
    /// Mean rows per request there, at least 1.
    pub rows: f64,
    /// Estimated time of the old path when it was left.
    pub old_path_seconds: f64,
    /// Since when the revision has served; `None` while it is being deployed.
    pub since: Option<Moment>,
}

/// Paths of the work-function policy; the first is where the blocks are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    /// The paths.
    pub paths: Vec<Vec<Segment>>,
    /// What each would have cost.
    pub function: WorkFunction,
    /// When it was last updated.
    pub at: Moment,
}

/// Measures how long something has stayed the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Clock {
    key: String,
    since: Option<Moment>,
}

impl Clock {
    /// Seconds since `key` last changed.
    pub(crate) fn seconds(&mut self, snapshot: &Snapshot, key: String) -> f64 {
        if self.key != key {
            self.key = key;
            self.since = None;
        }
        snapshot.seconds_since(*self.since.get_or_insert(snapshot.now))
    }
}

impl Memory {
    /// Forgets deleted objects.
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
