//! The Open Inference Protocol v2 over HTTP, with its binary tensor data extension.
//!
//! A thin adapter: a request becomes the protocol's own message, which the front
//! answers as if it had come over gRPC. What is bounded here is what HTTP adds: how
//! long a body may take, and how large it may be once it is unpacked. What bodies hold counts in
//! the room of all requests.

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
