use crate::ffi::TorchError;
use crate::message::OTHER_WAY;
use lamina_model::{DataType, InputSpec, ShapeError};
use std::path::PathBuf;

/// Why a model could not be prepared. A model that cannot be cut is not an error: it becomes one
/// block ([`lamina_model::Rung::Whole`]).
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The file is missing, damaged, or not a TorchScript archive.
    #[error("{path} is not a TorchScript model: {reason}; export it with torch.jit.save", path = path.display())]
    NotTorchScript {
        /// The file.
        path: PathBuf,
        /// libtorch's message, without its backtrace.
        reason: String,
    },
    /// The declared inputs do not fit the model.
    #[error("the declared inputs ({declared}) do not fit the model: {reason}")]
    InputMismatch {
        /// The inputs as declared, `image FP32 [-1, 3, 224, 224]`.
        declared: String,
        /// The mismatch.
        reason: String,
    },
    /// The model is TorchScript but cannot be served.
    #[error("the model cannot be served: {reason}")]
    Unsupported {
        /// The reason.
        reason: String,
    },
    /// The model's `lamina.json` is broken, or contradicts the model.
    #[error("the model's lamina.json is wrong: {reason}; export it again with the lamina package")]
    Metadata {
        /// The field and its mistake.
        reason: String,
    },
    /// The chain of blocks does not compute the same as the model.
    #[error(
        "the blocks do not reproduce the model: `{value}` differs by {max_abs_diff:e}; please report this model"
    )]
    Unequal {
        /// Name of the first value that differs.
        value: String,
        /// Largest absolute difference.
        max_abs_diff: f64,
    },
    /// No space for the blocks.
    #[error("no space left in {dir} for a block of {needed_bytes} bytes", dir = dir.display())]
    DiskFull {
        /// Folder for the blocks.
        dir: PathBuf,
        /// Bytes of the block that did not fit.
        needed_bytes: u64,
    },
    /// Reading the model or writing the blocks failed.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// libtorch failed unexpectedly.
    #[error("libtorch failed while {step}: {reason}")]
    Torch {
        /// The step that failed.
        step: &'static str,
        /// libtorch's message, without its backtrace.
        reason: String,
    },
}

impl PrepareError {
    pub(crate) fn input_mismatch(inputs: &[InputSpec], reason: String) -> Self {
        let declared: Vec<String> = inputs
            .iter()
            .map(|i| {
                let shape = i.value.shape_text();
                format!("{} {} {shape}", i.value.name, i.value.datatype)
            })
            .collect();
        let help = if tells_of_an_index(&reason) {
            INDEX_HELP
        } else {
            ""
        };
        Self::InputMismatch {
            declared: declared.join(", "),
            reason: reason + help,
        }
    }
}

/// Advice for a random number that is not a valid index.
const INDEX_HELP: &str = "; whole numbers must stay inside the model's tables: declare the \
    input's `range` (`NAME:INT64:SHAPE:MIN:MAX` on the command line), or, where one range does \
    not fit the whole tensor, give requests of your own as `samples`";

/// Whether libtorch stopped at an index out of range.
pub fn tells_of_an_index(reason: &str) -> bool {
    const WORDS: [&str; 6] = [
        // Embeddings, index_select.
        "index out of range in self",
        // gather, scatter, indexing by a tensor.
        "is out of bounds for dimension",
        // embedding_bag.
        "which is not in the valid range",
        // take.
        "out of range: tried to access index",
        // select.
        "out of range for tensor of size",
        // one_hot.
        "Class values must be ",
    ];
    WORDS.iter().any(|words| reason.contains(words))
}

/// Why blocks could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No block was named.
    #[error("a slice needs at least one block")]
    NoBlocks,
    /// A file is missing, damaged or not a block.
    #[error("cannot load block {path}: {reason}", path = path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// libtorch's message, without its backtrace.
        reason: String,
    },
    /// The blocks are not consecutive.
    #[error("the blocks do not form a chain: {reason}")]
    Chain {
        /// The mismatch.
        reason: String,
    },
    /// The first runs failed.
    #[error("the slice fails on its first run: {reason}")]
    WarmUp {
        /// Cause.
        reason: String,
    },
}

/// Why a forward failed. The slice stays usable.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Wrong number of inputs.
    #[error("the slice takes {expected} inputs, got {got}")]
    InputCount {
        /// Expected number.
        expected: usize,
        /// Given number.
        got: usize,
    },
    /// An input does not fit.
    #[error(transparent)]
    Input(#[from] ShapeError),
    /// The model returned a tensor that Lamina does not support.
    #[error("output {index} has a datatype that cannot be sent: {datatype}; supported: {supported}", supported = supported())]
    OutputType {
        /// Position of the output.
        index: usize,
        /// libtorch's name of the type.
        datatype: String,
    },
    /// The request takes another path than those for which the model was cut, which its blocks
    /// cannot follow.
    #[error("{reason}")]
    OtherWay {
        /// The difference.
        reason: String,
    },
    /// The forward threw an exception.
    #[error("the forward failed: {reason}")]
    Forward {
        /// libtorch's message, without its backtrace.
        reason: String,
    },
}

impl RunError {
    /// The error for an exception of a forward.
    pub(crate) fn thrown(error: &TorchError) -> Self {
        let reason = error.reason();
        if reason.starts_with(OTHER_WAY) {
            Self::OtherWay { reason }
        } else {
            Self::Forward { reason }
        }
    }
}

fn supported() -> String {
    DataType::ALL.map(|d| d.to_string()).join(", ")
}
