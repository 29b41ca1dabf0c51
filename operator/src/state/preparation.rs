//! The progress of preparing a model.

use lamina_crds::dnn_model::{ProfileSummary, Progress};

/// The progress of preparing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Preparation {
    /// The manifest satisfies the spec and every block is in the store.
    Ready {
        /// Its profile.
        profile: ProfileSummary,
        /// It was completed just now.
        fresh: bool,
    },
    /// A step is running.
    Working {
        /// The step.
        step: Step,
        /// Its progress.
        progress: Option<Progress>,
        /// What it waits for, for people.
        message: String,
    },
    /// It failed.
    Failed {
        /// A reason of [`lamina_crds::reasons`].
        reason: &'static str,
        /// What happened and what to do.
        message: String,
        /// Only a change of the spec can help.
        permanent: bool,
        /// It failed just now.
        fresh: bool,
    },
}

/// A step of preparing, as the columns show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The file is being fetched.
    Fetching,
    /// It is cut, and the cuts are checked.
    Slicing,
    /// Blocks are measured and stored.
    Profiling,
}

impl Step {
    /// The step that an agent reports.
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
