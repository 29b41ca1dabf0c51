//! The agent on each host: measures, loads slices, serves and forwards inference.

mod backoff;
pub mod blobs;
pub mod engine;
pub mod ledger;
pub mod measure;
pub mod prepare;
mod routes;
pub mod session;
pub mod shared;
mod slices;
mod specs;

#[cfg(test)]
mod testing;
