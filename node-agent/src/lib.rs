//! The agent on each host: measures, loads slices, serves and forwards inference.
//!
//! Rooms, each of which uses only those before it: `net`, `telemetry`, `blobs`,
//! `measure`, `prepare`, `serve`, then `session` and `wish`, and [`run`] on top.

pub mod blobs;
mod causes;
mod files;
pub mod measure;
pub mod net;
pub mod prepare;
pub mod run;
mod serve;
mod session;
pub mod telemetry;
mod wish;

#[cfg(test)]
mod testing;
