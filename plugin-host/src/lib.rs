//! Strategies that run in separate processes, in any language, asked over gRPC
//! (`proto/strategy.proto`).
//!
//! A plugin is never trusted: the checker of `lamina-placement` re-evaluates every
//! answer, and one that lies, hangs, dies or sends garbage costs its timeout and a
//! message, after which a built-in strategy replaces it. Start with [`Plugins`],
//! then [`Plugin::solve`].

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
