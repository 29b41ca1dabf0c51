//! The capacity of this host and of its links to other hosts.
//!
//! Decisions are pure: what was observed of a link ([`link_memory`]), how much of it probes
//! may take ([`budget`]). Measuring is separate: [`host`] and [`lost_time`] measure the
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
