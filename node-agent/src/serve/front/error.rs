use crate::serve::access::Denial;
use crate::serve::exits::AskedError;
use crate::serve::hop::{CallError, HopError, advise};
use lamina_model::{DataType, FilesError, ShapeError, UnknownDataType};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Marks the answer of a host that is not the entry of a forwarded request, so that the sender
/// looks for another.
pub(super) const NOT_ENTRY: &str = "lamina-not-entry";
/// The longest message for clients.
const MESSAGE_BYTES: usize = 2 << 10;
/// Retry delay sent with UNAVAILABLE.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A request does not fit the model.
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
    #[error(
        "inputs `{one}` and `{other}` hold batches of {of_one} and {of_other}; send as many rows \
         in each"
    )]
    Batches {
        one: String,
        of_one: i64,
        other: String,
        of_other: i64,
    },
    #[error(
        "a batch of {rows} is larger than the {most} rows for which model `{model}` has memory \
         here; send it in parts"
    )]
    Batch { model: String, rows: u64, most: u64 },
    #[error(
        "model `{model}` was updated: revision {revision} takes {takes} and gives {gives}, which \
         this request does not fit: {reason}"
    )]
    Updated {
        model: String,
        revision: i64,
        takes: String,
        gives: String,
        reason: Box<InputError>,
    },
    #[error("{kind} `{name}` is named twice")]
    Twice { kind: &'static str, name: String },
    #[error("input `{name}`: {reason}")]
    DataType {
        name: String,
        reason: UnknownDataType,
    },
    #[error(
        "input `{name}`: BYTES tensors cannot be sent to a TorchScript model; encode them first, \
         or declare the input as an image"
    )]
    Bytes { name: String },
    #[error(
        "input `{name}` takes files: BYTES of shape [N], one element for each; got {datatype} \
         {shape:?}"
    )]
    NoFiles {
        name: String,
        datatype: String,
        shape: Vec<i64>,
    },
    #[error(
        "input `{name}`: each element needs four bytes of length, little-endian, before its one \
         or more bytes"
    )]
    Elements { name: String },
    #[error(
        "input `{name}`: {got} files came, but its shape says {wanted}; JSON cannot carry a file, \
         so send it as binary data (binary_data_size)"
    )]
    FileCount {
        name: String,
        wanted: i64,
        got: usize,
    },
    #[error("input `{name}`: {error}")]
    Files { name: String, error: FilesError },
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
    #[error(transparent)]
    Exit(#[from] AskedError),
    #[error("`timeout` must be a number of microseconds")]
    Timeout,
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
    #[error("{0}")]
    Entry(String),
}

/// Why a client got no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FrontError {
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(
        "unknown model `{0}`; call models of other namespaces as NAMESPACE/NAME, as `kubectl get \
         dnnmodels --all-namespaces` has them"
    )]
    Unknown(String),
    #[error("model `{model}` has no version `{version}`; leave it out or ask for version 1")]
    Version { model: String, version: String },
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("model `{0}` is known but does not serve yet; try again")]
    NotServing(String),
    #[error("model `{model}` does not serve: {reason}")]
    Failed { model: String, reason: String },
    #[error("model `{model}` refuses requests: {reason}")]
    Refused { model: String, reason: String },
    #[error(
        "whether there is a model `{0}` is not known yet: the operator has not spoken; try again"
    )]
    Unheard(String),
    #[error("too many requests wait for models that do not serve yet; model `{0}` is one")]
    Crowded(String),
    #[error("{node} is not an entry of model `{model}` at the moment; try again")]
    NotEntry { node: String, model: String },
    #[error(transparent)]
    Hop(#[from] HopError),
    #[error(transparent)]
    Relay(#[from] CallError),
    #[error("no answer before the deadline after {tries} attempts; last error: {last}")]
    OutOfTime { tries: u32, last: Setback },
    #[error("the path gave no output `{0}`; please report this model")]
    NoOutput(String),
    #[error(
        "the path gave output `{name}` as {datatype} {shape:?} in {bytes} bytes, not as {} {:?}; \
         please report this model", declared.0, declared.1
    )]
    Output {
        name: String,
        datatype: String,
        shape: Vec<i64>,
        bytes: usize,
        declared: (DataType, Vec<i64>),
    },
    #[error(
        "models are not loaded and unloaded here: apply or delete a DnnModel, and the operator \
         has the hosts follow"
    )]
    Repository,
}

impl FrontError {
    /// Maps each error to the code for clients.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Unknown(_) | Self::Version { .. } => Code::NotFound,
            Self::Denied(denial) => denial.code(),
            Self::Input(error) => error.code(),
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::NotServing(_)
            | Self::Failed { .. }
            | Self::Unheard(_)
            | Self::NotEntry { .. } => Code::Unavailable,
            Self::Crowded(_) => Code::ResourceExhausted,
            Self::Hop(error) => error.code(),
            Self::Relay(error) => error.code(),
            Self::OutOfTime { .. } => Code::DeadlineExceeded,
            Self::NoOutput(_) | Self::Output { .. } => Code::Internal,
            Self::Repository => Code::Unimplemented,
        }
    }
}

impl FrontError {
    /// When the same request may succeed, if that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let said = match self {
            Self::Denied(denial) => denial.retry_after(),
            Self::Hop(error) => error.retry_after(),
            Self::Relay(error) => error.retry_after(),
            _ => None,
        };
        said.or_else(|| (self.code() == Code::Unavailable).then_some(RETRY_AFTER))
    }
}

impl InputError {
    const fn code(&self) -> Code {
        match self {
            Self::Extension { .. } => Code::Unimplemented,
            _ => Code::InvalidArgument,
        }
    }
}

/// A message travels in a header, and names in it come from the client.
fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        message.push('…');
    }
    message
}

impl From<FrontError> for Status {
    fn from(error: FrontError) -> Self {
        if let FrontError::Denied(denial) = error {
            return denial.into();
        }
        let mut status = Self::new(error.code(), shortened(error.to_string()));
        if matches!(error, FrontError::NotEntry { .. }) {
            let mark = MetadataValue::from_static("1");
            status.metadata_mut().insert(NOT_ENTRY, mark);
        }
        advise(&mut status, error.retry_after());
        status
    }
}
