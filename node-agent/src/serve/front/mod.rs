//! The users' API: the Open Inference Protocol v2. gRPC is answered here; `rest` passes HTTP
//! requests to the same [`Front`], in the protocol's own messages.
//!
//! Any agent accepts requests for any model, and forwards those that enter elsewhere to the
//! nearest entry that serves. The entry checks the request against its current revision and
//! sends it along that revision's path, again if hosts fail on the way: one request at a time
//! finds out whether the path works again, the others wait for that or for another path.
//! Requests wait for a model that is being deployed.

mod config;
mod dispatch;
mod error;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod index;
mod input;
mod journey;
mod output;
mod patience;
mod place;
mod question;
mod relay;
mod service;
mod statistics;
mod stream;
mod trouble;
mod typed;
mod wait;

pub(crate) use error::FrontError;
pub(crate) use patience::patience;
pub(crate) use service::{EXTENSIONS, Front, RoundTrip, SERVER_NAME};

#[cfg(test)]
mod tests;
