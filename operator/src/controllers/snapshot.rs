//! The world as plain data at one moment: everything that deciding looks at.

use k8s_openapi::jiff::Timestamp;
use lamina_crds::{ComputeNode, DnnModel, Hop, Placement};
use lamina_model::Manifest;
use lamina_placement::Solution;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything that a decision may depend on.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// The moment.
    pub now: Timestamp,
    /// When this process began: for a while after it, silence means nothing.
    pub started: Timestamp,
    /// Node on which this operator runs.
    pub operator_node: String,
    /// Where agents reach this operator, `10.0.0.3:9000`.
    pub endpoint: String,
    /// Every DnnModel.
    pub models: Vec<Arc<DnnModel>>,
    /// Every Placement.
    pub placements: Vec<Arc<Placement>>,
    /// ComputeNodes by name.
    pub compute_nodes: BTreeMap<String, Arc<ComputeNode>>,
    /// Kubernetes Nodes by name.
    pub nodes: BTreeMap<String, NodeView>,
    /// Nodes on which an agent pod runs or starts.
    pub agents: BTreeSet<String>,
    /// What agents say of themselves over their sessions, by node.
    pub live: BTreeMap<String, LiveNode>,
    /// Directed links that were measured, by sender and receiver.
    pub links: BTreeMap<(String, String), LinkView>,
    /// Median compute time in seconds of live requests by placement UID,
    /// revision and segment.
    pub timings: BTreeMap<(String, i64, u32), f64>,
    /// What entries say of their requests, by placement UID.
    pub requests: BTreeMap<String, RequestView>,
    /// Manifests by digest; those in whose case every block is in the store.
    pub manifests: BTreeMap<String, Arc<Manifest>>,
    /// Prepare jobs by id.
    pub prepares: BTreeMap<String, PrepareView>,
    /// Names that select a plugin as a strategy.
    pub plugins: BTreeSet<String>,
    /// What plugins were asked, by [`super::memory::placement_key`].
    pub questions: BTreeMap<String, QuestionView>,
}

/// What matters of a Kubernetes Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeView {
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It is cordoned.
    pub unschedulable: bool,
}

/// What an agent's session says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LiveNode {
    /// Where other agents reach it, `10.0.0.7:8001`.
    pub address: String,
    /// Its heartbeats arrive.
    pub alive: bool,
    /// Memory that it may still take, in bytes.
    pub memory_free_bytes: u64,
    /// When its last message arrived.
    pub last_seen: Option<Timestamp>,
}

/// A measured direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkView {
    /// Round trip of an empty message in seconds, where known.
    pub rtt_seconds: Option<f64>,
    /// Bytes per second, where known.
    pub bytes_per_second: Option<f64>,
    /// Relative noise of the bandwidth samples: 0.2 is ±20 %.
    pub noise: f64,
    /// Seconds since the bandwidth was last measured; infinite before.
    pub bandwidth_age_seconds: f64,
    /// The receiver answers; the figures are of before where it does not.
    pub reachable: bool,
}

/// Requests at the entry of a Placement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RequestView {
    /// The revision that answered them.
    pub revision: i64,
    /// Number answered by this revision.
    pub answered: u64,
    /// Median latency in seconds.
    pub latency_p50_seconds: f64,
}

/// A prepare job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PrepareView {
    /// An agent works on it.
    Running {
        /// The agent's node.
        node: String,
        /// Fetching, Slicing, Checking, Profiling or Storing.
        step: String,
        /// Parts done.
        done: u64,
        /// Parts in all; 0 where not known.
        total: u64,
        /// Parts are bytes.
        bytes: bool,
    },
    /// Everything is in the store.
    Done {
        /// The agent's node.
        node: String,
        /// Digest of the manifest.
        manifest: String,
    },
    /// It ended without a result.
    Failed {
        /// The agent's node.
        node: String,
        /// FetchFailed, ChecksumMismatch, InvalidModel, InputMismatch or
        /// PrepareFailed.
        reason: String,
        /// What happened and what to do.
        message: String,
        /// Another try may succeed.
        retryable: bool,
    },
    /// The agent was lost.
    Lost {
        /// The agent's node.
        node: String,
    },
}

/// A question to a plugin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuestionView {
    /// The strategy that was asked.
    pub strategy: String,
    /// Generation of the DnnModel that it was asked for.
    pub generation: i64,
    /// What came; `None` while it is awaited.
    pub answer: Option<AnswerView>,
}

/// The answer of a plugin, or what was found in its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AnswerView {
    /// Seconds that it took.
    pub seconds: f64,
    /// The checked answer, or why there is none at all.
    pub solution: Result<Arc<Solution>, String>,
    /// What went wrong with the plugin.
    pub remark: Option<Remark>,
}

/// What people should know of a plugin's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remark {
    /// Kind of the fault, the same whatever the numbers are.
    pub kind: &'static str,
    /// A built-in strategy answered in its place.
    pub fell_back: bool,
    /// What happened.
    pub text: String,
}

impl Snapshot {
    /// Whether the agent on `node` is connected.
    pub(crate) fn is_alive(&self, node: &str) -> bool {
        self.live.get(node).is_some_and(|n| n.alive)
    }

    /// Where the agent on `node` is reached: what it says now, else what its
    /// ComputeNode remembers. `None` before it ever came.
    pub(crate) fn address(&self, node: &str) -> Option<&str> {
        let live = self.live.get(node).map(|n| n.address.as_str());
        let kept = || {
            Some(
                self.compute_nodes
                    .get(node)?
                    .status
                    .as_ref()?
                    .address
                    .as_str(),
            )
        };
        live.filter(|a| !a.is_empty())
            .or_else(|| kept().filter(|a| !a.is_empty()))
    }

    /// `node` with its address.
    pub(crate) fn hop(&self, node: &str) -> Option<Hop> {
        Some(Hop {
            node: node.to_owned(),
            address: self.address(node)?.to_owned(),
        })
    }

    /// Seconds since `then`, never negative.
    pub(crate) fn seconds_since(&self, then: Timestamp) -> f64 {
        self.now.duration_since(then).as_secs_f64().max(0.0)
    }

    /// Agents find a restarted operator within this time; until then a missing
    /// one is not lost.
    pub(crate) fn is_starting(&self) -> bool {
        self.seconds_since(self.started) < START_GRACE_SECONDS
    }
}

/// Time that agents have to come back after the operator's restart.
const START_GRACE_SECONDS: f64 = 12.0;
