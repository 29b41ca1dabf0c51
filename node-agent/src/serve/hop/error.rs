use super::{CallError, TensorError};
use crate::serve::engine::EngineError;
use crate::serve::exits::{MeetError, RulesError};
use tonic::{Code, Status};

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
    /// The one map from what happened to what callers are told.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::NotHeld { .. } => Code::FailedPrecondition,
            Self::Tensor { .. } | Self::Rules { .. } => Code::InvalidArgument,
            Self::Engine { reason, .. } => match reason {
                EngineError::Input(_) | EngineError::Value(_) => Code::InvalidArgument,
                EngineError::Busy(_) | EngineError::Memory(_) => Code::ResourceExhausted,
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

impl CallError {
    /// As [`HopError::code`].
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Refused(code, _) => *code,
            Self::Late { .. } => Code::DeadlineExceeded,
            Self::Lost { .. } => Code::Unavailable,
        }
    }
}

impl From<HopError> for Status {
    fn from(error: HopError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
