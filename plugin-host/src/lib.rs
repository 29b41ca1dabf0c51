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

pub use config::{ConfigError, PREFIX, PluginConfig, Plugins};
pub use error::{PluginError, Trouble, WorkError};
pub use plugin::{FALLBACK, Plugin, Question, Solved};

/// Largest problem that is sent, in bytes of JSON: 300 hosts that all measure each
/// other take 11 MB.
pub const MAX_QUESTION_BYTES: usize = 64 << 20;
/// Largest message that is taken from a plugin.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
/// Most answers that are taken for one question.
pub const MAX_REPLIES: usize = 1000;
