use crate::causes::with_causes;
use lamina_proto::control::PrepareFailed;
use lamina_torchscript::PrepareError;
use serde::{Deserialize, Serialize};

/// Why a model could not be prepared, as conditions name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The source could not be had.
    FetchFailed,
    /// The source is not the declared one.
    ChecksumMismatch,
    /// No TorchScript, or none that can be served.
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
    /// Another try may succeed without a change of the spec.
    pub retryable: bool,
}

impl Reason {
    const fn as_str(self) -> &'static str {
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
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retryable: false,
        }
    }

    pub(super) fn retryable(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            retryable: true,
            ..Self::new(reason, message)
        }
    }
}

impl From<Failure> for PrepareFailed {
    fn from(failure: Failure) -> Self {
        Self {
            reason: failure.reason.as_str().to_owned(),
            message: failure.message,
            retryable: failure.retryable,
        }
    }
}

impl From<&PrepareError> for Failure {
    fn from(error: &PrepareError) -> Self {
        let (reason, retryable) = match error {
            PrepareError::NotTorchScript { .. }
            | PrepareError::Unsupported { .. }
            | PrepareError::Metadata { .. } => (Reason::InvalidModel, false),
            PrepareError::InputMismatch { .. } => (Reason::InputMismatch, false),
            PrepareError::Unequal { .. } | PrepareError::Torch { .. } => {
                (Reason::PrepareFailed, false)
            }
            PrepareError::DiskFull { .. } | PrepareError::Io { .. } => {
                (Reason::PrepareFailed, true)
            }
        };
        Self {
            reason,
            message: with_causes(error),
            retryable,
        }
    }
}
