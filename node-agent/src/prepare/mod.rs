//! Preparing a model: the command that slices and profiles one in a process of
//! its own, and the job that the operator asks an agent for.

mod cell;
mod child;
mod cli;
mod failure;
mod fetch;
mod input;
mod job;
mod lines;
mod room;
mod table;
mod updates;

pub use cell::{CellArgs, CellError};
pub use child::Program;
pub use cli::{PrepareArgs, run};
pub use failure::{Failure, Reason};
pub use job::{Tools, run_job};
pub use lines::{Line, Step, StepName};

#[cfg(test)]
mod tests;
