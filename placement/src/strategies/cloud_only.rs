//! `cloud-only`: the whole model on the cloud node with the lowest objective, the
//! baseline of every split-computing paper (Kang et al., Neurosurgeon, ASPLOS
//! 2017).

use super::parameters::no_parameters;
use super::whole;
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Tier;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct CloudOnly;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("cloud-only", parameters)?;
    Ok(Box::new(CloudOnly))
}

impl Strategy for CloudOnly {
    fn name(&self) -> &str {
        "cloud-only"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let cloud = |i: &usize| problem.nodes[*i].tier == Tier::Cloud;
        let homes = |_: &super::turns::Turn<'_>| (0..problem.nodes.len()).filter(cloud).collect();
        if !problem.nodes.iter().any(|n| n.tier == Tier::Cloud) {
            return Err(super::turns::not_applicable(
                self.name(),
                "no node is of tier cloud",
            ));
        }
        whole::solve(problem, self.name(), options, ctx, homes)
    }
}
