//! The exact method with another objective in place of the problem's, for `energy`, `fair` and
//! `throughput`.

use super::optimal::{self, Solved};
use super::rows;
use crate::check::evaluate;
use crate::dense::{Dense, Rows};
use crate::limits::{Ctx, SolveOptions};
use crate::objective::{Criterion, Objective};
use crate::problem::Problem;
use crate::solution::{Answer, Certificate};
use crate::strategy::SolveError;

/// Share of the time for finding the fastest placement, from which the limit on latency is derived.
const FASTEST_SHARE: f64 = 0.3;
/// Tolerance for rounding in that limit.
const SLACK: f64 = 1e-9;

/// Minimizes `criterion`. Workloads without a latency limit get `slowdown` times their latency in
/// the fastest placement.
pub(super) fn solve(
    problem: &Problem,
    strategy: &str,
    criterion: Criterion,
    slowdown: Option<f64>,
    options: &SolveOptions,
    ctx: &Ctx,
) -> Result<Answer, SolveError> {
    let choices = rows::choices(problem, strategy)?;
    let free = |w: &crate::Workload| w.constraints.latency_limit_seconds.is_none();
    let slowdown = slowdown.filter(|_| problem.workloads.iter().any(free));
    let mut asked = problem.clone();
    let mut fallback = None;
    if let Some(slowdown) = slowdown {
        asked.objective = Objective::Latency;
        let fastest = optimal::solve(&asked, &choices, options, &ctx.part(FASTEST_SHARE));
        let Ok(metrics) = evaluate(&asked, &fastest.answer.placements) else {
            // None was found, or none exists: that also holds under the added limits.
            return Ok(restate(problem, &choices, fastest, false));
        };
        for (workload, found) in asked.workloads.iter_mut().zip(&metrics.workloads) {
            let limit = slowdown * found.latency_seconds * (1.0 + SLACK);
            let own = &mut workload.constraints.latency_limit_seconds;
            own.get_or_insert(limit);
        }
        fallback = Some(fastest);
    }
    asked.objective = criterion.into();
    let solved = optimal::solve(&asked, &choices, options, ctx);
    let same = slowdown.is_none() && asked.objective == problem.objective;
    match fallback {
        Some(fastest) if solved.place.is_none() => Ok(restate(problem, &choices, fastest, false)),
        _ => Ok(restate(problem, &choices, solved, same)),
    }
}

/// The answer to the original problem. Its proof is kept if it is for the `same` objective, or that
/// there is no placement.
fn restate(problem: &Problem, choices: &[Vec<Rows>], solved: Solved, same: bool) -> Answer {
    let mut answer = solved.answer;
    let Some((choice, path)) = solved.place else {
        return answer;
    };
    if !same {
        answer.objective = Dense::new(problem, &choices[choice]).value(&path);
        answer.certificate = Certificate::of(answer.objective.unwrap_or_default(), None, 0.0);
    }
    answer
}
