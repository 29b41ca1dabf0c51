//! `energy`: the fewest joules per request under a limit on latency (the
//! energy mode of Kang et al., Neurosurgeon, ASPLOS 2017, over any number of
//! hosts; exact by label setting with latency as a resource).
//!
//! The limit is `latencyLimitSeconds`; if a workload has none, `slowdown`
//! times its latency in the fastest placement.

use super::instead;
use super::parameters::Reader;
use super::turns::not_applicable;
use crate::limits::{Ctx, SolveOptions};
use crate::objective::Criterion;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

/// How much slower than the fastest a placement may be.
pub(super) const SLOWDOWN: f64 = 1.5;

#[derive(Debug)]
struct Energy {
    slowdown: f64,
}

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    let mut reader = Reader::new("energy", parameters);
    let slowdown = reader.number("slowdown", 1.0..=1e6)?.unwrap_or(SLOWDOWN);
    reader.finish()?;
    Ok(Box::new(Energy { slowdown }))
}

impl Strategy for Energy {
    fn name(&self) -> &str {
        "energy"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let links = problem.links.values().flat_map(|row| row.values());
        let known = problem.nodes.iter().any(|n| n.active_watts > 0.0)
            || links.into_iter().any(|l| l.joules_per_byte > 0.0);
        if !known {
            return Err(not_applicable(
                self.name(),
                "no node has activeWatts and no link joulesPerByte",
            ));
        }
        let (goal, slowdown) = (Criterion::Energy, Some(self.slowdown));
        instead::solve(problem, self.name(), goal, slowdown, options, ctx)
    }
}
