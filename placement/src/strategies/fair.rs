//! `fair`: the lowest maximum utilisation under a limit on latency (min-max
//! fairness: Bertsekas and Gallager, "Data networks", 1992, 6.5.2; exact by
//! bisection over the run-feasible relaxation).
//!
//! With `measure: proportional`, utilisation is relative to what others leave free.
//! The limit is as for `energy`.

use super::energy::SLOWDOWN;
use super::instead;
use super::parameters::Reader;
use super::turns::not_applicable;
use crate::limits::{Ctx, SolveOptions};
use crate::objective::Criterion;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Fair {
    measure: Criterion,
    slowdown: f64,
}

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    let mut reader = Reader::new("fair", parameters);
    let slowdown = reader.number("slowdown", 1.0..=1e6)?.unwrap_or(SLOWDOWN);
    let measure = match reader.word("measure", &["minMax", "proportional"])? {
        "proportional" => Criterion::ProportionalFairness,
        _ => Criterion::Fairness,
    };
    reader.finish()?;
    Ok(Box::new(Fair { measure, slowdown }))
}

impl Strategy for Fair {
    fn name(&self) -> &str {
        "fair"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        if problem.workloads.iter().all(|w| w.rate_per_second == 0.0) {
            return Err(not_applicable(
                self.name(),
                "no workload has a ratePerSecond, so that none puts load on a node",
            ));
        }
        let slowdown = Some(self.slowdown);
        instead::solve(problem, self.name(), self.measure, slowdown, options, ctx)
    }
}
