//! Errors of plugins, worded for the person who runs them.

use crate::terms::FALLBACK;
use lamina_placement::SolveError;
use lamina_proto::strategy::StrategyInfo;
use std::error::Error;
use std::fmt;
use tonic::{Code, Status};

/// Longest text from a plugin that is passed on, in characters.
const MAX_TEXT: usize = 240;
/// Violations that are listed; the others are counted.
const MAX_NAMED: usize = 3;

/// Why a plugin gave no usable answer. Says what *the plugin* did, as the second half of a
/// sentence.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No connection.
    #[error("cannot be reached")]
    Unreachable(#[source] tonic::transport::Error),
    /// It is not one of our plugins.
    #[error("does not speak lamina.strategy.v1: {0}")]
    Stranger(String),
    /// It uses another protocol version.
    #[error(
        "speaks version {theirs} of the protocol, this is version {ours}; update the older one"
    )]
    Version {
        /// Its version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// It does not know the name.
    #[error("has no strategy `{name}`, it offers {offers}; correct the name in operator.plugins")]
    NotOffered {
        /// The name asked for.
        name: String,
        /// The names it offers.
        offers: String,
    },
    /// It reports that it does not support this kind of problem.
    #[error("does not apply: {0}")]
    Unable(String),
    /// The problem takes too many bytes.
    #[error("was not asked: the problem takes {bytes} bytes of JSON, more than {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It refused the question or a parameter.
    #[error("refused: {0}")]
    Refused(String),
    /// The call failed: it died, or sent something invalid.
    #[error("broke off ({code:?}): {message}")]
    Broke {
        /// The call's status.
        code: Code,
        /// Its text.
        message: String,
    },
    /// No usable answer in time.
    #[error("gave no usable answer within {seconds} s")]
    Deadline {
        /// Its time limit.
        seconds: f64,
    },
    /// Nobody wants the answer any more.
    #[error("was cancelled")]
    Cancelled,
    /// It ended without a placement.
    #[error("ended without a placement")]
    NoAnswer,
    /// The checker does not agree.
    #[error("gave a wrong answer: {0}")]
    Wrong(String),
    /// It sends too many answers.
    #[error("sent more than {0} answers to one question")]
    TooMany(usize),
    /// The checker itself failed.
    #[error("gave an answer that could not be checked, which is a bug in Lamina")]
    Unchecked(#[source] tokio::task::JoinError),
}

impl PluginError {
    /// Its kind, the same for the same cause whatever the numbers.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "Unreachable",
            Self::Stranger(_) => "Stranger",
            Self::Version { .. } => "Version",
            Self::NotOffered { .. } => "NotOffered",
            Self::Unable(_) => "Unable",
            Self::TooLarge { .. } => "TooLarge",
            Self::Refused(_) => "Refused",
            Self::Broke { .. } => "Broke",
            Self::Deadline { .. } => "Deadline",
            Self::Cancelled => "Cancelled",
            Self::NoAnswer => "NoAnswer",
            Self::Wrong(_) => "Wrong",
            Self::TooMany(_) => "TooMany",
            Self::Unchecked(_) => "Unchecked",
        }
    }

    /// The meaning of a failed call with a limit of `seconds`.
    pub(crate) fn of_status(status: &Status, seconds: f64) -> Self {
        let message = with_causes(status.message().to_owned(), status.source());
        let message = brief(&message);
        match status.code() {
            Code::DeadlineExceeded => Self::Deadline { seconds },
            Code::InvalidArgument | Code::FailedPrecondition => Self::Refused(message),
            code => Self::Broke { code, message },
        }
    }

    /// The plugin offers other strategies than `name`.
    pub(crate) fn not_offered(name: &str, offered: &[StrategyInfo]) -> Self {
        let names: Vec<String> = offered.iter().map(|s| format!("`{}`", s.name)).collect();
        let offers = match names.as_slice() {
            [] => "none".to_owned(),
            names => brief(&names.join(", ")),
        };
        Self::NotOffered {
            name: name.to_owned(),
            offers,
        }
    }

    /// An answer with these faults.
    pub(crate) fn wrong(faults: &[impl ToString]) -> Self {
        let named = faults.iter().take(MAX_NAMED).map(|f| brief(&f.to_string()));
        let mut text = named.collect::<Vec<_>>().join("; ");
        if faults.len() > MAX_NAMED {
            text.push_str(&format!("; and {} more", faults.len() - MAX_NAMED));
        }
        Self::Wrong(text)
    }
}

/// A text, with its cause if that adds something.
fn with_causes(mut text: String, mut source: Option<&(dyn Error + 'static)>) -> String {
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// A plugin's text, on one line and shortened.
fn brief(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT)
        .collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        format!("{line}…")
    } else {
        line
    }
}

/// A plugin's fault, and how it was handled. Worded for the user who chose the plugin.
#[derive(Debug)]
pub struct Trouble {
    /// The strategy, `plugin/NAME`.
    pub strategy: String,
    /// Where the plugin is.
    pub address: String,
    /// The fault.
    pub cause: PluginError,
    /// [`FALLBACK`] answered in its place; otherwise its last good answer is used.
    pub fell_back: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            strategy,
            address,
            cause,
            fell_back,
        } = self;
        if *fell_back {
            write!(f, "strategy {strategy} fell back to {FALLBACK}: ")?;
        } else {
            write!(f, "the last good answer of strategy {strategy} is used: ")?;
        }
        let text = with_causes(cause.to_string(), cause.source());
        write!(f, "the plugin at {address} {text}")
    }
}

/// Why there is no answer at all, not even from the built-in strategy.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The problem is wrong, or does not suit the built-in strategy.
    #[error(transparent)]
    Solve(#[from] SolveError),
    /// A solver panicked.
    #[error("the solver panicked, which is a bug in Lamina")]
    Broke(#[source] tokio::task::JoinError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_text_cannot_fill_an_event_or_forge_a_line() {
        let text = brief(&format!("a\nb{}", "→".repeat(1000)));
        assert!(text.starts_with("a b→"), "{text}");
        assert_eq!(text.chars().count(), MAX_TEXT + 1);
        assert_eq!(brief("short"), "short");
    }

    #[test]
    fn the_first_faults_are_named_and_the_others_counted() {
        let PluginError::Wrong(text) = PluginError::wrong(&["a", "b", "c", "d", "e"]) else {
            panic!("another kind");
        };
        assert_eq!(text, "a; b; c; and 2 more");
    }
}
