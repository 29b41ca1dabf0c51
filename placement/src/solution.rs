//! The answer: where blocks run, the cost by the checker, and the gap to the optimum.

use crate::objective::{Criterion, Objective};
use serde::{Deserialize, Serialize};

/// Consecutive blocks on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    /// The node's name.
    pub node: String,
    /// Ordinals of its blocks, in execution order.
    pub blocks: Vec<usize>,
}

/// The placement of one workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Placement {
    /// The workload's name.
    pub workload: String,
    /// Segments in the order in which a request meets them.
    pub segments: Vec<Segment>,
    /// The threshold chosen for each exit.
    pub thresholds: Vec<f64>,
}

impl Placement {
    /// The path in one line: `cam-1[0-4]→edge-2[5-14]→cloud-0[15]`.
    pub fn path(&self) -> String {
        let parts: Vec<String> = self
            .segments
            .iter()
            .map(|s| match (s.blocks.first(), s.blocks.last()) {
                (Some(a), Some(b)) if a != b => format!("{}[{a}-{b}]", s.node),
                (Some(a), _) => format!("{}[{a}]", s.node),
                _ => format!("{}[]", s.node),
            })
            .collect();
        parts.join("→")
    }
}

/// What is known about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// No placement is better; proved.
    Optimal,
    /// It respects every constraint; a better one may exist.
    Feasible,
    /// No placement respects every constraint; proved.
    Infeasible,
    /// None was found, and none was excluded, before the limit.
    Unknown,
}

/// The proof that comes with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// What is known.
    pub status: Status,
    /// Lower bound of the objective. `None` if nothing was proved.
    pub lower_bound: Option<f64>,
    /// `(objective - lower_bound) / objective`, in `0..=1`; `None` without an
    /// answer or a bound.
    pub gap: Option<f64>,
}

impl Certificate {
    /// Nothing is known.
    pub(crate) const UNKNOWN: Self = Self {
        status: Status::Unknown,
        lower_bound: None,
        gap: None,
    };

    /// It was proved that no placement exists.
    pub(crate) const INFEASIBLE: Self = Self {
        status: Status::Infeasible,
        lower_bound: None,
        gap: None,
    };

    /// An answer with the given objective value and its proved bound. A bound within `tolerance`
    /// (relative) of the value is a proof.
    pub fn of(objective: f64, lower_bound: Option<f64>, tolerance: f64) -> Self {
        let bound = lower_bound
            .filter(|b| b.is_finite())
            .map(|b| b.clamp(0.0, objective.max(0.0)));
        let gap = bound.map(|b| {
            if objective > 0.0 {
                (objective - b) / objective
            } else {
                0.0
            }
        });
        let status = match gap {
            Some(g) if g <= tolerance => Status::Optimal,
            _ => Status::Feasible,
        };
        Self {
            status,
            lower_bound: bound,
            gap,
        }
    }
}

/// Effort spent, for reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// The pass that settled the answer: `viterbi`, `lagrangian`, `halves`,
    /// `labels`, …
    pub stage: String,
    /// Units of work (labels, relaxations, columns) that count against
    /// [`crate::SolveOptions::work_limit`].
    pub work: u64,
    /// Nodes left in the last pass.
    pub nodes_left: usize,
}

/// A strategy's answer, before it is checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// One placement per workload, in the problem's order; empty if none was found.
    pub placements: Vec<Placement>,
    /// The objective it claims; the checker decides.
    pub objective: Option<f64>,
    /// The proof it claims.
    pub certificate: Certificate,
    /// Effort spent.
    pub stats: Stats,
}

impl Answer {
    /// No placement, for the reason in the certificate.
    pub const fn none(certificate: Certificate, stats: Stats) -> Self {
        Self {
            placements: Vec::new(),
            objective: None,
            certificate,
            stats,
        }
    }
}

/// Expected times of one segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SegmentMetrics {
    /// The node's name.
    pub node: String,
    /// Its blocks.
    pub blocks: Vec<usize>,
    /// Probability that a request reaches it.
    pub reach: f64,
    /// Expected compute seconds per request, including cut penalty and load.
    pub compute_seconds: f64,
    /// Expected joules per request.
    #[serde(default)]
    pub energy_joules: f64,
    /// Expected money per request.
    #[serde(default)]
    pub money: f64,
    /// Slice bytes.
    pub slice_bytes: u64,
}

/// Expected times of one crossing between nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CrossingMetrics {
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// The first block after the cut; 0 is the input leaving the entry.
    pub before_block: usize,
    /// Probability that a request crosses.
    pub reach: f64,
    /// Bytes of one request on the wire.
    pub bytes: u64,
    /// Expected seconds of latency there and back.
    pub round_trip_seconds: f64,
    /// Expected seconds of sending the request and its reply.
    pub transfer_seconds: f64,
    /// Expected joules per request, reply included.
    #[serde(default)]
    pub energy_joules: f64,
    /// Expected money per request, reply included.
    #[serde(default)]
    pub money: f64,
}

