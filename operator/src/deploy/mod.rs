//! How a plan comes to serve: what hosts hold, and how requests reach it.

pub(crate) mod crashes;
pub(crate) mod nodes;
pub(crate) mod phases;
mod room;
pub(crate) mod slices;
