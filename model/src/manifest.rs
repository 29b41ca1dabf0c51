use crate::{Binding, DataType, Digest, FreeSize, WireType};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Newest version of the manifest's format; a reader refuses a newer one.
pub const MANIFEST_VERSION: u32 = PREPROCESSING_VERSION;
/// Version of manifests all of whose blocks are TorchScript.
pub const TORCH_SCRIPT_VERSION: u32 = 1;
/// Version of manifests with a block that prepares inputs.
pub const PREPROCESSING_VERSION: u32 = 2;

/// Most bytes of a manifest as JSON: ten thousand blocks fit. A host may send anything as one.
pub const MANIFEST_BYTES: u64 = 16 << 20;

/// Most blocks whose encoding errors are read.
const MOST_BLOCKS: usize = 65_536;

/// How a model was cut, from the best way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rung {
    /// Cut as it is, where a single tensor is live.
    Direct,
    /// Cut with several live values (tensors, scalars, lists) on the wire.
    Typed,
    /// Traced again inside libtorch, compared, then cut.
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
    /// Shape; -1 for the dimensions in `sizes`, and otherwise for the batch.
    pub shape: Vec<i64>,
    /// Its free dimensions besides the batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<FreeSize>,
}

impl ValueSpec {
    /// Bytes of this value at `batch` and its typical sizes; `None` on overflow.
    pub fn bytes(&self, batch: u64) -> Option<u64> {
        let batch = i64::try_from(batch).ok()?;
        let typical = self.typical_shape();
        let shape: Vec<i64> = typical
            .into_iter()
            .map(|d| if d == -1 { batch } else { d })
            .collect();
        self.datatype.checked_bytes(&shape)
    }
}

/// The range of random inputs for checks and probes. Token ids, for example, must stay inside a
/// vocabulary.
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
    /// Range of its values; by default standard normal for floats and 0..=1 for others.
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

/// The nest of a model's outputs, before they were flattened into named tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum OutputStructure {
    /// One of [`Manifest::outputs`].
    #[serde(rename_all = "camelCase")]
    Value {
        /// Its name.
        name: String,
        /// What the tensor represents.
        of: ValueKind,
    },
    /// `None`, which needs no tensor.
    None,
    /// A tuple.
    Tuple {
        /// Names of its fields, in order; empty if there are none.
        names: Vec<String>,
        /// Its fields.
        fields: Vec<Self>,
    },
    /// A list.
    List {
        /// Its items.
        fields: Vec<Self>,
    },
    /// A dictionary.
    Dict {
        /// Its keys, in order.
        names: Vec<String>,
        /// The values, in the same order.
        fields: Vec<Self>,
    },
}

/// What a tensor represents if a model returns a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueKind {
    /// Itself.
    Tensor,
    /// An integer, as INT64 of one element.
    Int,
    /// A float, as FP64 of one element.
    Float,
    /// A boolean, as BOOL of one element.
    Bool,
    /// A list of integers, as INT64.
    Ints,
    /// A list of floats, as FP64.
    Floats,
    /// A list of booleans, as BOOL.
    Bools,
}

/// When a request is confident enough to leave at an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExitCriterion {
    /// Its largest softmax probability is at least the threshold.
    Confidence,
    /// The entropy of its softmax, divided by that of a uniform one, is at most the threshold.
    Entropy,
}

/// A place where requests may leave a multi-exit model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Its label.
    pub name: String,
    /// Ordinal of the block that produces its logits.
    pub block: u32,
    /// Name of its logits among [`Manifest::outputs`].
    pub output: String,
    /// The exit at the end of the side branch that it is on; the trunk if absent.
    pub within: Option<String>,
    /// When a request leaves.
    pub criterion: ExitCriterion,
    /// Number of classes.
    pub classes: u32,
    /// Divides the logits before the softmax.
    pub temperature: f64,
    /// Of the criterion, in `0..=1`. Absent if no request leaves; at the last exit all do.
    pub threshold: Option<f64>,
    /// Measured on a validation set, from strict to permissive; may be empty.
    pub table: Vec<ExitRow>,
    /// The results of all thresholds together on that set.
    pub expected: Option<ExitExpectation>,
}

