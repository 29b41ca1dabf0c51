//! Strategies that run in processes of their own, in any language, asked over
//! gRPC (`proto/strategy.proto`).
//!
//! A plugin is never trusted: the checker of `lamina-placement` works out every
//! answer again, and one that lies, hangs, dies or talks nonsense costs its
//! timeout and a message, after which a built-in strategy answers in its place.
//! The way in is [`Plugins`], then [`Plugin::solve`].

mod ask;
mod config;
mod description;
mod error;
mod incumbent;
mod plugin;
mod terms;

pub use config::{ConfigError, PluginConfig, Plugins};
pub use error::{PluginError, Trouble, WorkError};
pub use plugin::{Plugin, Question, Solved};
pub use terms::{FALLBACK, MAX_REPLIES, MAX_REPLY_BYTES, PREFIX};
