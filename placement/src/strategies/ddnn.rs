//! `ddnn`: an exit per tier (Teerapittayanon et al., "Distributed deep neural networks over the
//! cloud, the edge and end devices", ICDCS 2017). The entry runs the model up to one exit, an edge
//! host up to a later one if there is any, the cloud the rest; exits and hosts are found by trying
//! all.

use super::parameters::no_parameters;
use super::turns::{Effort, Turn, choices_with_exits, in_turn, not_applicable};
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Tier;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Ddnn;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("ddnn", parameters)?;
    Ok(Box::new(Ddnn))
}

impl Strategy for Ddnn {
    fn name(&self) -> &str {
        "ddnn"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        if !problem.nodes.iter().any(|n| n.tier > Tier::Device) {
            return Err(not_applicable(self.name(), "every node is of tier device"));
        }
        let choices = choices_with_exits(problem, self.name())?;
        let mut effort = Effort::new(options, ctx);
        Ok(in_turn(problem, &choices, "tiers", &mut effort, best_tiers))
    }
}

/// The best two or three tiers that are cut after exits.
fn best_tiers(turn: &Turn<'_>, effort: &mut Effort<'_>) -> Option<(f64, Vec<usize>)> {
    let (l, entry) = (turn.chain().l, turn.chain().entry);
    let exits = &turn.problem.workloads[turn.k].exits;
    let cuts: Vec<usize> = exits.iter().map(|e| e.after_block + 1).collect();
    let edges = turn.others(|n| n.tier == Tier::Edge);
    let clouds = turn.others(|n| n.tier == Tier::Cloud);
    let mut best: Option<(f64, Vec<usize>)> = None;
    let mut attempt = |first: usize, middle: usize, edge: usize, last: usize| {
        let mut nodes = vec![entry; first];
        nodes.resize(middle, edge);
        nodes.resize(l, last);
        if let Some(value) = turn.value(&nodes)
            && best.as_ref().is_none_or(|b| value < b.0)
        {
            best = Some((value, nodes));
        }
        effort.spend()
    };
    for (z, &first) in cuts.iter().enumerate() {
        for &last in edges.iter().chain(&clouds) {
            if !attempt(first, first, last, last) {
                return best;
            }
        }
        for &middle in &cuts[z + 1..] {
            for &edge in &edges {
                for &cloud in &clouds {
                    if !attempt(first, middle, edge, cloud) {
                        return best;
                    }
                }
            }
        }
    }
    best
}
