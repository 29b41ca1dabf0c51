//! Slices, merges, profiles and runs TorchScript through a small C++ shim.
//!
//! Two rooms: [`prepare`] turns a model file into content-addressed blocks and
//! a [`lamina_model::Manifest`]; [`Slice`] loads consecutive blocks as one
//! optimized graph and runs it. Every exception of libtorch becomes an error
//! value. Only the `ffi` module is `unsafe`.
//!
//! A model is code: open an untrusted one in a sandboxed process. Nothing here
//! starts threads; libtorch uses as many as it is told.

mod as_written;
#[cfg(feature = "baseline")]
pub mod baseline;
mod benchmark;
mod bind;
mod caches;
mod check;
mod cuts;
mod draw;
mod encodings;
mod error;
mod exits;
mod ffi;
mod forward;
mod looks;
mod message;
mod metadata;
mod names;
mod operators;
mod prepare;
mod profile;
mod progress;
mod retrace;
mod rows;
mod rungs;
mod shapes;
mod sized;
mod slice;
mod stats;
mod store;
mod tensors;
mod untouched;

pub use benchmark::{Lanes, ReferenceSpeed, reference_speed, speed_side_by_side};
pub use caches::Caches;
pub use error::{LoadError, PrepareError, RunError, tells_of_an_index};
pub use prepare::{PrepareOptions, prepare};
pub use progress::Progress;
pub use slice::{Batch, InPlace, LoadOptions, LoadReport, Seen, Slice, set_threads};
pub use untouched::{UntouchedError, largest_difference, untouched_answer};
