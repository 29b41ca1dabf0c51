//! The way in which production code calls a strategy.

use crate::check;
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Problem;
use crate::solution::Solution;
use crate::strategy::{SolveError, Strategy};
use crate::validate::ValidProblem;

/// Validates, solves, and has the checker re-evaluate the answer. Production code
/// calls strategies only through this.
///
/// # Errors
/// As [`Strategy::solve`], and [`SolveError::Wrong`] if the checker does not agree
/// with the answer.
pub fn solve_checked(
    problem: &Problem,
    strategy: &dyn Strategy,
    options: &SolveOptions,
    ctx: &Ctx,
) -> Result<Solution, SolveError> {
    let valid = ValidProblem::new(problem).map_err(SolveError::Invalid)?;
    let answer = strategy.solve(&valid, options, ctx)?;
    match check::check_answer(problem, &answer) {
        Ok(metrics) => Ok(Solution {
            strategy: strategy.name().to_owned(),
            placements: answer.placements,
            metrics,
            certificate: answer.certificate,
            stats: answer.stats,
        }),
        Err(violations) => Err(SolveError::Wrong {
            strategy: strategy.name().to_owned(),
            violations,
        }),
    }
}
