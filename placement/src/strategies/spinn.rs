//! `spinn`: exit thresholds and split together (Laskaridis et al., "SPINN: Synergistic progressive
//! inference of neural networks over device and cloud", MobiCom 2020). The first exit stays on the
//! entry, so that requests are still answered if the other host is lost. SPINN ties all exits to
//! one threshold; here each has its own, which includes that.

use super::parameters::no_parameters;
use super::turns::{Effort, choices_with_exits, in_turn};
use crate::limits::{Ctx, SolveOptions};
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Spinn;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("spinn", parameters)?;
    Ok(Box::new(Spinn))
}

impl Strategy for Spinn {
    fn name(&self) -> &str {
        "spinn"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let choices = choices_with_exits(problem, self.name())?;
        let mut effort = Effort::new(options, ctx);
        let answer = in_turn(problem, &choices, "splits", &mut effort, |turn, effort| {
            let first = problem.workloads[turn.k].exits.first()?.after_block + 1;
            turn.best_split(&turn.others(|_| true), first..=turn.chain().l, effort)
        });
        Ok(answer)
    }
}
