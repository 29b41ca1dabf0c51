//! The world as plain data at one moment: everything that deciding looks at.

use super::ids::{JobId, ObjectId, PlacementKey};
use super::links::Links;
use super::listed::Unreadable;
use super::time::Moment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use lamina_crds::compute_node::{Route, RouteStatus, SliceStatus};
use lamina_crds::{ComputeNode, DnnModel, Hop, Placement};
use lamina_model::{Digest, Manifest};
use lamina_placement::{Metrics, Problem, Solution, check::Violation};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Everything that a decision may depend on.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// The moment, to decide by.
    pub now: Moment,
    /// The moment, to show.
    pub wall: Timestamp,
    /// When this process began to lead: for a while after it, silence means nothing.
    pub started: Moment,
    /// Node on which this operator runs.
    pub operator_node: String,
    /// Where agents reach this operator, `10.0.0.3:9000`.
    pub endpoint: String,
    /// Every DnnModel.
    pub models: Vec<Arc<DnnModel>>,
    /// Names and namespaces of objects that cannot be read, with what is wrong.
    pub unreadable: BTreeMap<(String, String), Unreadable>,
    /// Every Placement.
    pub placements: Vec<Arc<Placement>>,
    /// ComputeNodes by name.
    pub compute_nodes: BTreeMap<String, Arc<ComputeNode>>,
    /// Kubernetes Nodes by name, and what stands for one where a host joined without.
    pub nodes: BTreeMap<String, NodeView>,
    /// Hosts that are no Nodes, whether a machine has joined as them or may yet.
    pub joins: BTreeSet<String>,
    /// Nodes on which an agent pod runs or starts, and hosts that joined.
    pub agents: BTreeSet<String>,
    /// Addresses of the agents' pods as Kubernetes has them, by node.
    pub agent_ips: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What agents say of themselves over their sessions, by node.
    pub live: BTreeMap<String, LiveNode>,
    /// Directed links.
    pub links: Links,
    /// Compute times of live requests by placement UID, revision and segment.
    pub timings: BTreeMap<(String, i64, u32), RunTimes>,
    /// What entries say of their requests, by placement UID.
    pub requests: BTreeMap<String, RequestView>,
    /// Rows that left at each exit over the last minute, by placement UID.
    pub exit_rows: BTreeMap<String, Vec<u64>>,
    /// Manifests by digest; those in whose case every block is in the store.
    pub manifests: BTreeMap<String, Arc<Manifest>>,
    /// Sizes of those manifests.
    pub manifest_bytes: BTreeMap<String, u64>,
    /// Digests of manifests of which something is being taken back from agents.
    pub recovering: BTreeSet<String>,
    /// Prepare jobs by id.
    pub prepares: BTreeMap<JobId, PrepareView>,
    /// Names that select a plugin as a strategy.
    pub plugins: BTreeSet<String>,
    /// Share of a host's memory that the models of one namespace hold at most, in `0..=1`.
    pub memory_share: f64,
    /// Blobs in the caches of hosts.
    pub held: Held,
    /// What strategies were asked.
    pub questions: BTreeMap<PlacementKey, QuestionView>,
}

/// Blobs in the caches of hosts, as these say. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(pub Arc<BTreeMap<String, Arc<HashSet<Digest>>>>);

impl Held {
    /// What the cache of `node` holds, where that is known.
    pub(crate) fn of(&self, node: &str) -> Option<&HashSet<Digest>> {
        self.0.get(node).map(|held| &**held)
    }

    /// Whether `blob` is in the cache of `node`.
    pub(crate) fn holds(&self, node: &str, blob: &Digest) -> bool {
        self.of(node).is_some_and(|held| held.contains(blob))
    }
}

/// What matters of a Kubernetes Node.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeView(pub Arc<Node>);

impl NodeView {
    /// Its UID.
    pub(crate) fn uid(&self) -> &str {
        super::ids::uid(&self.0.metadata)
    }

    /// One of its labels.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let labels = self.0.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    }

    /// Processors that its kubelet tells of, a part of one as one; none where it says nothing
    /// that is a number.
    pub(crate) fn processors(&self) -> Option<f64> {
        let capacity = self.0.status.as_ref()?.capacity.as_ref()?;
        let text = &capacity.get("cpu")?.0;
        let count: f64 = match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse::<f64>().ok()? / 1e3,
            None => text.parse().ok()?,
        };
        (count.is_finite() && count > 0.0).then(|| count.ceil())
    }

    /// Nothing new is to be put there.
    pub(crate) fn is_cordoned(&self) -> bool {
        let spec = self.0.spec.as_ref();
        spec.and_then(|s| s.unschedulable).unwrap_or_default()
    }

    /// Whether it carries every label of `selector`.
    pub(crate) fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector
            .iter()
            .all(|(key, value)| self.label(key) == Some(value))
    }
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
    /// It was told to end, and takes requests for a while yet.
    pub leaving: bool,
    /// When its last message arrived.
    pub last_seen: Option<Timestamp>,
}

/// Median compute times of live requests on one segment, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RunTimes {
    /// Of a request, whatever its batch.
    pub request_seconds: f64,
    /// Of one row, as profiles have them.
    pub row_seconds: f64,
}

/// Requests at the entry of a Placement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RequestView {
    /// The revision that answered them.
    pub revision: i64,
    /// Number answered by this revision.
    pub answered: u64,
    /// Requests answered in a second.
    pub answered_per_second: f64,
    /// Median latency in seconds.
    pub latency_p50_seconds: f64,
    /// 95th percentile of the latency in seconds.
    pub latency_p95_seconds: f64,
    /// Mean of the rows of a request, 1 at least.
    pub rows: f64,
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

