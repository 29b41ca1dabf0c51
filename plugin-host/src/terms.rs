//! What users and plugins can rely on: names and limits.

/// Begins every strategy's name that means a plugin, so that no built-in strategy,
/// present or future, has the same.
pub const PREFIX: &str = "plugin/";
/// The built-in strategy that answers in a plugin's place.
pub const FALLBACK: &str = "optimal";
/// Largest problem that is sent, in bytes of JSON: 300 hosts that all measure each
/// other take 11 MB.
pub(crate) const MAX_QUESTION_BYTES: usize = 64 << 20;
/// Largest message that is taken from a plugin.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
/// Most answers that are taken for one question.
pub const MAX_REPLIES: usize = 1000;
