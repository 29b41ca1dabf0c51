//! The Open Inference Protocol v2 over HTTP, with its binary tensor data extension.
//!
//! A thin adapter: a request becomes the protocol's own message, which the front answers as if
//! it had come over gRPC. Limits here are those that HTTP adds: the time for a body, and its
//! decompressed size. The memory of bodies counts in the budget of all requests.

mod body;
mod compression;
mod data;
mod error;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod head;
mod infer;
mod path;
mod repository;
mod request;
mod response;
mod routes;
mod statistics;

pub(crate) use body::Room;
pub(crate) use routes::router;

#[cfg(test)]
mod clients;
#[cfg(test)]
mod tests;
