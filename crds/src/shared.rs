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
    /// Shape; -1 in the first place takes any batch size.
    pub shape: Vec<i64>,
}
