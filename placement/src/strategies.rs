//! The registry of the built-in strategies, each of which has its own file.

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

pub(crate) use rows::threshold_choices;
pub(crate) use whole::whole_on_tier;

use crate::strategy::{Parameters, SolveError, Strategy};

type Make = fn(&Parameters) -> Result<Box<dyn Strategy>, SolveError>;

/// Name and constructor of each: a new one is its file, its `mod` line above and a
/// row here.
const KNOWN: &[(&str, Make)] = &[
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

/// The strategy of that name.
///
/// # Errors
/// [`SolveError::UnknownStrategy`] with the known ones,
/// [`SolveError::Parameter`] for an invalid parameter.
pub fn strategy(name: &str, parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    let Some((_, make)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        return Err(SolveError::UnknownStrategy {
            name: name.to_owned(),
            known: strategy_names().join(", "),
        });
    };
    make(parameters)
}

/// Names of every built-in strategy.
pub fn strategy_names() -> Vec<&'static str> {
    KNOWN.iter().map(|(name, _)| *name).collect()
}
