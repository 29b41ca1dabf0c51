//! `throughput`: the fastest slowest stage, whatever the latency (pipeline partitioning: Hu et al.,
//! "PipeEdge", DSD 2022, and DADS under heavy load, Hu et al., INFOCOM 2019; exact by bisection
//! over the run-feasible relaxation). Stays below `latencyLimitSeconds` if set.

use super::instead;
use super::parameters::no_parameters;
use crate::limits::{Ctx, SolveOptions};
use crate::objective::Criterion;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Throughput;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("throughput", parameters)?;
    Ok(Box::new(Throughput))
}

impl Strategy for Throughput {
    fn name(&self) -> &str {
        "throughput"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let goal = Criterion::Throughput;
        instead::solve(problem, self.name(), goal, None, options, ctx)
    }
}
