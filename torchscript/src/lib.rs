//! Slices, merges, profiles and runs TorchScript through a small C++ shim.
//!
//! Two rooms: [`prepare`] turns a model file into content-addressed blocks and
//! a [`lamina_model::Manifest`]; [`Slice`] loads consecutive blocks as one
//! optimized graph and runs it. Every exception of libtorch comes back as an
//! error value. Only the `ffi` module is `unsafe`.
//!
//! libtorch is told how many threads to use per call; nothing here starts
//! threads of its own.

mod benchmark;
mod error;
mod prepare;
mod slice;

pub use benchmark::reference_gflops;
pub use error::{LoadError, PrepareError, RunError};
pub use prepare::{PrepareOptions, Progress, prepare};
pub use slice::{LoadOptions, LoadReport, Slice, set_threads};
