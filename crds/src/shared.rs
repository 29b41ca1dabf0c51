use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A host to connect to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Name of the ComputeNode.
    pub node: String,
    /// Address of its agent, `10.0.0.7:8001`.
    pub address: String,
}

/// A tensor by name, type and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TensorSpec {
    /// Name of the tensor.
    pub name: String,
    /// Element type as in the Open Inference Protocol: `FP32`, `UINT8`, `INT64`, …
    pub datatype: String,
    /// Shape; -1 in a place of `sizes`, and in any other place where the batch is.
    pub shape: Vec<i64>,
    /// Its free dimensions beside the batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub sizes: Vec<TensorSize>,
}

/// A dimension whose size follows the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TensorSize {
    /// Place in the shape, from 0.
    pub dimension: u32,
    /// The size for which bytes, times and memory are told.
    pub typical: i64,
    /// What requests may have there; absent for values inside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<SizeBounds>,
    /// Where each row along it is a file, which clients send as BYTES: the bytes that a file
    /// may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
}

/// The sizes that a dimension of an input may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizeBounds {
    /// How it is called. Dimensions of one name have one size in each request.
    pub name: String,
    /// The smallest size.
    pub min: i64,
    /// The largest size.
    pub max: i64,
    /// Sizes are multiples of this.
    pub step: i64,
}

/// Number format in which a value computed in 32 bits is sent.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum WireType {
    /// 16 bits with a smaller range and more precision.
    Fp16,
    /// 16 bits with the range of FP32 and less precision.
    Bf16,
    /// 8 bits: 256 even steps from a tensor's smallest value to its largest.
    Int8,
}

/// Encoding of values sent from one host to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Encoding {
    /// The number format.
    pub dtype: WireType,
    /// Names of the FP32 values that are encoded; all others are sent unchanged.
    pub values: Vec<String>,
}
