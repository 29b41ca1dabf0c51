//! What `plan` found out, as one structure: tables and `--json` print the same.
//! docs/plan.md documents the JSON; fields are added, never renamed.

use lamina_placement::explain::Explanation;
use lamina_placement::{Metrics, Objective, Placement, Problem, Solution, Status};
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of the JSON.
pub(crate) const API_VERSION: &str = "plan.lamina.dev/v1";

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of the JSON.
    pub api_version: &'static str,
    /// What was asked.
    pub question: Asked,
    /// Whether a placement was found.
    pub outcome: Outcome,
    /// Every strategy that answered, the best first.
    pub strategies: Vec<Row>,
    /// Every strategy that did not.
    pub skipped: Vec<Skipped>,
    /// The best answer in a sentence's worth of figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// How values go from node to node on the best path, where fewer bits were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub crossings: Vec<Sent>,
    /// Why there is no placement, where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Why the best answer is as it is, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// The changed world, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what_if: Option<WhatIf>,
    /// Which placement is best at which bandwidth, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<LinkRegions>,
    /// Whether it was cut short by the user.
    pub cancelled: bool,
}

/// What one node sends to the next.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// From this node.
    pub from: String,
    /// To this one.
    pub to: String,
    /// In how few bits; absent where values go as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<&'static str>,
    /// What that changes of answers, as a share of their largest magnitude.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Bytes of one request.
    pub bytes: u64,
    /// The same as its values are.
    pub raw_bytes: u64,
    /// Why values go as they are.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Whether a placement was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// At least one.
    Found,
    /// There is none; proved.
    Infeasible,
    /// None was found in the time.
    Unknown,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The models.
    pub workloads: Vec<AskedWorkload>,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of directed links.
    pub links: usize,
    /// What is made small.
    pub objective: Objective,
}

/// One model as it was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedWorkload {
    /// Its name.
    pub name: String,
    /// Where requests arise.
    pub entry: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Bytes of all its slices together.
    pub slice_bytes: u64,
    /// Requests per second; 0 where none was given.
    pub rate_per_second: f64,
    /// The limit on its expected latency in seconds.
    pub latency_limit_seconds: Option<f64>,
    /// Blocks behind which requests may leave.
    pub exits_after: Vec<usize>,
}

impl Asked {
    /// The short form of a problem.
    pub fn of(problem: &Problem) -> Self {
        let workloads = problem.workloads.iter().map(|w| AskedWorkload {
            name: w.name.clone(),
            entry: w.entry.clone(),
            blocks: w.blocks.len(),
            slice_bytes: w
                .blocks
                .iter()
                .map(|b| b.slice_bytes)
                .fold(0, u64::saturating_add),
            rate_per_second: w.rate_per_second,
            latency_limit_seconds: w.constraints.latency_limit_seconds,
            exits_after: w.exits.iter().map(|e| e.after_block).collect(),
        });
        Self {
            workloads: workloads.collect(),
            nodes: problem.nodes.len(),
            links: problem.links.values().map(BTreeMap::len).sum(),
            objective: problem.objective.clone(),
        }
    }
}

/// One strategy's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Seconds that it took.
    pub solve_seconds: f64,
    /// Its paths, one per workload, for people.
    pub paths: Vec<String>,
    /// Requests per second that the slowest node or link sustains; `None` where
    /// there is no placement or nothing takes time.
    pub throughput_per_second: Option<f64>,
    /// The checked answer.
    #[serde(flatten)]
    pub solution: Solution,
}

impl Row {
    /// An answer and the time that it took.
    pub(crate) fn new(solution: Solution, solve_seconds: f64) -> Self {
        let bottleneck = |m: &Metrics| m.bottleneck.as_ref().map(|b| b.seconds);
        let seconds = solution.metrics.as_ref().and_then(bottleneck);
        Self {
            solve_seconds,
            paths: solution.placements.iter().map(Placement::path).collect(),
            throughput_per_second: seconds.filter(|s| *s > 0.0).map(f64::recip),
            solution,
        }
    }

    /// The objective, where there is a placement.
    pub fn objective(&self) -> Option<f64> {
        self.solution.metrics.as_ref().map(|m| m.objective)
    }

    /// Whether no placement is better; proved.
    pub(crate) fn is_optimal(&self) -> bool {
        self.solution.certificate.status == Status::Optimal
    }
}

/// A strategy without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// Its name.
    pub strategy: String,
    /// Why.
    pub reason: String,
}

/// The best answer, beside the best that does not split.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The strategy that gave it.
    pub strategy: String,
    /// Nodes that compute.
    pub nodes: Vec<String>,
    /// Whether any model is split over several of them.
    pub split: bool,
    /// Whether no placement is better; proved.
    pub proved: bool,
    /// The best placement of the whole model on one node, where one is allowed.
    pub whole: Option<Whole>,
    /// Where none is: the node that is nearest to taking it, and what stands in
    /// the way.
    pub why_not_whole: Option<NotWhole>,
    /// The whole model's objective over the best one's: above 1, splitting pays.
    pub gain: Option<f64>,
}

/// A whole model on one node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Whole {
    /// The node.
    pub node: String,
    /// Its objective.
    pub objective: f64,
}

/// A node that cannot take the whole model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotWhole {
    /// The node.
    pub node: String,
    /// What stands in the way.
    pub reason: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// As it was asked, `link.edge-1:cloud-1.bandwidth=5Mbit`.
    pub change: String,
    /// What it was before, for people.
    pub before: String,
    /// What it is after.
    pub after: String,
}

/// The changed world.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    /// The changes, all made together.
    pub changes: Vec<Change>,
    /// Every strategy that answers in both worlds or in one, in the order of the
    /// changed one.
    pub strategies: Vec<Moved>,
    /// Why there is no placement in the changed world, where there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// One strategy in both worlds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// The strategy.
    pub strategy: String,
    /// Its objective before the change.
    pub before: Option<f64>,
    /// The objective of that placement after the change, nothing moved.
    pub kept: Option<f64>,
    /// Why it cannot be kept, where it cannot.
    pub why_not_kept: Option<String>,
    /// Its objective after the change, with its new placement.
    pub after: Option<f64>,
    /// `kept` over `after`: above 1, moving pays.
    pub gain: Option<f64>,
    /// Whether the new placement is the best; proved.
    pub proved: bool,
    /// Paths before.
    pub paths_before: Vec<String>,
    /// Paths after.
    pub paths_after: Vec<String>,
}

/// Which placement is best at which bandwidth of one link.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRegions {
    /// `cam-1:edge-1`.
    pub link: String,
    /// Its bandwidth now, in bytes per second.
    pub bytes_per_second: f64,
    /// From the lowest bandwidth to the highest.
    pub regions: Vec<LinkRegion>,
    /// Why there are none, where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A range of bandwidth with one best placement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRegion {
    /// From so many bytes per second.
    pub from_bytes_per_second: f64,
    /// To so many.
    pub to_bytes_per_second: f64,
    /// The paths; empty where nothing can serve.
    pub paths: Vec<String>,
    /// Objective seconds at both ends, the slower link first.
    pub seconds: Option<[f64; 2]>,
}
