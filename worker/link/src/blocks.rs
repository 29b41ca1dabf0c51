//! Output of a worker that runs the blocks of a folder: one JSON object per line on standard
//! output.

use crate::prepare::Failure;
use lamina_model::{Digest, ValueSpec};
use serde::{Deserialize, Serialize};

/// The file beside the blocks that describes them.
pub const MANIFEST_FILE: &str = "manifest.json";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunLine {
    /// A problem that does not stop it.
    Warning(String),
    /// The last line of a success.
    Ran(Ran),
    /// The last line of a failure.
    Error(Failure),
}

/// The blocks of a folder, run one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ran {
    /// In order of execution.
    pub blocks: Vec<RanBlock>,
    /// The reference for the outputs.
    pub against: Against,
    /// The model's outputs in order.
    pub outputs: Vec<RanOutput>,
}

/// One block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RanBlock {
    /// Digest of its file.
    pub digest: Digest,
    /// Wall time of the one forward, neither optimized nor warmed up for this request.
    pub seconds: f64,
    /// Its outputs, with their actual shapes.
    pub outputs: Vec<ValueSpec>,
}

/// The reference for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Against {
    /// None.
    Nothing,
    /// The whole model's answer to the probe, recorded when preparing.
    Probe,
    /// The whole model's answer, computed now.
    Whole,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RanOutput {
    /// Its name, type and actual shape.
    pub value: ValueSpec,
    /// The result of the comparison; absent without a reference.
    pub verdict: Option<Verdict>,
}

/// An output compared with the right one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Bit for bit.
    Equal,
    /// In some bit.
    #[serde(rename_all = "camelCase")]
    Differs {
        /// The largest difference; absent if shapes or types differ or one is NaN.
        max_abs_diff: Option<f64>,
    },
}

impl Ran {
    /// Whether no output was found to differ.
    pub fn is_right(&self) -> bool {
        let mut verdicts = self.outputs.iter().filter_map(|o| o.verdict);
        verdicts.all(|v| v == Verdict::Equal)
    }
}
