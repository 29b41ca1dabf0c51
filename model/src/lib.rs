//! A prepared model as data: its blocks, the values at each cut, the cost of each
//! block, and the tensors on the wire.
//!
//! Preparing (in `torchscript/`) writes these types, the operator reads them to
//! place blocks, agents read them to check every tensor before a forward. No
//! torch and no I/O here, so that the operator stays a small static binary.

mod ahead;
mod arguments;
mod binding;
mod datatype;
mod digest;
mod images;
mod manifest;
mod operators;
mod probe;
mod samples;
mod sized;
mod sizes;
mod tensor;
pub mod wire;

pub use ahead::{Ahead, prepared_inputs};
pub use arguments::{Declared, Divided, FixedArgument, divided};
pub use binding::{Binding, Constant};
pub use datatype::{DataType, UnknownDataType, WireType};
pub use digest::{Digest, DigestError};
pub use images::{
    Area, DeclaredFiles, DeclaredImage, DeclaredLimits, DeclaredResize, DeclaredTypical, Files,
    FilesError, ImageError, ImageInput, ImageSource, ImageSteps, Interpolation, MOST_SIDE,
    PREPROCESSING_BYTES, Prepared, Preprocessing, PreprocessingError, Resize, file_of_row,
    files_in_rows,
};
pub use manifest::{
    Block, BlockKind, BoundaryCheck, EncodingErrors, Exit, ExitCriterion, ExitExpectation, ExitRow,
    InputSpec, MANIFEST_BYTES, MANIFEST_VERSION, Manifest, ManifestError, OutputStructure,
    PREPROCESSING_VERSION, Rung, Seconds, TORCH_SCRIPT_VERSION, ValueKind, ValueRange, ValueSpec,
};
pub use operators::{OperatorRefusal, method_refusal, operator_refusal};
pub use probe::{Probe, ProbeError, tensors_by_name};
pub use samples::{MOST_SAMPLES, SAMPLES_BYTES, SamplesError, samples};
pub use sized::{check_sizes, sizes_of};
pub use sizes::{Bounds, FreeSize, LENGTH_BYTES, MOST_SIZES, SizeError};
pub use tensor::{ShapeError, Tensor};
