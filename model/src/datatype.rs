use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Element type of a tensor, named as in the Open Inference Protocol v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)] // the names say it all
pub enum DataType {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
}

/// The name is not a datatype that Lamina supports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown datatype `{0}`; known: BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64"
)]
pub struct UnknownDataType(pub String);

impl DataType {
    /// Every datatype.
    pub const ALL: [Self; 10] = [
        Self::Bool,
        Self::Uint8,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
    ];

    /// Bytes per element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Int32 | Self::Fp32 => 4,
            Self::Int64 | Self::Fp64 => 8,
        }
    }

    /// Whether its elements are rounded numbers.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::Fp16 | Self::Bf16 | Self::Fp32 | Self::Fp64)
    }

    /// Bytes of a tensor of `shape`; `None` if a dimension is negative or the product overflows.
    pub fn checked_bytes(self, shape: &[i64]) -> Option<u64> {
        let mut bytes = self.size_bytes() as u64;
        for &dim in shape {
            bytes = bytes.checked_mul(u64::try_from(dim).ok()?)?;
        }
        Some(bytes)
    }

    /// The protocol's name, `FP32`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DataType {
    type Err = UnknownDataType;

    fn from_str(name: &str) -> Result<Self, UnknownDataType> {
        Self::ALL
            .into_iter()
            .find(|d| d.as_str() == name)
            .ok_or_else(|| UnknownDataType(name.to_owned()))
    }
}

/// An encoding of FP32 values on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireType {
    /// 16 bits with a small range and more digits.
    Fp16,
    /// 16 bits with the range of FP32 and fewer digits.
    Bf16,
    /// 256 even steps from a tensor's smallest value to its largest.
    Int8,
}

impl WireType {
    /// All encodings.
    pub const ALL: [Self; 3] = [Self::Fp16, Self::Bf16, Self::Int8];

    /// Bytes of a value that takes `bytes` as FP32.
    pub const fn bytes(self, bytes: u64) -> u64 {
        match self {
            Self::Fp16 | Self::Bf16 => bytes / 2,
            Self::Int8 => bytes / 4,
        }
    }

    /// Its name in specs, `fp16`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for WireType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_in_text_and_json() {
        for d in DataType::ALL {
            assert_eq!(d.as_str().parse::<DataType>(), Ok(d));
            let json = serde_json::to_string(&d).unwrap();
            assert_eq!(json, format!("\"{d}\""));
        }
        assert!("float".parse::<DataType>().is_err());
    }
}
