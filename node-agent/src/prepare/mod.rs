//! Preparing a model: the command that slices and profiles one in a separate worker process,
//! the command that runs its blocks once, and the job that the operator gives an agent.

mod child;
mod cli;
mod disk;
mod fetch;
mod input;
mod job;
mod limits;
mod lines;
mod run_blocks;
mod table;
mod updates;

pub use child::Program;
pub use cli::{PrepareArgs, run};
pub use fetch::SourceArgs;
pub use job::{Tools, run_job};
pub use lamina_worker_link::prepare::{Failure, Line, Reason, Step, StepName};
pub use limits::LimitArgs;
pub use run_blocks::{RunBlocksArgs, run_blocks};

#[cfg(test)]
mod tests;
