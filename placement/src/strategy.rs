//! What a strategy is, under which limits it runs, and the one way in which
//! production calls it.

use crate::check::{self, Violation};
use crate::problem::Problem;
use crate::solution::{Answer, Solution};
use crate::strategies;
use crate::validate::{FieldErrors, ValidProblem};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Limits of a solve: a deadline and a way to cancel. The only clock that a
/// strategy may look at.
#[derive(Debug, Clone, Default)]
pub struct Ctx {
    deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
}

impl Ctx {
    /// No deadline.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// Stop at `deadline` and give what was found.
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline: Some(deadline),
            cancelled: Arc::default(),
        }
    }

    /// The same limits, and to stop within `duration` from now.
    pub fn within(&self, duration: Duration) -> Self {
        let own = Instant::now().checked_add(duration);
        Self {
            deadline: self.deadline.into_iter().chain(own).min(),
            cancelled: Arc::clone(&self.cancelled),
        }
    }

    /// A handle that cancels the solve when set to true.
    pub fn cancel_handle(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Whether to stop now.
    pub fn expired(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.deadline.is_some_and(|d| Instant::now() >= d)
    }

    /// Time left; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline
            .map(|d| d.saturating_duration_since(Instant::now()))
    }

    /// The same limits with only `share` (in `0..=1`) of the time left.
    pub fn part(&self, share: f64) -> Self {
        let deadline = self
            .remaining()
            .map(|left| Instant::now() + left.mul_f64(share.clamp(0.0, 1.0)));
        Self {
            deadline,
            cancelled: Arc::clone(&self.cancelled),
        }
    }
}

/// How to solve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SolveOptions {
    /// Seed of everything random; the same seed gives the same answer.
    pub seed: u64,
    /// Units of work after which to stop. Unlike a deadline it is
    /// reproducible.
    pub work_limit: Option<u64>,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            work_limit: Some(4_000_000),
        }
    }
}

/// Why there is no answer. That no placement exists is an answer
/// ([`crate::Status::Infeasible`]), not an error.
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
        /// The names there are.
        known: String,
    },
    /// A parameter is unknown or out of its range.
    #[error("strategy `{strategy}`: {reason}")]
    Parameter {
        /// The strategy.
        strategy: String,
        /// What is wrong and what would be right.
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
    /// Its name, as `spec.strategy` has it.
    fn name(&self) -> &str;

    /// Places every workload of `problem`. Call [`solve_checked`] instead,
    /// which validates before and checks after.
    ///
    /// # Errors
    /// [`SolveError::NotApplicable`] when this kind of problem is not for it.
    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError>;
}

/// Parameters of a strategy by name, as `spec.strategy.parameters` has them.
pub type Parameters = BTreeMap<String, serde_json::Value>;

/// The strategy of that name.
///
/// # Errors
/// [`SolveError::UnknownStrategy`] naming the known ones,
/// [`SolveError::Parameter`] for a parameter that it does not take.
pub fn strategy(name: &str, parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    let Some((_, make)) = strategies::KNOWN.iter().find(|(known, _)| *known == name) else {
        return Err(SolveError::UnknownStrategy {
            name: name.to_owned(),
            known: strategy_names().join(", "),
        });
    };
    make(parameters)
}

/// Names of every built-in strategy.
pub fn strategy_names() -> Vec<&'static str> {
    strategies::KNOWN.iter().map(|(name, _)| *name).collect()
}

/// Validates, solves, and lets the checker re-evaluate the answer: the way in
/// which production calls a strategy.
///
/// # Errors
/// As [`Strategy::solve`], and [`SolveError::Wrong`] when the checker does not
/// agree with the answer.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_time_is_never_longer_than_the_whole() {
        let hour = Duration::from_secs(3600);
        let day = 24 * hour;
        assert!(Ctx::unlimited().within(Duration::ZERO).expired());
        assert!(!Ctx::unlimited().within(hour).expired());
        let left = Ctx::unlimited().within(hour).within(day).remaining();
        assert!(left.is_some_and(|l| l <= hour));
        assert_eq!(Ctx::unlimited().within(Duration::MAX).remaining(), None);
    }

    #[test]
    fn cancelling_reaches_every_part() {
        let ctx = Ctx::unlimited();
        let part = ctx.within(Duration::from_secs(3600));
        ctx.cancel_handle().store(true, Ordering::Relaxed);
        assert!(part.expired());
    }
}
