//! Alternatives: placements without a node, with a cut elsewhere, in one piece, and bounds for
//! using a node at all.

use crate::check::evaluate;
use crate::dense::Dense;
use crate::exact::bounds_through_nodes;
use crate::limits::{Ctx, SolveOptions};
use crate::problem::{Problem, Tier};
use crate::solution::{Placement, Segment, Solution, Status};
use crate::solve::solve_checked;
use crate::strategies::strategy;
use crate::strategies::{threshold_choices, whole_on_tier};
use crate::strategy::Parameters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most alternatives reported.
const MOST: usize = 5;
/// Most choices of thresholds for which bounds are computed.
const MOST_CHOICES: usize = 64;

/// Another placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Alternative {
    /// The difference, in words.
    pub change: String,
    /// Its paths, one per workload.
    pub paths: Vec<String>,
    /// Its objective.
    pub objective: f64,
    /// Whether this is proved to be the best with this change.
    pub proved: bool,
}

/// The whole model on one tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// The tier.
    pub tier: Tier,
    /// Its paths; empty if it is not possible.
    pub paths: Vec<String>,
    /// Its objective, if it is possible.
    pub objective: Option<f64>,
    /// Its weighted expected latency in seconds, if it is possible.
    pub latency_seconds: Option<f64>,
    /// Why it is not possible, if so.
    pub why_not: Option<String>,
}

/// The best placements that differ from the solution.
pub(super) fn alternatives(problem: &Problem, solution: &Solution, ctx: &Ctx) -> Vec<Alternative> {
    let mut found = without_each_node(problem, solution, ctx);
    found.extend(with_cuts_moved(problem, solution));
    found.sort_by(|a, b| a.objective.total_cmp(&b.objective));
    let own: Vec<String> = solution.placements.iter().map(Placement::path).collect();
    let mut seen = BTreeSet::from([own]);
    found.retain(|a| seen.insert(a.paths.clone()));
    found.truncate(MOST);
    found
}

fn without_each_node(problem: &Problem, solution: &Solution, ctx: &Ctx) -> Vec<Alternative> {
    let segments = solution.placements.iter().flat_map(|p| &p.segments);
    let used: BTreeSet<&str> = segments.map(|s| s.node.as_str()).collect();
    let Ok(optimal) = strategy("optimal", &Parameters::new()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (done, name) in used.iter().enumerate() {
        let mut asked = problem.clone();
        for node in asked.nodes.iter_mut().filter(|n| n.name == **name) {
            node.excluded = Some("left out".to_owned());
        }
        let part = ctx.part(1.0 / (used.len() - done) as f64);
        let options = SolveOptions::default();
        let Ok(other) = solve_checked(&asked, optimal.as_ref(), &options, &part) else {
            continue;
        };
        if let Some(metrics) = other.metrics {
            found.push(Alternative {
                change: format!("without {name}"),
                paths: other.placements.iter().map(Placement::path).collect(),
                objective: metrics.objective,
                proved: other.certificate.status == Status::Optimal,
            });
        }
    }
    found
}

/// Each cut one block earlier and later.
fn with_cuts_moved(problem: &Problem, solution: &Solution) -> Vec<Alternative> {
    let mut found = Vec::new();
    for (k, placement) in solution.placements.iter().enumerate() {
        for cut in 1..placement.segments.len() {
            for later in [false, true] {
                let mut all = solution.placements.clone();
                all[k].segments = moved(&placement.segments, cut, later);
                if let Ok(metrics) = evaluate(problem, &all) {
                    let direction = if later { "later" } else { "earlier" };
                    found.push(Alternative {
                        change: format!("{}: cut {cut} a block {direction}", placement.workload),
                        paths: all.iter().map(Placement::path).collect(),
                        objective: metrics.objective,
                        proved: false,
                    });
                }
            }
        }
    }
    found
}

/// Segments with one block moved across the cut; empty ones are removed, and neighbours on one node
/// merged.
fn moved(segments: &[Segment], cut: usize, later: bool) -> Vec<Segment> {
    let mut new = segments.to_vec();
    if later {
        let block = new[cut].blocks.remove(0);
        new[cut - 1].blocks.push(block);
    } else if let Some(block) = new[cut - 1].blocks.pop() {
        new[cut].blocks.insert(0, block);
    }
    let mut merged: Vec<Segment> = Vec::new();
    for segment in new.into_iter().filter(|s| !s.blocks.is_empty()) {
        match merged.last_mut() {
            Some(last) if last.node == segment.node => last.blocks.extend(segment.blocks),
            _ => merged.push(segment),
        }
    }
    merged
}

/// The whole model on the best node of each tier.
pub(super) fn baselines(problem: &Problem, ctx: &Ctx) -> Vec<Baseline> {
    let tiers: BTreeSet<Tier> = problem.nodes.iter().map(|n| n.tier).collect();
    tiers
        .into_iter()
        .map(|tier| {
            let placements = whole_on_tier(problem, tier, ctx);
            let metrics = evaluate(problem, &placements).ok();
            let why_not = metrics.is_none().then(|| obstacle(problem, tier));
            Baseline {
                tier,
                paths: placements.iter().map(Placement::path).collect(),
                objective: metrics.as_ref().map(|m| m.objective),
                latency_seconds: metrics.as_ref().map(|m| m.latency_seconds),
                why_not,
            }
        })
        .collect()
}

/// The checker's objections to the model on the available node of a tier with most memory,
/// preferably an entry.
fn obstacle(problem: &Problem, tier: Tier) -> String {
    let is_entry = |name: &str| problem.workloads.iter().any(|w| w.entry == name);
    let nodes = problem.nodes.iter().filter(|n| n.tier == tier);
    let best = nodes.max_by_key(|n| (n.excluded.is_none(), n.memory_bytes, is_entry(&n.name)));
    let Some(node) = best else {
        return "no such node".to_owned();
    };
    let placements: Vec<Placement> = problem
        .workloads
        .iter()
        .map(|w| Placement {
            workload: w.name.clone(),
            segments: vec![Segment {
                node: node.name.clone(),
                blocks: (0..w.blocks.len()).collect(),
            }],
            thresholds: w
                .exits
                .iter()
                .filter_map(|e| Some(e.table.first()?.threshold))
                .collect(),
        })
        .collect();
    match evaluate(problem, &placements) {
        Err(violations) => violations
            .first()
            .map_or_else(String::new, ToString::to_string),
        Ok(_) => "not all workloads together".to_owned(),
    }
}

/// For each node, a lower bound on placements with a block there. `None` if the objective is not a
/// sum, or the limits were reached.
pub(super) fn bounds_of_use(problem: &Problem, ctx: &Ctx) -> Option<Vec<f64>> {
    let choices = threshold_choices(problem)?;
    if choices.len() > MOST_CHOICES || problem.objective.criteria().iter().any(|c| c.is_worst()) {
        return None;
    }
    let mut least = vec![f64::INFINITY; problem.nodes.len()];
    for rows in &choices {
        let bounds = bounds_through_nodes(&Dense::new(problem, rows), ctx)?;
        for (least, bound) in least.iter_mut().zip(bounds) {
            *least = least.min(bound);
        }
    }
    Some(least)
}