/// An exit's threshold and its results by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRow {
    /// Threshold, in `0..=1`.
    pub threshold: f64,
    /// Share of all requests that are confident enough.
    pub exit_rate: f64,
    /// Share of those that are right.
    pub accuracy: f64,
}

/// The results of one exit on the validation set.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitExpectation {
    /// Share of all requests that left here.
    pub exit_rate: f64,
    /// Share of those that were right; absent if none left.
    pub accuracy: Option<f64>,
    /// Share of all requests that this exit would get right.
    pub accuracy_alone: f64,
}

/// What a block's file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BlockKind {
    /// A part of the model.
    #[default]
    TorchScript,
    /// A [`crate::Preprocessing`], which makes what the model takes of what clients send.
    Preprocessing,
}

impl BlockKind {
    /// Whether it is a part of the model.
    pub const fn is_torch_script(&self) -> bool {
        matches!(self, Self::TorchScript)
    }

    /// What its file's name ends with.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::TorchScript => "pt",
            Self::Preprocessing => "json",
        }
    }
}

/// One block: the smallest unit of placement, stored as one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// What its file is. Only the first block can prepare inputs.
    #[serde(default, skip_serializing_if = "BlockKind::is_torch_script")]
    pub kind: BlockKind,
    /// Content address of the block's file.
    pub digest: Digest,
    /// Size of that file in bytes.
    pub file_bytes: u64,
    /// Bytes of the weights inside.
    pub weight_bytes: u64,
    /// Most bytes of live activations while it runs at batch 1 and typical sizes.
    pub peak_activation_bytes: u64,
    /// Floating-point operations at batch 1 and typical sizes, two per multiply-add.
    pub flops: u64,
    /// Time at batch 1 and typical sizes on the host that prepared it, on one thread: its share of
    /// the merged and optimized whole.
    pub time: Seconds,
    /// Additional time if the model is cut after this block, on the same host: what merging and
    /// optimizing across the cut would have saved.
    pub cut_penalty_seconds: f64,
    /// Names of its inputs, in the order of `forward`: all outputs of the previous block, or the
    /// model's inputs.
    pub inputs: Vec<String>,
    /// Its outputs, in order: everything that a later block needs; values that only pass through
    /// keep their names. Those of the last block are the model's.
    pub outputs: Vec<ValueSpec>,
}

/// The effect on the model's answers of encoding the values before one block: the largest
/// difference of an output, relative to that output's largest magnitude, on the requests with which
/// the model was prepared. Absent if it was not measured, if the encoding cannot represent the
/// values, or if integers or shapes changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EncodingErrors {
    /// As [`WireType::Fp16`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fp16: Option<f64>,
    /// As [`WireType::Bf16`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// As [`WireType::Int8`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8: Option<f64>,
}

impl Block {
    /// How its file is called in a folder of blocks.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.digest, self.kind.extension())
    }
}

impl EncodingErrors {
    /// The one for `dtype`.
    pub const fn of(&self, dtype: WireType) -> Option<f64> {
        match dtype {
            WireType::Fp16 => self.fp16,
            WireType::Bf16 => self.bf16,
            WireType::Int8 => self.int8,
        }
    }

    /// The same, mutable.
    pub const fn of_mut(&mut self, dtype: WireType) -> &mut Option<f64> {
        match dtype {
            WireType::Fp16 => &mut self.fp16,
            WireType::Bf16 => &mut self.bf16,
            WireType::Int8 => &mut self.int8,
        }
    }
}

/// Result of comparing the chain of blocks with the whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundaryCheck {
    /// Number of compared boundary values, including outputs.
    pub compared: u32,
    /// Largest absolute difference seen; 0 is bit for bit.
    pub max_abs_diff: f64,
    /// Largest absolute difference between the answers to the two random inputs. 0 means that they
    /// could not have revealed a wrong chain.
    pub telling_diff: f64,
    /// By the name of each free size, the sizes at which the chain was compared besides the typical
    /// one: the smallest, one in between, and the largest, or as large a one as time and memory
    /// allowed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<String, Vec<i64>>,
}

