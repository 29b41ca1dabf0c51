use crate::serve::hop::{CallError, HopError};
use crate::serve::routes::LookupError;
use lamina_crds::Hop;
use lamina_model::{DataType, ShapeError, UnknownDataType};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Advice with UNAVAILABLE, in milliseconds.
const RETRY_AFTER_MS: &str = "500";

/// A request is not what the model takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InputError {
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error("unknown input `{name}`; model `{model}` takes: {takes}")]
    Unknown {
        name: String,
        model: String,
        takes: String,
    },
    #[error("missing input `{name}`; model `{model}` takes: {takes}")]
    Missing {
        name: String,
        model: String,
        takes: String,
    },
    #[error("{kind} `{name}` is named twice")]
    Twice { kind: &'static str, name: String },
    #[error("input `{name}`: {reason}")]
    DataType {
        name: String,
        reason: UnknownDataType,
    },
    #[error(
        "input `{name}`: BYTES tensors cannot be sent to a TorchScript model; encode them first"
    )]
    Bytes { name: String },
    #[error("{inputs} inputs and {raw} raw_input_contents; send raw contents for all or for none")]
    RawCount { inputs: usize, raw: usize },
    #[error("input `{name}` has typed contents beside raw_input_contents; send one of them")]
    Both { name: String },
    #[error("input `{name}`: {datatype} travels only in raw_input_contents")]
    OnlyRaw { name: String, datatype: DataType },
    #[error("input `{name}`: elements of {datatype} travel in {field}, got {other}")]
    Field {
        name: String,
        datatype: DataType,
        field: &'static str,
        other: &'static str,
    },
    #[error("input `{name}`: {value} does not fit into {datatype}")]
    Range {
        name: String,
        datatype: DataType,
        value: i64,
    },
    #[error("unknown output `{name}`; model `{model}` gives: {gives}")]
    UnknownOutput {
        name: String,
        model: String,
        gives: String,
    },
    #[error(
        "`{parameter}` of tensor `{tensor}` is not supported; send and take tensors in messages"
    )]
    Extension {
        tensor: String,
        parameter: &'static str,
    },
}

/// Why a try gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Setback {
    #[error(transparent)]
    Hop(#[from] HopError),
    #[error("revision {0} was dropped")]
    Abandoned(i64),
    #[error("no revision serves")]
    NotServing,
    #[error("{0}")]
    Entry(String),
}

/// Why a client got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FrontError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("model `{model}` has no version `{version}`; leave it out or ask for version 1")]
    Version { model: String, version: String },
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("model `{0}` is known but does not serve yet; try again")]
    NotServing(String),
    #[error(
        "{node} is not the entry of model `{model}` but was forwarded a request as if it were; \
         {} is, try again", .entry.node
    )]
    Loop {
        node: String,
        model: String,
        entry: Hop,
    },
    #[error(transparent)]
    Hop(#[from] HopError),
    #[error(transparent)]
    Relay(#[from] CallError),
    #[error("no answer before the deadline after {tries} tries; at last: {last}")]
    OutOfTime { tries: u32, last: Setback },
    #[error("the path gave no output `{0}`; please report this model")]
    NoOutput(String),
}

impl FrontError {
    /// The one map from what happened to what clients are told.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Lookup(LookupError::Unknown { .. }) | Self::Version { .. } => Code::NotFound,
            Self::Lookup(LookupError::Ambiguous { .. }) => Code::InvalidArgument,
            Self::Input(InputError::Extension { .. }) => Code::Unimplemented,
            Self::Input(_) => Code::InvalidArgument,
            Self::NotServing(_) | Self::Loop { .. } => Code::Unavailable,
            Self::Hop(error) => error.code(),
            Self::Relay(error) => error.code(),
            Self::OutOfTime { .. } => Code::DeadlineExceeded,
            Self::NoOutput(_) => Code::Internal,
        }
    }
}

impl From<FrontError> for Status {
    fn from(error: FrontError) -> Self {
        let mut status = Self::new(error.code(), error.to_string());
        if status.code() == Code::Unavailable {
            let advice = MetadataValue::from_static(RETRY_AFTER_MS);
            status.metadata_mut().insert("retry-after-ms", advice);
        }
        status
    }
}
