//! The lab: a control plane and emulated hosts on one machine, and the tests and demo that run on it.

mod index;
pub mod netlab;

pub use index::{IndexError, IndexLock};
pub mod workload;
