//! Names and limits that users and plugins can rely on.

/// Prefix of the names of plugins' strategies, so that they never collide with a built-in one,
/// present or future.
pub const PREFIX: &str = "plugin/";
/// The built-in strategy that replaces a failed plugin.
pub const FALLBACK: &str = "optimal";
/// Largest problem sent, in bytes of JSON: 300 hosts that all measure each other take 11 MB.
pub(crate) const MAX_QUESTION_BYTES: usize = 64 << 20;
/// Largest message accepted from a plugin.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
/// Most answers accepted for one question.
pub const MAX_REPLIES: usize = 1000;