/// A prepared model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The oldest version that has all that it says, [`MANIFEST_VERSION`] at most.
    pub version: u32,
    /// SHA-256 of the source file.
    pub source: Digest,
    /// The runtime of the blocks: `libtorch 2.13.0`.
    pub runtime: String,
    /// How it was cut.
    pub rung: Rung,
    /// Why better rungs failed.
    pub rung_reason: Option<String>,
    /// The model's inputs in order of `forward`.
    pub inputs: Vec<ValueSpec>,
    /// How inputs and constants fill the arguments of `forward`; empty if each input is one
    /// argument, and the rest has defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<Binding>,
    /// The model's outputs in order.
    pub outputs: Vec<ValueSpec>,
    /// The nest of the model's outputs; absent in manifests from before it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_structure: Option<OutputStructure>,
    /// The exits of a model that the SDK exported, in the order in which a request meets them; the
    /// last one is the model's end. Empty for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<Exit>,
    /// The blocks in order of execution.
    pub blocks: Vec<Block>,
    /// Content address of the [`crate::Probe`].
    pub probe: Digest,
    /// Size of the probe's file.
    pub probe_bytes: u64,
    /// The result of the comparison.
    pub check: BoundaryCheck,
    /// GFLOP/s of the reference benchmark's fastest round on the host that prepared it, which makes
    /// its times comparable with other hosts.
    pub prepared_gflops: f64,
    /// Bytes of the weights, each counted once even if several blocks hold it; absent in manifests
    /// from before it was counted, and for models that keep state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bytes: Option<u64>,
    /// The share of the FLOPs in one block if that is more than 0.6 although no single operation
    /// is; absent if there is no such block or no cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lopsided_share: Option<f64>,
    /// Whether each row of a batch gives the same result as alone, in every value that has rows.
    /// Absent if that is unknown: the batch is fixed, or requests may take different paths through
    /// the model; and in manifests from before it was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_are_independent: Option<bool>,
    /// The errors of encodings, by the block that receives the values. Empty in manifests from
    /// before they were measured: then all values are sent unchanged.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "a_few"
    )]
    pub encoding_errors: Vec<EncodingErrors>,
}

/// The manifest contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ManifestError {
    #[error("{0} bytes are too many for a manifest, which has {MANIFEST_BYTES} at most")]
    TooLarge(u64),
    #[error("it is no manifest: {0}")]
    Json(String),
    #[error("the manifest has format {0}, this version reads up to {MANIFEST_VERSION}")]
    Version(u32),
    #[error("the manifest has no block")]
    Empty,
    #[error("block {block} takes `{takes}`, but what comes before it gives `{given}`")]
    Chain {
        block: usize,
        takes: String,
        given: String,
    },
    #[error("the name `{0}` stands for two values at one place")]
    Twice(String),
    #[error("block {block}: {field} is negative or not a number")]
    Time { block: usize, field: &'static str },
    #[error("value `{0}` has a size that overflows")]
    Size(String),
    #[error(
        "value `{0}` has a free size in a place that is not -1, or one with no bounds to be in"
    )]
    FreeSize(String),
    #[error("block {0} prepares inputs, which the first one alone can, before another block")]
    Preprocessing(usize),
    #[error("the last block's outputs are not the model's")]
    Outputs,
    #[error("exit `{0}` refers to a block or an output that does not exist")]
    Exit(String),
    #[error("encodingErrors: not one for each block, or one is negative or not a number")]
    EncodingErrors,
}

