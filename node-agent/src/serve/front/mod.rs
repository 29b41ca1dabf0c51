//! What users call: the Open Inference Protocol v2 over gRPC.
//!
//! Any agent takes any model. One that is not the model's entry checks the
//! request and passes it to the entry; the entry sends it along the path of the
//! active revision, again where hosts fail on the way: one request at a time finds
//! out whether the path works again, the others wait for it or for another path.

mod dispatch;
mod error;
mod input;
mod output;
mod relay;
mod service;
mod trouble;
mod typed;

pub(crate) use service::Front;

#[cfg(test)]
mod tests;
