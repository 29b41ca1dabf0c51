//! The world as plain data at one moment: everything that decisions depend on.

use super::ids::{JobId, ObjectId, PlacementKey};
use super::links::{LinkChange, Links};
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
    /// The time for decisions.
    pub now: Moment,
    /// The time to display.
    pub wall: Timestamp,
    /// When this process began to lead: shortly after that, silence means nothing.
    pub started: Moment,
    /// Node on which this operator runs.
    pub operator_node: String,
    /// Where agents reach this operator, `10.0.0.3:9000`.
    pub endpoint: String,
    /// Every DnnModel.
    pub models: Vec<Arc<DnnModel>>,
    /// Names and namespaces of objects that cannot be read, with the error.
    pub unreadable: BTreeMap<(String, String), Unreadable>,
    /// Every Placement.
    pub placements: Vec<Arc<Placement>>,
    /// ComputeNodes by name.
    pub compute_nodes: BTreeMap<String, Arc<ComputeNode>>,
    /// Kubernetes Nodes by name, and their stand-ins for hosts that joined without one.
    pub nodes: BTreeMap<String, NodeView>,
    /// Hosts that are not Nodes, whether or not a machine has joined as them.
    pub joins: BTreeSet<String>,
    /// Nodes on which an agent pod runs or starts, and hosts that joined.
    pub agents: BTreeSet<String>,
    /// Addresses of the agents' pods from Kubernetes, by node.
    pub agent_ips: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What agents report over their sessions, by node.
    pub live: BTreeMap<String, LiveNode>,
    /// Directed links.
    pub links: Links,
    /// Those that changed since the last look.
    pub changed_links: Vec<LinkChange>,
    /// Compute times of live requests by placement UID, revision and segment.
    pub timings: BTreeMap<(String, i64, u32), RunTimes>,
    /// What entries report about their requests, by placement UID.
    pub requests: BTreeMap<String, RequestView>,
    /// Rows that left at each exit during the last minute, by placement UID.
    pub exit_rows: BTreeMap<String, Vec<u64>>,
    /// Manifests by digest, if every block is in the store.
    pub manifests: BTreeMap<String, Arc<Manifest>>,
    /// Sizes of those manifests.
    pub manifest_bytes: BTreeMap<String, u64>,
    /// Digests of manifests with blobs that are being recovered from agents.
    pub recovering: BTreeSet<String>,
    /// Prepare jobs by id.
    pub prepares: BTreeMap<JobId, PrepareView>,
    /// Names that select a plugin as a strategy.
    pub plugins: BTreeSet<String>,
    /// Highest share of a host's memory for the models of one namespace, in `0..=1`.
    pub memory_share: f64,
    /// Blobs in the caches of hosts.
    pub held: Held,
    /// Questions to strategies.
    pub questions: BTreeMap<PlacementKey, QuestionView>,
}

/// Blobs in the caches of hosts, as reported. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(pub Arc<BTreeMap<String, Arc<HashSet<Digest>>>>);

impl Held {
    /// The cache of `node`, if it is known.
    pub(crate) fn of(&self, node: &str) -> Option<&HashSet<Digest>> {
        self.0.get(node).map(|held| &**held)
    }

    /// Whether `blob` is in the cache of `node`.
    pub(crate) fn holds(&self, node: &str, blob: &Digest) -> bool {
        self.of(node).is_some_and(|held| held.contains(blob))
    }
}

/// A Kubernetes Node.
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

    /// Processors reported by its kubelet, rounded up; `None` if it reports no number.
    pub(crate) fn processors(&self) -> Option<f64> {
        let capacity = self.0.status.as_ref()?.capacity.as_ref()?;
        let text = &capacity.get("cpu")?.0;
        let count: f64 = match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse::<f64>().ok()? / 1e3,
            None => text.parse().ok()?,
        };
        (count.is_finite() && count > 0.0).then(|| count.ceil())
    }

    /// Nothing new may be scheduled there.
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

/// What an agent reports over its session.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct LiveNode {
    /// Where other agents reach it, `10.0.0.7:8001`.
    pub address: String,
    /// Its heartbeats arrive.
    pub alive: bool,
    /// Memory that it may still take, in bytes.
    pub memory_free_bytes: u64,
    /// It is stopping, and accepts requests for a while.
    pub leaving: bool,
    /// When its last message arrived.
    pub last_seen: Option<Timestamp>,
}

/// Median compute times of live requests on one segment, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RunTimes {
    /// Of a request, whatever its batch.
    pub request_seconds: f64,
    /// Of one row, as in profiles.
    pub row_seconds: f64,
}

/// Requests at the entry of a Placement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RequestView {
    /// The revision that answered them.
    pub revision: i64,
    /// Number answered by this revision.
    pub answered: u64,
    /// Requests answered per second.
    pub answered_per_second: f64,
    /// Median latency in seconds.
    pub latency_p50_seconds: f64,
    /// 95th percentile of the latency in seconds.
    pub latency_p95_seconds: f64,
    /// Mean rows per request, at least 1.
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
        /// Parts in all; 0 if unknown.
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
    /// The answer; `None` while it is awaited.
    pub answer: Option<Arc<Answer>>,
    /// The answer to a question ahead.
    pub ahead: Option<Arc<Ahead>>,
}

/// Blocks that hosts would lack in the scenarios, as ordinals of the manifest by host.
pub(crate) type Ahead = BTreeMap<String, BTreeSet<usize>>;

/// What a question is about: an answer to another question is useless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    /// The strategy.
    pub strategy: String,
    /// Generation of the DnnModel whose wish it is.
    pub generation: i64,
    /// Digest of the manifest that is placed.
    pub manifest: String,
    /// Revision of the present plan; 0 if there is none.
    pub revision: i64,
}

/// Why a strategy is asked, the most urgent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Nothing should move: what would, if something failed?
    Ahead,
    /// Time passed.
    Period,
    /// Something changed: another plan may be better.
    Change,
    /// The serving plan must be left.
    Leave,
    /// Nothing serves.
    First,
}

/// A strategy's answer, judged by the checker, and the present plan judged by the same problem.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Seconds that the strategy took.
    pub seconds: f64,
    /// The problem as given to the strategy.
    pub problem: Arc<Problem>,
    /// The checked answer, or why there is none: a reason and its message.
    pub solution: Result<Arc<Solution>, (&'static str, String)>,
    /// The fault of a plugin.
    pub remark: Option<Remark>,
    /// The present plan in this problem.
    pub standing: Option<Standing>,
}

/// What the present plan is worth now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Standing {
    /// Its latency and times, whatever the limits; `None` if a link of it is unknown.
    pub metrics: Option<Metrics>,
    /// The constraints that it violates.
    pub violations: Vec<Violation>,
}

/// A plugin's fault, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remark {
    /// Kind of the fault, independent of its numbers.
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

    /// Whether the agent on `node` is stopping.
    pub(crate) fn is_ending(&self, node: &str) -> bool {
        self.live.get(node).is_some_and(|n| n.alive && n.leaving)
    }

    /// The address of the agent on `node`: the one it reports, which was checked on arrival, else
    /// the one in its ComputeNode, if that is an address of its pod. `None` before it ever
    /// connected.
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

    /// Whether the current version of the model cannot be read.
    pub(crate) fn is_unreadable(&self, model: &ObjectId) -> bool {
        // There are rarely any.
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

    /// Seconds since `then` by the wall clock, never negative: for times from before this process.
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

    /// The route of a Placement in the spec of `node`.
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