/// A question to a strategy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct QuestionView {
    /// What was asked.
    pub about: About,
    /// How urgent it was.
    pub need: Need,
    /// What came; `None` while it is awaited.
    pub answer: Option<Arc<Answer>>,
    /// What came of a question ahead.
    pub ahead: Option<Arc<Ahead>>,
}

/// Blocks that hosts would lack if what was supposed came true, as ordinals of the
/// manifest by host.
pub(crate) type Ahead = BTreeMap<String, BTreeSet<usize>>;

/// What a question is about: an answer to another question is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    /// The strategy that was asked.
    pub strategy: String,
    /// Generation of the DnnModel whose wish it is.
    pub generation: i64,
    /// Digest of the manifest whose blocks are placed.
    pub manifest: String,
    /// Revision of the present plan; 0 where there is none.
    pub revision: i64,
}

/// Why a strategy is asked, the most urgent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nothing is to move: what would, if something failed?
    Ahead,
    /// Time passed.
    Period,
    /// Something changed: another plan may be better.
    Change,
    /// What serves must be left.
    Leave,
    /// Nothing serves.
    First,
}

/// What a strategy answered, judged by the checker, and what serves in the same light.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Seconds that the strategy took.
    pub seconds: f64,
    /// The question as it was put to the strategy.
    pub problem: Arc<Problem>,
    /// The checked answer, or why there is none: a reason and its message.
    pub solution: Result<Arc<Solution>, (&'static str, String)>,
    /// What went wrong with a plugin.
    pub remark: Option<Remark>,
    /// The present plan in this problem.
    pub standing: Option<Standing>,
}

/// What the present plan is worth now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    /// Its latency and times, whatever the limits say of it; `None` where a link of
    /// it is not known.
    pub metrics: Option<Metrics>,
    /// What of the problem it breaks.
    pub violations: Vec<Violation>,
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
    /// Whether the host is a Node.
    pub(crate) fn is_node(&self, name: &str) -> bool {
        !self.joins.contains(name)
    }

    /// Whether the agent on `node` is connected.
    pub(crate) fn is_alive(&self, node: &str) -> bool {
        self.live.get(node).is_some_and(|n| n.alive)
    }

    /// Whether the agent on `node` was told to end and has not yet.
    pub(crate) fn is_ending(&self, node: &str) -> bool {
        self.live.get(node).is_some_and(|n| n.alive && n.leaving)
    }

    /// Where the agent on `node` is reached: what it says now, which was checked when it
    /// said so, else what its ComputeNode remembers, if that is an address of its pod.
    /// `None` before it ever came.
    pub(crate) fn address(&self, node: &str) -> Option<&str> {
        let live = self.live.get(node).map(|n| n.address.as_str());
        let known = || Some(self.status(node)?.address.as_str());
        live.filter(|a| !a.is_empty())
            .or_else(|| known().filter(|a| self.is_of_agent(node, a)))
    }

    fn is_of_agent(&self, node: &str, address: &str) -> bool {
        let ips = self.agent_ips.get(node);
        let told = address.parse::<SocketAddr>().ok();
        told.zip(ips)
            .is_some_and(|(told, ips)| ips.contains(&told.ip()))
    }

    /// `node` with its address.
    pub(crate) fn hop(&self, node: &str) -> Option<Hop> {
        Some(Hop {
            node: node.to_owned(),
            address: self.address(node)?.to_owned(),
        })
    }

    /// Whether the model cannot be read as it is now.
    pub(crate) fn is_unreadable(&self, model: &ObjectId) -> bool {
        // Seldom is there any.
        !self.unreadable.is_empty() && {
            let name = (model.namespace.clone(), model.name.clone());
            self.unreadable
                .get(&name)
                .is_some_and(|u| u.uid == model.uid)
        }
    }

    /// Seconds since `then`, never negative.
    pub(crate) fn seconds_since(&self, then: Moment) -> f64 {
        self.now.since(then)
    }

    /// Seconds since `then` as the wall clock has it, never negative: for what an
    /// object says of before this process.
    pub(crate) fn seconds_since_wall(&self, then: Timestamp) -> f64 {
        self.wall.duration_since(then).as_secs_f64().max(0.0)
    }

    /// Agents find a restarted operator within this time; until then a missing
    /// one is not lost.
    pub(crate) fn is_starting(&self) -> bool {
        self.seconds_since(self.started) < START_GRACE_SECONDS
    }

    /// What the agent on `node` last reported.
    fn status(&self, node: &str) -> Option<&lamina_crds::ComputeNodeStatus> {
        self.compute_nodes.get(node)?.status.as_ref()
    }

    /// What the entry reports of a Placement's route.
    pub(crate) fn route_status(&self, entry: &str, placement_uid: &str) -> Option<&RouteStatus> {
        let mut routes = self.status(entry)?.routes.iter();
        routes.find(|r| r.placement_uid == placement_uid)
    }

    /// The route that `node` is told for a Placement.
    pub(crate) fn route_on(&self, node: &str, placement_uid: &str) -> Option<&Route> {
        let mut routes = self.compute_nodes.get(node)?.spec.routes.iter();
        routes.find(|r| r.placement_uid == placement_uid)
    }

    /// What `node` reports of a slice.
    pub(crate) fn slice_status(
        &self,
        node: &str,
        placement_uid: &str,
        revision: i64,
        segment: usize,
    ) -> Option<&SliceStatus> {
        self.status(node)?.slices.iter().find(|s| {
            s.placement_uid == placement_uid
                && s.revision == revision
                && usize::try_from(s.segment).is_ok_and(|i| i == segment)
        })
    }
}

/// Time that agents have to come back after the operator's restart.
const START_GRACE_SECONDS: f64 = 12.0;
