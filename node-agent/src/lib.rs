//! The agent on each host: it measures, loads and runs slices, serves and forwards inference.
//! No model is opened in this process: workers do that (`lamina-worker`).
//!
//! Rooms, each of which uses only those before it: `net`, `telemetry`, `door`, `blobs`,
//! `identity`, `measure`, `prepare`, `serve`, then `session` and `wish`, and [`run`] on top.
//! [`selftest`] is independent.

pub mod blobs;
mod causes;
pub mod door;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
pub mod measure;
pub mod net;
pub mod prepare;
pub mod run;
pub mod selftest;
mod serve;
mod session;
pub mod telemetry;
mod uplink;
mod wish;
mod worker;

#[cfg(test)]
mod testing;
