//! Agent to agent: a request goes from slice to slice and its answer back.

mod call;
mod error;
mod forward;
mod pool;
mod service;
mod tensors;

pub(crate) use call::CallError;
pub(crate) use error::HopError;
pub(crate) use forward::{Forwarder, total_us};
pub(crate) use pool::{CONNECTION_WINDOW_BYTES, Hops, STREAM_WINDOW_BYTES};
pub(crate) use service::HopService;
pub(crate) use tensors::{TensorError, bytes_of, from_wire, to_wire};

#[cfg(test)]
mod tests;
