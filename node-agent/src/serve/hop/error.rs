use super::{CallError, TensorError};
use crate::serve::engine::EngineError;
use crate::serve::exits::{MeetError, RulesError};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// The header with the retry delay in milliseconds.
const RETRY_AFTER: &str = "retry-after-ms";

/// Why a request got no answer from here on.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum HopError {
    #[error(
        "{node} does not hold segment {segment} of revision {revision}; ask again on the current route"
    )]
    NotHeld {
        node: String,
        revision: i64,
        segment: u32,
    },
    #[error("segment {segment} on {node}: {reason}")]
    Tensor {
        node: String,
        segment: u32,
        reason: TensorError,
    },
    #[error("segment {segment} on {node}: {reason}")]
    Engine {
        node: String,
        segment: u32,
        reason: EngineError,
    },
    #[error(
        "segment {segment} on {node} gave {got} values, its slice promises {expected}; please report this model"
    )]
    Outputs {
        node: String,
        segment: u32,
        expected: usize,
        got: usize,
    },
    #[error("segment {segment} on {node}: exits: {reason}")]
    Rules {
        node: String,
        segment: u32,
        reason: RulesError,
    },
    #[error("segment {segment} on {node}: {reason}; please report this model")]
    Exit {
        node: String,
        segment: u32,
        reason: MeetError,
    },
    #[error("the deadline passed on {node} while segment {segment} waited or computed")]
    Late { node: String, segment: u32 },
    #[error(transparent)]
    Call(#[from] CallError),
}

impl HopError {
    /// Maps each error to the code for callers.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::NotHeld { .. } => Code::FailedPrecondition,
            Self::Tensor { .. } | Self::Rules { .. } => Code::InvalidArgument,
            Self::Engine { reason, .. } => match reason {
                EngineError::Input(_) | EngineError::Value(_) => Code::InvalidArgument,
                EngineError::Busy { .. }
                | EngineError::Crowded { .. }
                | EngineError::Memory(_)
                | EngineError::TooLarge { .. } => Code::ResourceExhausted,
                EngineError::Late => Code::DeadlineExceeded,
                EngineError::NoWorker(_) | EngineError::Quarantined { .. } => Code::Unavailable,
                EngineError::Load(_)
                | EngineError::Forward(_)
                | EngineError::Crashed(_)
                | EngineError::Stuck(_) => Code::Internal,
            },
            Self::Outputs { .. } | Self::Exit { .. } => Code::Internal,
            Self::Late { .. } => Code::DeadlineExceeded,
            Self::Call(error) => error.code(),
        }
    }
}

impl HopError {
    /// When a retry may find room, if a host on the path said so.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Engine { reason, .. } => reason.retry_after(),
            Self::Call(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl CallError {
    /// As [`HopError::code`].
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Refused { code, .. } => *code,
            Self::Late { .. } => Code::DeadlineExceeded,
            Self::Lost { .. } => Code::Unavailable,
        }
    }

    /// As [`HopError::retry_after`].
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Late { .. } | Self::Lost { .. } => None,
        }
    }
}

/// Adds the retry delay to `status`.
pub(crate) fn advise(status: &mut Status, retry_after: Option<Duration>) {
    if let Some(after) = retry_after {
        let millis = MetadataValue::from(after.as_millis().try_into().unwrap_or(u64::MAX));
        status.metadata_mut().insert(RETRY_AFTER, millis);
    }
}

/// The retry delay in `status`.
pub(super) fn advice(status: &Status) -> Option<Duration> {
    let said = status.metadata().get(RETRY_AFTER)?.to_str().ok()?;
    said.parse().ok().map(Duration::from_millis)
}

impl From<HopError> for Status {
    fn from(error: HopError) -> Self {
        let mut status = Self::new(error.code(), error.to_string());
        advise(&mut status, error.retry_after());
        status
    }
}