impl Manifest {
    /// Parses and checks the manifest in `text`. In memory it takes a few times as much.
    ///
    /// # Errors
    /// It is too large, not a manifest, or contradicts itself.
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let bytes = text.len() as u64;
        if bytes > MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes));
        }
        let read: Result<Self, _> = serde_json::from_slice(text);
        let manifest = read.map_err(|e| ManifestError::Json(e.to_string()))?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Checks everything that later steps rely on.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.version > MANIFEST_VERSION {
            return Err(ManifestError::Version(self.version));
        }
        let last = self.blocks.last().ok_or(ManifestError::Empty)?;
        check_values(&self.inputs)?;
        let mut given = &self.inputs;
        for (i, block) in self.blocks.iter().enumerate() {
            if !block.inputs.iter().eq(given.iter().map(|v| &v.name)) {
                return Err(ManifestError::Chain {
                    block: i,
                    takes: block.inputs.join("`, `"),
                    given: names(given).join("`, `"),
                });
            }
            if !block.kind.is_torch_script() && (i > 0 || self.blocks.len() == 1) {
                return Err(ManifestError::Preprocessing(i));
            }
            for (field, seconds) in [
                ("time", block.time.p50),
                ("cutPenaltySeconds", block.cut_penalty_seconds),
            ] {
                if !(seconds.is_finite() && seconds >= 0.0) {
                    return Err(ManifestError::Time { block: i, field });
                }
            }
            check_values(&block.outputs)?;
            given = &block.outputs;
        }
        if last.outputs != self.outputs {
            return Err(ManifestError::Outputs);
        }
        let is_there = |exit: &Exit| {
            let block = usize::try_from(exit.block).is_ok_and(|b| b < self.blocks.len());
            block && self.outputs.iter().any(|v| v.name == exit.output)
        };
        if let Some(exit) = self.exits.iter().find(|exit| !is_there(exit)) {
            return Err(ManifestError::Exit(exit.name.clone()));
        }
        let errors = &self.encoding_errors;
        let mut told = errors
            .iter()
            .flat_map(|e| WireType::ALL.map(|dtype| e.of(dtype)))
            .flatten();
        let is_for_each = errors.is_empty() || errors.len() == self.blocks.len();
        if !is_for_each || told.any(|e| !(e.is_finite() && e >= 0.0)) {
            return Err(ManifestError::EncodingErrors);
        }
        Ok(())
    }

    /// Values that cross the boundary before block `boundary`: the input of a host that runs
    /// `boundary..`. 0 returns the model's inputs, the number of blocks its outputs.
    pub fn live_at(&self, boundary: usize) -> Vec<&ValueSpec> {
        let values = match boundary.checked_sub(1) {
            None => &self.inputs,
            Some(before) => self
                .blocks
                .get(before)
                .map_or(&self.outputs, |block| &block.outputs),
        };
        values.iter().collect()
    }

    /// Bytes that cross the boundary before block `boundary` at batch 1.
    pub fn live_bytes(&self, boundary: usize) -> u64 {
        self.live_at(boundary)
            .iter()
            .filter_map(|v| v.bytes(1))
            .sum()
    }
}

/// A list of at most as many items as there may be blocks: `{}` takes many times its length in
/// memory.
fn a_few<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<EncodingErrors>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<EncodingErrors>;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(to, "a list of at most {MOST_BLOCKS}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
            let mut few = Vec::new();
            while let Some(one) = all.next_element()? {
                if few.len() == MOST_BLOCKS {
                    return Err(A::Error::invalid_length(MOST_BLOCKS + 1, &self));
                }
                few.push(one);
            }
            Ok(few)
        }
    }

    from.deserialize_seq(Few)
}

/// Distinct names and valid sizes.
fn check_values(values: &[ValueSpec]) -> Result<(), ManifestError> {
    let mut known = BTreeSet::new();
    for value in values {
        if !known.insert(&value.name) {
            return Err(ManifestError::Twice(value.name.clone()));
        }
        let is_free = |size: &FreeSize| {
            let takes = size
                .bounds
                .as_ref()
                .is_none_or(|b| b.step >= 1 && b.takes(size.typical));
            value.shape.get(size.dimension) == Some(&-1) && size.typical >= 0 && takes
        };
        if !value.sizes.iter().all(is_free) {
            return Err(ManifestError::FreeSize(value.name.clone()));
        }
        if value.bytes(1).is_none() {
            return Err(ManifestError::Size(value.name.clone()));
        }
    }
    Ok(())
}

fn names(values: &[ValueSpec]) -> Vec<&str> {
    values.iter().map(|v| v.name.as_str()).collect()
}

#[cfg(test)]
mod tests;
