//! `milp`: the flow formulation as a mixed-integer program, solved by a general solver (microlp).
//! Slower than `optimal`, and independent of it: in the tests each proves the other.

use super::parameters::no_parameters;
use super::rows;
use crate::dense::{Aim, Dense};
use crate::limits::{Ctx, SolveOptions};
use crate::milp::{Goal, MilpError, solve};
use crate::objective::Criterion;
use crate::problem::Transition;
use crate::solution::{Answer, Certificate, Placement, Stats};
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

/// The solver's tolerance: smaller differences are ties.
const TOLERANCE: f64 = 1e-6;

#[derive(Debug)]
struct Milp;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("milp", parameters)?;
    Ok(Box::new(Milp))
}

impl Strategy for Milp {
    fn name(&self) -> &str {
        "milp"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let not_applicable = |reason: String| SolveError::NotApplicable {
            strategy: self.name().to_owned(),
            reason,
        };
        let several = problem.workloads.len() > 1;
        let held = problem.workloads.iter().any(|w| w.previous.is_some());
        if problem.transition == Transition::Separate && several && held {
            return Err(not_applicable(
                "separate copies of several workloads are not linear; use `optimal`".into(),
            ));
        }
        let aim = Aim::of(&problem.objective);
        let goal = match (aim.sum.is_empty(), aim.worst) {
            (false, None) => Goal::Cost,
            (true, Some((Criterion::Throughput, _))) => Goal::Busiest,
            _ => {
                return Err(not_applicable(
                    "of the worst of several places it knows throughput alone; use `optimal`"
                        .into(),
                ));
            }
        };
        if problem.objective.ranks().len() > 1 {
            return Err(not_applicable(
                "it takes one criterion or a sum, not several by rank; use `optimal`".into(),
            ));
        }
        let mut best: Option<(f64, Vec<Placement>)> = None;
        let mut bound = f64::INFINITY;
        let mut stats = Stats {
            stage: "branch and bound".into(),
            work: 0,
            nodes_left: problem.nodes.len(),
        };
        let max_nodes = options.work_limit.unwrap_or(u64::MAX);
        for rows in rows::choices(problem, self.name())? {
            let dense = Dense::new(problem, &rows);
            // The current placement wins every tie.
            let keep = |value: f64, best: &Option<(f64, Vec<Placement>)>| {
                best.as_ref()
                    .is_none_or(|b| value <= b.0 + TOLERANCE * b.0.abs())
            };
            if let Some(path) = dense.previous_path()
                && let Some(value) = dense.value(&path)
                && keep(value, &best)
            {
                best = Some((value, dense.placements(problem, &rows, &path)));
            }
            let cutoff = best.as_ref().map_or(f64::INFINITY, |b| b.0);
            let left = max_nodes.saturating_sub(stats.work);
            let found = match solve(&dense, goal, cutoff, left, ctx) {
                Ok(found) => found,
                Err(e @ MilpError::TooLarge(_)) => return Err(not_applicable(e.to_string())),
                Err(MilpError::Solver(reason)) => {
                    return Err(not_applicable(format!("the solver failed: {reason}")));
                }
            };
            stats.work += found.nodes;
            let value = found.path.as_deref().and_then(|p| dense.value(p));
            let weight = aim.worst.map_or(1.0, |(_, w)| w);
            let proved = weight * in_seconds(&dense, goal, found.bound);
            bound = bound.min(match value {
                // Its own objective is off by the tolerance of its variables.
                Some(value) if found.complete && value - proved <= TOLERANCE * value => value,
                _ => proved,
            });
            if let (Some(value), Some(path)) = (value, &found.path)
                && best
                    .as_ref()
                    .is_none_or(|b| value < b.0 - TOLERANCE * b.0.abs())
            {
                best = Some((value, dense.placements(problem, &rows, path)));
            }
        }
        Ok(answer(best, bound, stats))
    }
}

/// The program's bound in objective seconds.
fn in_seconds(dense: &Dense, goal: Goal, bound: f64) -> f64 {
    let mix: f64 = dense.chains.iter().map(|c| c.rate).sum();
    match goal {
        Goal::Busiest if mix > 0.0 => bound / mix,
        Goal::Busiest | Goal::Cost => bound,
    }
}

fn answer(best: Option<(f64, Vec<Placement>)>, bound: f64, stats: Stats) -> Answer {
    let Some((value, placements)) = best else {
        return Answer {
            placements: Vec::new(),
            objective: None,
            certificate: if bound == f64::INFINITY {
                Certificate::INFEASIBLE
            } else {
                Certificate::UNKNOWN
            },
            stats,
        };
    };
    Answer {
        placements,
        objective: Some(value),
        certificate: Certificate::of(value, Some(bound.min(value)), TOLERANCE),
        stats,
    }
}
