use crate::state::links::LinkView;
use lamina_crds::Hop;
use lamina_crds::dnn_model::Samples;
use lamina_proto::control::{Hello, SourceSecret};
use std::time::Duration;

/// The state of one agent.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeState {
    /// Where other agents reach it, `10.0.0.7:8001`.
    pub address: String,
    /// Version of the agent.
    pub version: String,
    /// Heartbeats arrive.
    pub alive: bool,
    /// Time since its last message.
    pub last_seen: Duration,
    /// Time since it was found lost; `None` while it is alive.
    pub since_lost: Option<Duration>,
    /// Share of its CPU quota in use, 0 to 1.
    pub cpu_load: f64,
    /// Memory that it may still take; `None` before its first heartbeat.
    pub memory_free_bytes: Option<u64>,
    /// Requests inside it.
    pub in_flight: u32,
    /// It is stopping, and accepts requests for a while.
    pub leaving: bool,
}

/// The estimate of the link from one host to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkEstimate {
    /// Round trip of an empty message in seconds; `None` before the first sample.
    pub rtt_seconds: Option<f64>,
    /// Bytes per second in this direction; `None` before the first sample.
    pub bytes_per_second: Option<f64>,
    /// Confidence in `bytes_per_second`, 0 to 1: grows with samples, fades with age.
    pub confidence: f64,
    /// Relative noise of the bandwidth samples: 0.2 is ±20 %.
    pub noise: f64,
    /// Time since the newest sample of the bandwidth; `None` before the first.
    pub bandwidth_age: Option<Duration>,
    /// False after the peer left several measurements in a row unanswered; the figures are old.
    pub reachable: bool,
    /// Some of it was not measured but estimated from network coordinates and the hosts' other
    /// links.
    pub estimated: bool,
}

impl From<LinkEstimate> for LinkView {
    fn from(link: LinkEstimate) -> Self {
        let age = link.bandwidth_age;
        Self {
            rtt_seconds: link.rtt_seconds,
            bytes_per_second: link.bytes_per_second,
            noise: link.noise,
            bandwidth_age_seconds: age.map_or(f64::INFINITY, |age| age.as_secs_f64()),
            reachable: link.reachable,
            estimated: link.estimated,
        }
    }
}

/// A host to which an agent measures its link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbePeer {
    /// The host.
    pub node: String,
    /// Where its agent listens, `10.0.0.7:8001`.
    pub address: String,
    /// Time between two round trips; 0 leaves it to the agent.
    pub every_ms: u32,
}

impl From<Hop> for ProbePeer {
    fn from(hop: Hop) -> Self {
        Self {
            node: hop.node,
            address: hop.address,
            every_ms: 0,
        }
    }
}

/// Live times of a segment over the last minute.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentTimingEstimate {
    /// Place in the path, from 0.
    pub segment: u32,
    /// The host that reported it.
    pub node: String,
    /// Runs behind the figures.
    pub count: u64,
    /// Median time inside torch in seconds.
    pub compute_p50_seconds: f64,
    /// Median time inside torch of one row, in seconds.
    pub row_p50_seconds: f64,
    /// Median time of waiting for a compute thread in seconds.
    pub queue_p50_seconds: f64,
    /// Time since the newest report.
    pub age: Duration,
}

/// Requests answered at the entry of a placement over the last minute, by the
/// revision that answered last.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestEstimate {
    /// That revision.
    pub revision: i64,
    /// Median latency in seconds.
    pub p50_seconds: f64,
    /// 95th percentile of the latency in seconds.
    pub p95_seconds: f64,
    /// Requests answered per second.
    pub answered_per_second: f64,
    /// Requests answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Retried on another route; not lost.
    pub retried: u64,
    /// Rows that left at each exit; empty if the model has none.
    pub rows_by_exit: Vec<u64>,
    /// Mean rows per request, at least 1.
    pub rows: f64,
    /// Time since the newest report.
    pub age: Duration,
}

/// A model to be prepared on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct PrepareRequest {
    /// Names the job.
    pub job: String,
    /// The node whose agent does it.
    pub node: String,
    /// Where the source is.
    pub uri: String,
    /// 64 hexadecimal digits; empty if any file is accepted.
    pub sha256: String,
    /// JSON list of `lamina_model::Declared`.
    pub inputs_json: String,
    /// The credentials for the source.
    pub secret: Option<SourceSecret>,
    /// Where the user's own requests are.
    pub samples: Option<Samples>,
}

/// The progress of a prepare job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrepareState {
    /// It is running.
    Running {
        /// On this node.
        node: String,
        /// Fetching, Slicing, Checking, Profiling or Storing; empty before the agent's first
        /// report.
        step: String,
        /// Units done.
        done: u64,
        /// Units in all; 0 if unknown.
        total: u64,
        /// The units are bytes.
        bytes: bool,
    },
    /// The manifest, its blocks and its probe are in the store.
    Done {
        /// On this node.
        node: String,
        /// Digest of the manifest, as the agent wrote it.
        manifest_digest: String,
    },
    /// It ended without a result.
    Failed {
        /// On this node.
        node: String,
        /// FetchFailed, ChecksumMismatch, InvalidModel, InputMismatch or
        /// PrepareFailed.
        reason: String,
        /// What happened and what to do.
        message: String,
        /// Another try may succeed without a change of the spec.
        retryable: bool,
    },
    /// The node was lost before it was done. Start it on another one.
    Lost {
        /// That node.
        node: String,
    },
}

/// Something changed that decisions may depend on.
#[derive(Debug, Clone, PartialEq)]
pub enum WorldEvent {
    /// An agent opened its first session.
    NodeJoined {
        /// The node.
        node: String,
    },
    /// An agent went silent.
    NodeLost {
        /// The node.
        node: String,
    },
    /// An agent that was lost is back.
    NodeRecovered {
        /// The node.
        node: String,
    },
    /// A link was measured for the first time.
    LinkMeasured {
        /// Sending host.
        from: String,
        /// Receiving host.
        to: String,
        /// The first estimate.
        estimate: LinkEstimate,
    },
    /// A link changed by more than its noise since it was last published.
    LinkChanged {
        /// Sending host.
        from: String,
        /// Receiving host.
        to: String,
        /// As last published.
        before: LinkEstimate,
        /// As it is now.
        after: LinkEstimate,
    },
    /// A prepare job advanced, ended, or lost its node.
    PrepareChanged {
        /// The job.
        job: String,
    },
}

/// The request cannot be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum WorldError {
    #[error("agent of node `{0}` is not connected; choose another node or wait for it")]
    NotConnected(String),
    #[error("job `{job}` runs on node `{node}` already; forget it first")]
    Running { job: String, node: String },
}

/// Identity of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) version: String,
    pub(crate) address: String,
    /// When it started, by its host's clock; 0 if it does not say.
    pub(crate) started_unix_ms: u64,
}

impl From<Hello> for Identity {
    fn from(hello: Hello) -> Self {
        Self {
            node: hello.node,
            version: hello.version,
            address: hello.address,
            started_unix_ms: hello.started_unix_ms,
        }
    }
}
