//! Which limit binds, found by dropping each in turn.

use super::explain_infeasible;
use crate::limits::{Ctx, SolveOptions};
use crate::problem::{Constraints, Problem, Transition};
use crate::solve::solve_checked;
use crate::strategies::strategy;
use crate::strategy::Parameters;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A kind of limit that a problem may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Limit {
    /// Old and new blocks in memory at once.
    Switch,
    /// Memory of the nodes.
    Memory,
    /// Slice limits.
    Slices,
    /// Utilisation of nodes and links at the expected rate.
    Rate,
    /// The latency limit.
    Latency,
    /// The accuracy floor.
    Accuracy,
    /// Pins, forbidden places and blocks kept on the entry.
    Places,
    /// Allowed tiers and their order.
    Tiers,
}

impl Limit {
    /// Every kind, those that are easiest to give up first.
    pub const ALL: [Self; 8] = [
        Self::Switch,
        Self::Slices,
        Self::Rate,
        Self::Latency,
        Self::Accuracy,
        Self::Tiers,
        Self::Places,
        Self::Memory,
    ];

    /// Drops the limit; false if the problem does not set it.
    fn lift(self, problem: &mut Problem) -> bool {
        let before = problem.clone();
        match self {
            Self::Switch => problem.transition = Transition::Drain,
            Self::Memory => {
                problem.transition = Transition::Drain;
                for node in &mut problem.nodes {
                    node.memory_bytes = u64::MAX;
                }
            }
            Self::Slices => each(problem, |c| {
                c.tier_slice_limit_bytes.clear();
                c.node_slice_limit_bytes.clear();
            }),
            Self::Rate => {
                for workload in &mut problem.workloads {
                    workload.rate_per_second = 0.0;
                }
            }
            Self::Latency => each(problem, |c| c.latency_limit_seconds = None),
            Self::Accuracy => each(problem, |c| {
                c.min_accuracy = c.min_accuracy.map(|_| 0.0);
            }),
            Self::Places => each(problem, |c| {
                c.pins.clear();
                c.forbidden.clear();
                c.keep_first_on_entry = 0;
            }),
            Self::Tiers => each(problem, |c| {
                c.allowed_tiers = None;
                c.monotone_tiers = false;
            }),
        }
        *problem != before
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "holding old and new blocks at once",
            Self::Memory => "the memory of the nodes",
            Self::Slices => "the slice limits",
            Self::Rate => "the expected rate",
            Self::Latency => "the latency limit",
            Self::Accuracy => "the accuracy floor",
            Self::Places => "pins and blocks kept on the entry",
            Self::Tiers => "the allowed tiers and their order",
        })
    }
}

fn each(problem: &mut Problem, change: impl Fn(&mut Constraints)) {
    for workload in &mut problem.workloads {
        change(&mut workload.constraints);
    }
}

/// The effect of dropping one limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Relief {
    /// The limit.
    pub limit: Limit,
    /// Objective of the best placement found without it, in seconds.
    pub objective: f64,
}

/// Solves the problem once without each limit that it sets. Returns only limits that bind: without
/// them a placement, or one better than `objective`, becomes possible. `ctx` bounds all solves
/// together.
pub(super) fn what_helps(problem: &Problem, objective: Option<f64>, ctx: &Ctx) -> Vec<Relief> {
    let Ok(optimal) = strategy("optimal", &Parameters::new()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (done, limit) in Limit::ALL.into_iter().enumerate() {
        let mut lifted = problem.clone();
        if ctx.expired() || !limit.lift(&mut lifted) {
            continue;
        }
        let part = ctx.part(1.0 / (Limit::ALL.len() - done) as f64);
        let solution = solve_checked(&lifted, optimal.as_ref(), &SolveOptions::default(), &part);
        let better = solution.ok().and_then(|s| s.metrics).filter(|m| {
            let gained = |o: f64| m.objective < o * (1.0 - 1e-6);
            objective.is_none_or(gained)
        });
        if let Some(metrics) = better {
            found.push(Relief {
                limit,
                objective: metrics.objective,
            });
        }
    }
    found
}

/// Why no placement was found, in sentences for people: nodes that cannot host their blocks, else
/// the limits that are too much together.
pub fn why_infeasible(problem: &Problem, ctx: &Ctx) -> Vec<String> {
    let unplaced = explain_infeasible(problem);
    if !unplaced.is_empty() {
        return unplaced.iter().map(ToString::to_string).collect();
    }
    let helps = what_helps(problem, None, ctx);
    if helps.is_empty() {
        return vec![
            "each block fits somewhere, but no placement respects every limit at once".to_owned(),
        ];
    }
    let limits: Vec<String> = helps.iter().map(|r| r.limit.to_string()).collect();
    vec![format!(
        "each block fits somewhere, but not all together; there is a placement without {}",
        limits.join(", or without ")
    )]
}
