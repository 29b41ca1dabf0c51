//! Every built-in strategy, a file each.

mod cloud_only;
mod dads;
mod ddnn;
mod device_only;
mod edgent;
mod energy;
mod fair;
mod first_fit;
mod genetic;
mod instead;
mod milp;
mod min_cut;
mod neurosurgeon;
mod optimal;
mod parameters;
mod rows;
mod spinn;
#[cfg(test)]
mod tests;
mod throughput;
mod turns;
mod whole;

use crate::dense::Rows;
use crate::problem::{Problem, Tier};
use crate::solution::Placement;
use crate::strategy::{Ctx, Parameters, SolveError, SolveOptions, Strategy};

type Make = fn(&Parameters) -> Result<Box<dyn Strategy>, SolveError>;

/// Name and constructor of each.
pub(crate) const KNOWN: &[(&str, Make)] = &[
    ("optimal", optimal::make),
    ("milp", milp::make),
    ("genetic", genetic::make),
    ("first-fit", first_fit::make),
    ("cloud-only", cloud_only::make),
    ("device-only", device_only::make),
    ("neurosurgeon", neurosurgeon::make),
    ("dads", dads::make),
    ("edgent", edgent::make),
    ("spinn", spinn::make),
    ("ddnn", ddnn::make),
    ("energy", energy::make),
    ("fair", fair::make),
    ("throughput", throughput::make),
];

/// The whole model on the best node of a tier; empty where there is none.
pub(crate) fn whole_on_tier(problem: &Problem, tier: Tier, ctx: &Ctx) -> Vec<Placement> {
    let options = SolveOptions::default();
    let answer = whole::solve(problem, "whole", &options, ctx, |_| {
        let nodes = problem.nodes.iter().enumerate();
        nodes
            .filter(|(_, n)| n.tier == tier)
            .map(|(i, _)| i)
            .collect()
    });
    answer.map(|a| a.placements).unwrap_or_default()
}

/// Every choice of thresholds; `None` where there are too many.
pub(crate) fn threshold_choices(problem: &Problem) -> Option<Vec<Vec<Rows>>> {
    rows::choices(problem, "").ok()
}

/// For strategies that take no parameter.
fn no_parameters(strategy: &'static str, parameters: &Parameters) -> Result<(), SolveError> {
    parameters::Reader::new(strategy, parameters).finish()
}
