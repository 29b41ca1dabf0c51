//! How far preparing a model is.

use lamina_crds::dnn_model::{ProfileSummary, Progress};

/// How far preparing is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Preparation {
    /// The manifest answers the spec and every block is in the store.
    Ready {
        /// What it found.
        profile: ProfileSummary,
        /// It was found just now.
        fresh: bool,
    },
    /// A step is at work.
    Working {
        /// The step.
        step: Step,
        /// How far it is.
        progress: Option<Progress>,
        /// What is awaited, for people.
        message: String,
    },
    /// It failed.
    Failed {
        /// A reason of [`lamina_crds::reasons`].
        reason: &'static str,
        /// What happened and what to do.
        message: String,
        /// Only another spec can help.
        permanent: bool,
        /// It failed just now.
        fresh: bool,
    },
}

/// A step of preparing, as the columns show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The file is on its way.
    Fetching,
    /// It is cut, and the cuts are checked.
    Slicing,
    /// Blocks are measured and stored.
    Profiling,
}

impl Step {
    /// The step that an agent speaks of.
    pub(crate) fn of(agents_word: &str) -> Self {
        match agents_word {
            "Slicing" | "Checking" => Self::Slicing,
            "Profiling" | "Storing" => Self::Profiling,
            _ => Self::Fetching,
        }
    }

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fetching => "Fetching",
            Self::Slicing => "Slicing",
            Self::Profiling => "Profiling",
        }
    }
}
