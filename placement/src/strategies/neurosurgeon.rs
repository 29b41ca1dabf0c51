//! `neurosurgeon`: the best single split between the entry and one other host (Kang et al.,
//! "Neurosurgeon: Collaborative intelligence between the cloud and mobile edge", ASPLOS 2017).
//! Tries all cuts and hosts, so no single split of one workload is better; several workloads are
//! split in turn.

use super::parameters::no_parameters;
use super::rows;
use super::turns::{Effort, in_turn};
use crate::limits::{Ctx, SolveOptions};
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Neurosurgeon;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("neurosurgeon", parameters)?;
    Ok(Box::new(Neurosurgeon))
}

impl Strategy for Neurosurgeon {
    fn name(&self) -> &str {
        "neurosurgeon"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let choices = rows::choices(problem, self.name())?;
        let mut effort = Effort::new(options, ctx);
        let answer = in_turn(problem, &choices, "splits", &mut effort, |turn, effort| {
            turn.best_split(&turn.others(|_| true), 0..=turn.chain().l, effort)
        });
        Ok(answer)
    }
}