/// Metrics of one workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadMetrics {
    /// The workload's name.
    pub workload: String,
    /// Expected latency in seconds: compute, round trips and transfers.
    pub latency_seconds: f64,
    /// Its compute part.
    pub compute_seconds: f64,
    /// Its network part.
    pub network_seconds: f64,
    /// Latency in seconds of a request that takes no exit.
    pub longest_seconds: f64,
    /// Expected accuracy, if known.
    pub accuracy: Option<f64>,
    /// Slice bytes that move to nodes which do not hold them.
    pub moved_bytes: u64,
    /// The charge for moving them, in objective seconds.
    pub move_seconds: f64,
    /// Expected joules per request.
    #[serde(default)]
    pub energy_joules: f64,
    /// Expected money per request.
    #[serde(default)]
    pub money: f64,
    /// Per segment.
    pub segments: Vec<SegmentMetrics>,
    /// Per crossing.
    pub crossings: Vec<CrossingMetrics>,
}

/// Metrics of one node; nodes without blocks are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMetrics {
    /// The node's name.
    pub node: String,
    /// Bytes held once the switch is over.
    pub memory_bytes: u64,
    /// Most bytes held during the switch.
    pub transition_bytes: u64,
    /// Utilisation at the expected rates, including the load of others.
    pub utilisation: f64,
    /// Seconds of its work per request of the mix, divided by its free share.
    pub stage_seconds: f64,
}

/// Metrics of one directed link; unused ones are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkMetrics {
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// Share of the bandwidth used at the expected rates.
    pub utilisation: f64,
    /// Seconds of sending per request of the mix, divided by the allowed share.
    pub stage_seconds: f64,
}

/// The node or link that limits the rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bottleneck {
    /// `edge-1` or `cam-1→edge-1`.
    pub place: String,
    /// Seconds per request of the mix; its reciprocal is the highest rate.
    pub seconds: f64,
}

/// All of the checker's metrics of a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// The objective's value, in its unit: seconds, joules, money, a share, or a weighted sum of
    /// them.
    pub objective: f64,
    /// Weighted sum of expected latencies in seconds.
    pub latency_seconds: f64,
    /// Weighted sum of the latencies of requests that take no exit, in seconds.
    #[serde(default)]
    pub tail_seconds: f64,
    /// Weighted sum of the charges for moving blocks, in objective seconds.
    #[serde(default)]
    pub move_seconds: f64,
    /// Expected joules per request of the mix.
    #[serde(default)]
    pub energy_joules: f64,
    /// Expected money per request of the mix.
    #[serde(default)]
    pub money: f64,
    /// Highest utilisation of a node in use.
    #[serde(default)]
    pub utilisation: f64,
    /// Highest share of its free compute that a node in use spends.
    #[serde(default)]
    pub proportional_utilisation: f64,
    /// The slowest stage; `None` if nothing takes time.
    pub bottleneck: Option<Bottleneck>,
    /// Per workload, in the problem's order.
    pub workloads: Vec<WorkloadMetrics>,
    /// Per node in use.
    pub nodes: Vec<NodeMetrics>,
    /// Per link in use.
    pub links: Vec<LinkMetrics>,
}

impl Metrics {
    /// The value of one criterion, in its unit.
    pub fn criterion(&self, criterion: Criterion) -> f64 {
        match criterion {
            Criterion::Latency => self.latency_seconds + self.move_seconds,
            Criterion::TailLatency => self.tail_seconds + self.move_seconds,
            Criterion::Throughput => self.bottleneck.as_ref().map_or(0.0, |b| b.seconds),
            Criterion::Energy => self.energy_joules,
            Criterion::Fairness => self.utilisation,
            Criterion::ProportionalFairness => self.proportional_utilisation,
            Criterion::Money => self.money,
        }
    }

    /// The objective in service, without the charge for moving: comparable between the current and
    /// a new placement.
    pub fn goal(&self, objective: &Objective) -> f64 {
        let term = |criterion| match criterion {
            Criterion::Latency => self.latency_seconds,
            Criterion::TailLatency => self.tail_seconds,
            other => self.criterion(other),
        };
        let terms = objective.terms();
        terms.iter().map(|t| t.weight * term(t.criterion)).sum()
    }
}

/// A checked answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Solution {
    /// The strategy that gave it.
    pub strategy: String,
    /// One placement per workload, in the problem's order; empty if none was found.
    pub placements: Vec<Placement>,
    /// The checker's metrics; `None` exactly if `placements` is empty.
    pub metrics: Option<Metrics>,
    /// The proof.
    pub certificate: Certificate,
    /// Effort spent.
    pub stats: Stats,
}
