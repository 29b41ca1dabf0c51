//! `device-only`: the whole model on its entry, the other baseline (Kang et al.,
//! Neurosurgeon, ASPLOS 2017).

use super::parameters::no_parameters;
use super::whole;
use crate::limits::{Ctx, SolveOptions};
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct DeviceOnly;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("device-only", parameters)?;
    Ok(Box::new(DeviceOnly))
}

impl Strategy for DeviceOnly {
    fn name(&self) -> &str {
        "device-only"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        whole::solve(problem, self.name(), options, ctx, |turn| {
            vec![turn.chain().entry]
        })
    }
}
