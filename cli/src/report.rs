//! The results of `plan`, as one structure: tables and `--json` print the same. docs/plan.md
//! documents the JSON; fields are added, never renamed.

use lamina_placement::explain::Explanation;
use lamina_placement::{Metrics, Objective, Placement, Problem, Solution, Status};
use serde::Serialize;
use std::collections::BTreeMap;

/// Version of the JSON.
pub(crate) const API_VERSION: &str = "plan.lamina.dev/v1";

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Version of the JSON.
    pub api_version: &'static str,
    /// The question.
    pub question: Asked,
    /// Whether a placement was found.
    pub outcome: Outcome,
    /// Every strategy that answered, the best first.
    pub strategies: Vec<Row>,
    /// Every strategy that did not.
    pub skipped: Vec<Skipped>,
    /// A summary of the best answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The encodings between nodes on the best path, if fewer bits were requested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub crossings: Vec<Sent>,
    /// Why there is no placement, if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// The explanation of the best answer, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// The changed conditions, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what_if: Option<WhatIf>,
    /// The best placement by bandwidth, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<LinkRegions>,
    /// Whether the user interrupted it.
    pub cancelled: bool,
}

/// A transfer from one node to the next.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// From this node.
    pub from: String,
    /// To this one.
    pub to: String,
    /// The encoding; absent if values are sent unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<&'static str>,
    /// The error of the answers, relative to their largest magnitude.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Bytes of one request.
    pub bytes: u64,
    /// Bytes without encoding.
    pub raw_bytes: u64,
    /// Why values are sent unchanged.
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

/// The question.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// The models.
    pub workloads: Vec<AskedWorkload>,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of directed links.
    pub links: usize,
    /// What is minimized.
    pub objective: Objective,
}

/// One model of the question.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedWorkload {
    /// Its name.
    pub name: String,
    /// Where requests arrive.
    pub entry: String,
    /// Number of blocks.
    pub blocks: usize,
    /// Bytes of all its slices together.
    pub slice_bytes: u64,
    /// Requests per second; 0 if not given.
    pub rate_per_second: f64,
    /// The limit on its expected latency in seconds.
    pub latency_limit_seconds: Option<f64>,
    /// Blocks after which requests may leave.
    pub exits_after: Vec<usize>,
}

impl Asked {
    /// The summary of a problem.
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
    /// Run time in seconds.
    pub solve_seconds: f64,
    /// Its paths, one per workload, for people.
    pub paths: Vec<String>,
    /// Requests per second that the slowest node or link sustains; `None` if there is no placement
    /// or nothing takes time.
    pub throughput_per_second: Option<f64>,
    /// The checked answer.
    #[serde(flatten)]
    pub solution: Solution,
}

impl Row {
    /// An answer and its run time.
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

    /// The objective, if there is a placement.
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

/// The best answer, compared with the best that does not split.
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
    /// The best placement of the whole model on one node, if one is allowed.
    pub whole: Option<Whole>,
    /// If none is: the node closest to taking it, and the obstacle.
    pub why_not_whole: Option<NotWhole>,
    /// The whole model's objective divided by the best one's: above 1, splitting pays.
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
    /// The obstacle.
    pub reason: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// As given, `link.edge-1:cloud-1.bandwidth=5Mbit`.
    pub change: String,
    /// The old value, for people.
    pub before: String,
    /// The new value.
    pub after: String,
}

/// Results under changed conditions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WhatIf {
    /// The changes, all made together.
    pub changes: Vec<Change>,
    /// Every strategy with an answer before or after the change, in the order of the latter.
    pub strategies: Vec<Moved>,
    /// Why there is no placement under the new conditions, if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// One strategy before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// The strategy.
    pub strategy: String,
    /// Its objective before the change.
    pub before: Option<f64>,
    /// The objective of that placement after the change, without moves.
    pub kept: Option<f64>,
    /// Why it cannot be kept, if so.
    pub why_not_kept: Option<String>,
    /// Its objective after the change, with its new placement.
    pub after: Option<f64>,
    /// `kept` divided by `after`: above 1, moving pays.
    pub gain: Option<f64>,
    /// Whether the new placement is the best; proved.
    pub proved: bool,
    /// Paths before.
    pub paths_before: Vec<String>,
    /// Paths after.
    pub paths_after: Vec<String>,
}

/// The best placement by bandwidth of one link.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRegions {
    /// `cam-1:edge-1`.
    pub link: String,
    /// Its current bandwidth, in bytes per second.
    pub bytes_per_second: f64,
    /// From the lowest bandwidth to the highest.
    pub regions: Vec<LinkRegion>,
    /// Why there are none, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A range of bandwidth with one best placement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRegion {
    /// From this many bytes per second.
    pub from_bytes_per_second: f64,
    /// To this many.
    pub to_bytes_per_second: f64,
    /// The paths; empty if nothing can serve.
    pub paths: Vec<String>,
    /// Objective seconds at both ends, the slower link first.
    pub seconds: Option<[f64; 2]>,
}
