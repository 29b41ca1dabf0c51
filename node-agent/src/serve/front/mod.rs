//! What users call: the Open Inference Protocol v2. gRPC is answered here; `rest`
//! gives what comes over HTTP to the same [`Front`], in the protocol's own messages.
//!
//! Any agent takes any model. One that is not the model's entry passes the request to
//! the nearest entry that serves. The entry checks it against the revision that it
//! takes and sends it along that revision's path, again where hosts fail on the way:
//! one request at a time finds out whether the path works again, the others wait for
//! it or for another path. A model that is on its way is waited for.

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
