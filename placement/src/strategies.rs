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

use crate::strategy::{Parameters, SolveError, Strategy};

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

/// For strategies that take no parameter.
fn no_parameters(strategy: &'static str, parameters: &Parameters) -> Result<(), SolveError> {
    parameters::Reader::new(strategy, parameters).finish()
}
