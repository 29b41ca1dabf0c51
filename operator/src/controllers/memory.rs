//! What is remembered between two looks at the world. All of it may be lost: a
//! restarted operator takes up the work from the objects alone, and only waits,
//! learns and tells again.

use super::snapshot::{Remark, Snapshot};
use k8s_openapi::jiff::Timestamp;
use lamina_crds::dnn_model::Redeploy;
use std::collections::{BTreeMap, BTreeSet};

/// Everything remembered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    /// By UID of the DnnModel.
    pub models: BTreeMap<String, ModelMemory>,
    /// By [`placement_key`].
    pub placements: BTreeMap<String, PlacementMemory>,
    /// Measured over predicted time by node and manifest digest.
    pub corrections: BTreeMap<(String, String), f64>,
    /// When a node last failed to load blocks of a manifest.
    pub load_failures: BTreeMap<(String, String), Timestamp>,
}

/// Of one DnnModel.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelMemory {
    /// Hash of source and inputs, and the digest of the manifest that answers
    /// them, once known.
    pub profiled: Option<(String, String)>,
    /// Tries at preparing.
    pub tries: Tries,
    /// Redeploys that `status.history` does not hold yet.
    pub redeploys: Vec<Redeploy>,
    /// When progress was last written.
    pub progress_written: Option<Timestamp>,
}

/// Tries at one prepare job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tries {
    /// The job.
    pub job: String,
    /// Tries that failed.
    pub failed: u32,
    /// Nodes that tried.
    pub nodes: BTreeSet<String>,
    /// Not again before.
    pub not_before: Option<Timestamp>,
    /// The last failure: reason and message.
    pub failure: Option<(String, String)>,
}

/// Of one Placement.
#[derive(Debug, Clone, Default)]
pub(crate) struct PlacementMemory {
    /// How long the deployment's present step has made no progress.
    pub clock: Clock,
    /// When a strategy was last asked.
    pub solved_at: Option<Timestamp>,
    /// Hosts that were connected then.
    pub alive: BTreeSet<String>,
    /// Generation of the DnnModel that was last planned for.
    pub planned_generation: Option<i64>,
    /// Links of the path as they were when it was chosen.
    pub links: BTreeMap<Pair, LinkReference>,
    /// Revision of the plan whose links those are.
    pub links_of: i64,
    /// Links as people were last told, and when.
    pub told_links: BTreeMap<Pair, (LinkReference, Timestamp)>,
    /// A better path that was found.
    pub candidate: Option<Candidate>,
    /// The suppressed move that was told: path and why.
    pub suppressed: Option<String>,
    /// Why the model cannot be placed as it should be: reason and message.
    pub problem: Option<(&'static str, String)>,
    /// The problem that people were told.
    pub told_problem: Option<String>,
    /// What is wrong with the plugin that was asked.
    pub remark: Option<Remark>,
    /// When the plan that failed may be tried again, and how often plans failed.
    pub retry: Option<(Timestamp, u32)>,
    /// The newest revision whose failure is counted there.
    pub failed_revision: i64,
    /// Since when the first plan is awaited.
    pub waiting_since: Option<Timestamp>,
    /// When the measured latency was last written.
    pub measured_written: Option<Timestamp>,
}

/// A better path that waits for a second look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The path.
    pub path: String,
    /// When it was found.
    pub found: Timestamp,
    /// What had changed then.
    pub trigger: Option<String>,
}

/// Sender and receiver.
pub(crate) type Pair = (String, String);

/// A link as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkReference {
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Round trip in seconds.
    pub rtt_seconds: f64,
}

/// Measures how long something has stayed the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    key: String,
    since: Option<Timestamp>,
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

/// Names what is remembered of a model at an entry; there may be no Placement yet.
pub(crate) fn placement_key(model_uid: &str, entry: &str) -> String {
    format!("{model_uid}/{entry}")
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
        self.placements.retain(|key, _| {
            key.split('/')
                .next()
                .is_some_and(|uid| models.contains(uid))
        });
        self.corrections.retain(|(node, manifest), _| {
            snapshot.compute_nodes.contains_key(node) && snapshot.manifests.contains_key(manifest)
        });
        self.load_failures
            .retain(|(node, _), _| snapshot.compute_nodes.contains_key(node));
    }
}
