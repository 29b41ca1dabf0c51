//! The inputs and results of all decisions, as plain data.

pub(crate) mod cluster;
pub(crate) mod decision;
pub(crate) mod exits;
pub(crate) mod ids;
pub(crate) mod links;
pub(crate) mod listed;
pub(crate) mod memory;
pub(crate) mod notice;
pub(crate) mod plans;
pub(crate) mod preparation;
pub(crate) mod reserved;
pub(crate) mod snapshot;
pub(crate) mod text;
pub(crate) mod time;
pub(crate) mod wish;
