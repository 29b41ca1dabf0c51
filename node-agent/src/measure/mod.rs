//! What this host can do, and what its links to other hosts can.
//!
//! Estimating is pure ([`estimate`]), asking is apart from it ([`host`] for the
//! machine, [`prober`] for links).

pub mod estimate;
mod host;
mod prober;

pub use host::{CpuMeter, benchmark, memory_free_bytes};
pub use prober::Prober;
