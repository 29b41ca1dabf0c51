use crate::tensor::checked_bytes;
use crate::{DataType, Digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the manifest's format; a reader refuses a newer one.
pub const MANIFEST_VERSION: u32 = 1;

/// How a model was cut, from the best way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rung {
    /// Cut as it is, where one tensor alone is live.
    Direct,
    /// Cut with several live values (tensors, scalars, lists) on the wire.
    Typed,
    /// Traced again inside libtorch, proved equal, then cut.
    Retraced,
    /// Left in one piece; `rung_reason` says why.
    Whole,
}

/// A named value with its type and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueSpec {
    /// Name, unique in the model.
    pub name: String,
    /// Element type.
    pub datatype: DataType,
    /// Shape; -1 in the first place where any batch size is taken.
    pub shape: Vec<i64>,
}

impl ValueSpec {
    /// Bytes of this value at `batch`; `None` on overflow.
    pub fn bytes(&self, batch: u64) -> Option<u64> {
        let batch = i64::try_from(batch).ok()?;
        let shape: Vec<i64> = self
            .shape
            .iter()
            .map(|&d| if d == -1 { batch } else { d })
            .collect();
        checked_bytes(self.datatype, &shape)
    }
}

/// The range inside which inputs are drawn for checks and probes. Token ids,
/// for one, must stay inside a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueRange {
    /// Smallest value drawn.
    pub min: f64,
    /// Largest value drawn.
    pub max: f64,
}

/// An input as the user declares it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputSpec {
    /// Name, datatype and shape.
    pub value: ValueSpec,
    /// Range of its values; a standard normal for floats and 0..=1 for others
    /// where absent.
    pub range: Option<ValueRange>,
}

/// A measured time in seconds: median with its spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seconds {
    /// Median.
    pub p50: f64,
    /// Tenth percentile.
    pub p10: f64,
    /// Ninetieth percentile.
    pub p90: f64,
}

/// One block: the smallest piece that is placed, stored as one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Content address of the block's `.pt` file.
    pub digest: Digest,
    /// Size of that file in bytes.
    pub file_bytes: u64,
    /// Bytes of the weights inside.
    pub weight_bytes: u64,
    /// Largest sum of live activations while it runs at batch 1, in bytes.
    pub peak_activation_bytes: u64,
    /// Floating-point operations at batch 1, two per multiply-add.
    pub flops: u64,
    /// Time at batch 1 on the host that prepared it, one thread, attributed
    /// inside the merged and optimized whole.
    pub time: Seconds,
    /// Additional time when the model is cut behind this block, on the same
    /// host: what merging and optimizing across the cut would have saved.
    pub cut_penalty_seconds: f64,
    /// Names of the values it takes, in the order of `forward`.
    pub inputs: Vec<String>,
    /// The values it gives, in order; those of the last block are the model's.
    pub outputs: Vec<ValueSpec>,
}

/// Outcome of comparing the chain of blocks with the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundaryCheck {
    /// Boundary values compared, the outputs included.
    pub compared: u32,
    /// Largest absolute difference seen; 0 is bit for bit.
    pub max_abs_diff: f64,
    /// Largest absolute difference between the answers to the two inputs that
    /// were drawn. 0 means that they could not have told a wrong chain.
    pub telling_diff: f64,
}

/// A prepared model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// SHA-256 of the source file.
    pub source: Digest,
    /// What wrote the blocks and can run them: `libtorch 2.13.0`.
    pub runtime: String,
    /// How it was cut.
    pub rung: Rung,
    /// Why not on a better rung.
    pub rung_reason: Option<String>,
    /// The model's inputs in order of `forward`.
    pub inputs: Vec<ValueSpec>,
    /// The model's outputs in order.
    pub outputs: Vec<ValueSpec>,
    /// The blocks in order of execution.
    pub blocks: Vec<Block>,
    /// Content address of the [`crate::Probe`].
    pub probe: Digest,
    /// Size of the probe's file.
    pub probe_bytes: u64,
    /// The equality check.
    pub check: BoundaryCheck,
    /// GFLOP/s of the reference benchmark's fastest round on the host that
    /// prepared it, which makes its times comparable with another host's.
    pub prepared_gflops: f64,
}

/// The manifest contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ManifestError {
    #[error("the manifest has format {0}, this version reads up to {MANIFEST_VERSION}")]
    Version(u32),
    #[error("the manifest has no block")]
    Empty,
    #[error("block {block} takes `{value}`, which nothing before it gives")]
    UnknownValue { block: usize, value: String },
    #[error("block {block}: {field} is negative or not a number")]
    Time { block: usize, field: &'static str },
    #[error("value `{0}` has a size that overflows")]
    Size(String),
    #[error("the last block's outputs are not the model's")]
    Outputs,
}

impl Manifest {
    /// Checks what later steps rely on.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.version > MANIFEST_VERSION {
            return Err(ManifestError::Version(self.version));
        }
        let last = self.blocks.last().ok_or(ManifestError::Empty)?;
        let mut known: BTreeMap<&str, &ValueSpec> = BTreeMap::new();
        for value in &self.inputs {
            known.insert(&value.name, value);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            if let Some(value) = block
                .inputs
                .iter()
                .find(|v| !known.contains_key(v.as_str()))
            {
                return Err(ManifestError::UnknownValue {
                    block: i,
                    value: value.clone(),
                });
            }
            for (field, seconds) in [
                ("time", block.time.p50),
                ("cutPenaltySeconds", block.cut_penalty_seconds),
            ] {
                if !(seconds.is_finite() && seconds >= 0.0) {
                    return Err(ManifestError::Time { block: i, field });
                }
            }
            known.extend(block.outputs.iter().map(|v| (v.name.as_str(), v)));
        }
        if let Some(value) = known.values().find(|v| v.bytes(1).is_none()) {
            return Err(ManifestError::Size(value.name.clone()));
        }
        if last.outputs != self.outputs {
            return Err(ManifestError::Outputs);
        }
        Ok(())
    }

    /// Values that cross the boundary before block `boundary`: what a host that
    /// runs `boundary..` must be given. 0 gives the model's inputs, the number of
    /// blocks its outputs.
    pub fn live_at(&self, boundary: usize) -> Vec<&ValueSpec> {
        if boundary >= self.blocks.len() {
            return self.outputs.iter().collect();
        }
        let needed: Vec<&str> = self.blocks[boundary..]
            .iter()
            .flat_map(|b| b.inputs.iter().map(String::as_str))
            .collect();
        let given_before = self.inputs.iter().chain(
            self.blocks[..boundary]
                .iter()
                .flat_map(|b| b.outputs.iter()),
        );
        given_before
            .filter(|v| needed.contains(&v.name.as_str()))
            .collect()
    }

    /// Bytes that cross the boundary before block `boundary` at batch 1.
    pub fn live_bytes(&self, boundary: usize) -> u64 {
        self.live_at(boundary)
            .iter()
            .filter_map(|v| v.bytes(1))
            .sum()
    }
}

#[cfg(test)]
mod tests;
