//! Agent to agent: a request goes from slice to slice, and its answer back.

mod admit;
mod away;
mod call;
mod early;
mod encodings;
mod error;
mod forward;
mod service;
mod tensors;
mod usual;

pub(crate) use away::Away;
pub(crate) use call::{CallError, Hops};
#[cfg(feature = "fuzzing")]
pub(crate) use encodings::decode_all;
pub(crate) use error::{HopError, advise};
pub(crate) use forward::{Forwarder, total_us};
pub(crate) use service::HopService;
pub(crate) use tensors::{TensorError, bytes_of, from_wire, to_wire};

#[cfg(test)]
mod tests;
