//! A prepared model as data: its blocks, the values at each cut, the cost of each
//! block, and the tensors on the wire.
//!
//! Preparing (in `torchscript/`) writes these types, the operator reads them to
//! place blocks, agents read them to check every tensor before a forward. No
//! torch and no I/O here, so that the operator stays a small static binary.

mod arguments;
mod binding;
mod datatype;
mod digest;
mod manifest;
mod operators;
mod probe;
mod samples;
mod sized;
mod sizes;
mod tensor;
pub mod wire;

pub use arguments::{Declared, FixedArgument, divided};
pub use binding::{Binding, Constant};
pub use datatype::{DataType, UnknownDataType, WireType};
pub use digest::{Digest, DigestError};
pub use manifest::{
    Block, BoundaryCheck, EncodingErrors, Exit, ExitCriterion, ExitExpectation, ExitRow, InputSpec,
    MANIFEST_BYTES, MANIFEST_VERSION, Manifest, ManifestError, OutputStructure, Rung, Seconds,
    ValueKind, ValueRange, ValueSpec,
};
pub use operators::{OperatorRefusal, method_refusal, operator_refusal};
pub use probe::{Probe, ProbeError, tensors_by_name};
pub use samples::{MOST_SAMPLES, SAMPLES_BYTES, SamplesError, samples};
pub use sized::{check_sizes, sizes_of};
pub use sizes::{Bounds, FreeSize, MOST_SIZES, SizeError};
pub use tensor::{ShapeError, Tensor};
