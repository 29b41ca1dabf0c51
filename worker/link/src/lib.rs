//! What an agent and its workers share.
//!
//! A worker is a process in which models are opened: the agent trusts none of what it says.
//! Small messages go through Unix sockets ([`frame`], [`message`]), tensors through memory
//! that both map ([`memory`], the one `unsafe` file). [`cell`] judges a model's file, and
//! [`prepare`] and [`blocks`] are what a worker tells that prepares or that runs blocks once.

pub mod blocks;
pub mod cell;
pub mod frame;
pub mod memory;
pub mod message;
pub mod prepare;

mod causes;

pub use causes::with_causes;
