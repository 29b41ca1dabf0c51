//! From a plan to a serving path: the slices of hosts and the routes of requests.

pub(crate) mod crash_events;
pub(crate) mod nodes;
pub(crate) mod phases;
mod room;
pub(crate) mod slices;
