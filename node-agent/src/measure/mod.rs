//! What this host can do, and what its links to other hosts can.
//!
//! Deciding is pure: what was seen of a link ([`link_memory`]), how much of it probes
//! may take ([`budget`]). Asking is apart from it: [`host`] and [`lost_time`] ask the
//! machine, [`prober`] the links.

mod budget;
mod host;
mod link_memory;
mod lost_time;
mod percentile;
mod prober;

pub use host::{CpuMeter, memory_free_bytes};
pub(crate) use host::{Speed, capacity};
pub use percentile::{median, percentile};
pub use prober::Prober;
