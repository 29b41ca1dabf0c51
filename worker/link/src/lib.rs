//! Shared by an agent and its workers.
//!
//! A worker is a process in which models are opened; the agent does not trust it. Small
//! messages go through Unix sockets ([`frame`], [`message`]), tensors through memory that
//! both map ([`memory`], the one `unsafe` file). [`cell`] checks a model's file, and
//! [`prepare`] and [`blocks`] are the outputs of a worker that prepares or runs blocks once.

pub mod blocks;
pub mod cell;
pub mod frame;
pub mod memory;
pub mod message;
pub mod prepare;

mod causes;

pub use causes::with_causes;
