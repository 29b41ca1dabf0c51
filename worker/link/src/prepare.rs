//! Output of a worker that prepares: one JSON object per line on standard output.

use crate::cell::CellError;
use crate::with_causes;
use lamina_model::Manifest;
use lamina_sandbox::scan::ScanError;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// The current step.
    Progress(Step),
    /// A problem that does not stop it.
    Warning(String),
    /// The last line of a success.
    Manifest(Box<Manifest>),
    /// The last line of a failure.
    Error(Failure),
}

/// A step of preparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which.
    pub step: StepName,
    /// How much of it is done.
    pub done: u64,
    /// The total; 0 if unknown.
    pub total: u64,
}

/// The steps in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it all
pub enum StepName {
    Fetching,
    Slicing,
    Checking,
    Profiling,
    Storing,
}

/// Why a model could not be prepared, as in conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The source could not be fetched.
    FetchFailed,
    /// The source is not the declared one.
    ChecksumMismatch,
    /// Not TorchScript, or a model that cannot be served.
    InvalidModel,
    /// The declared inputs do not fit.
    InputMismatch,
    /// Anything else.
    PrepareFailed,
}

/// Why a job ended without a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For conditions.
    pub reason: Reason,
    /// What happened and what to do.
    pub message: String,
    /// A retry may succeed without a change of the spec.
    pub retryable: bool,
}

impl StepName {
    /// The name, `Slicing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "Fetching",
            Self::Slicing => "Slicing",
            Self::Checking => "Checking",
            Self::Profiling => "Profiling",
            Self::Storing => "Storing",
        }
    }
}

impl Reason {
    /// The name, `InvalidModel`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FetchFailed => "FetchFailed",
            Self::ChecksumMismatch => "ChecksumMismatch",
            Self::InvalidModel => "InvalidModel",
            Self::InputMismatch => "InputMismatch",
            Self::PrepareFailed => "PrepareFailed",
        }
    }
}

impl Failure {
    /// A permanent one.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retryable: false,
        }
    }

    /// A transient one.
    pub fn retryable(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            retryable: true,
            ..Self::new(reason, message)
        }
    }
}

impl From<&CellError> for Failure {
    fn from(error: &CellError) -> Self {
        let text = with_causes(error);
        match error {
            CellError::Scan {
                error: ScanError::Read(_),
                ..
            }
            | CellError::Path { .. }
            | CellError::NoFile { .. }
            | CellError::NoFolder { .. } => Self::retryable(Reason::PrepareFailed, text),
            CellError::Scan { .. } | CellError::Block { .. } => {
                Self::new(Reason::InvalidModel, text)
            }
            // Another host or another setting may work.
            CellError::Lock(_) => Self::retryable(Reason::PrepareFailed, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_sandbox::lock::{LockError, Missing};
    use std::io;

    #[test]
    fn a_refused_model_is_invalid_and_a_host_that_cannot_lock_up_may_learn_it() {
        let scan = |error| CellError::Scan {
            path: "m.pt".into(),
            error,
        };
        let failure = Failure::from(&scan(ScanError::Empty));
        assert_eq!(failure.reason, Reason::InvalidModel);
        assert!(!failure.retryable);
        let unreadable = Failure::from(&scan(ScanError::Read(io::Error::other("disk"))));
        assert_eq!(unreadable.reason, Reason::PrepareFailed);
        assert!(unreadable.retryable);
        assert!(unreadable.message.ends_with("disk"), "{unreadable}");
        let missing = Missing {
            what: "Landlock",
            why: "not there".into(),
        };
        let error = CellError::Lock(LockError::Unsupported(vec![missing]).into());
        let failure = Failure::from(&error);
        assert_eq!(failure.reason, Reason::PrepareFailed);
        assert!(failure.retryable);
        assert!(failure.message.contains("no Landlock (not there)"));
        assert!(failure.message.contains("agent.allowUnsandboxed"));
    }
}
