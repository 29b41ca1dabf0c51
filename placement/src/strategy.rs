//! The interface of strategies, and why one may have no answer.

use crate::check::Violation;
use crate::limits::{Ctx, SolveOptions};
use crate::solution::Answer;
use crate::validate::{FieldErrors, ValidProblem};
use std::collections::BTreeMap;

/// Why there is no answer. That no placement exists is an answer ([`crate::Status::Infeasible`]),
/// not an error.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// The problem contradicts itself.
    #[error("the problem is invalid; correct these fields: {0}")]
    Invalid(FieldErrors),
    /// There is no such strategy.
    #[error("unknown strategy `{name}`; use one of: {known}")]
    UnknownStrategy {
        /// The name asked for.
        name: String,
        /// The known names.
        known: String,
    },
    /// A parameter is unknown or out of its range.
    #[error("strategy `{strategy}`: {reason}")]
    Parameter {
        /// The strategy.
        strategy: String,
        /// The mistake and what would be right.
        reason: String,
    },
    /// The strategy does not apply to this problem.
    #[error("strategy `{strategy}` does not apply: {reason}")]
    NotApplicable {
        /// The strategy.
        strategy: String,
        /// Why.
        reason: String,
    },
    /// The checker does not agree with the strategy.
    #[error("strategy `{strategy}` gave a wrong answer, which was dropped: {}", list(.violations))]
    Wrong {
        /// The strategy.
        strategy: String,
        /// What the checker found.
        violations: Vec<Violation>,
    },
}

fn list(violations: &[Violation]) -> String {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A way to place blocks.
pub trait Strategy: Send + Sync {
    /// Its name in `spec.strategy`.
    fn name(&self) -> &str;

    /// Places every workload of `problem`. Call [`crate::solve_checked`] instead,
    /// which validates before and checks after.
    ///
    /// # Errors
    /// [`SolveError::NotApplicable`] if it does not support this kind of problem.
    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError>;
}

/// Parameters of a strategy by name, as in `spec.strategy.parameters`.
pub type Parameters = BTreeMap<String, serde_json::Value>;
