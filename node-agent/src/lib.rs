//! The agent on each host: measures, loads slices, serves and forwards inference.

pub mod shared;
