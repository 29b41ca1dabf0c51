//! Every built-in strategy, a file each.

mod milp;
mod optimal;
mod rows;
mod whole;

use crate::strategy::{Parameters, SolveError, Strategy};

type Make = fn(&Parameters) -> Result<Box<dyn Strategy>, SolveError>;

/// Name and constructor of each.
pub(crate) const KNOWN: &[(&str, Make)] = &[
    ("optimal", optimal::make),
    ("milp", milp::make),
    ("cloud-only", whole::cloud_only),
    ("device-only", whole::device_only),
];

/// For strategies that take no parameter.
fn no_parameters(strategy: &str, parameters: &Parameters) -> Result<(), SolveError> {
    match parameters.keys().next() {
        None => Ok(()),
        Some(name) => Err(SolveError::Parameter {
            strategy: strategy.to_owned(),
            reason: format!("unknown parameter `{name}`; it takes none"),
        }),
    }
}
