//! The agent on each host: measures, loads slices, serves and forwards inference.

mod backoff;
pub mod blobs;
mod data_plane;
mod deadline;
pub mod engine;
mod front;
mod hop;
pub mod ledger;
pub mod measure;
pub mod prepare;
mod routes;
pub mod run;
pub mod session;
pub mod shared;
mod slices;
mod specs;
mod verify;

#[cfg(test)]
mod testing;
