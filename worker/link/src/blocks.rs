//! What a worker that runs the blocks of a folder says on its standard output, one JSON
//! object a line.

use crate::prepare::Failure;
use lamina_model::{Digest, ValueSpec};
use serde::{Deserialize, Serialize};

/// The file beside the blocks that says what they are.
pub const MANIFEST_FILE: &str = "manifest.json";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunLine {
    /// What is not as it should be; it goes on.
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
    /// With what the outputs were compared.
    pub against: Against,
    /// The model's outputs in order.
    pub outputs: Vec<RanOutput>,
}

/// One block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RanBlock {
    /// Its file's.
    pub digest: Digest,
    /// Wall time of the one forward, neither optimized nor warmed up for this request.
    pub seconds: f64,
    /// What it gave, shapes as they are.
    pub outputs: Vec<ValueSpec>,
}

/// What is known of the right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Against {
    /// Nothing.
    Nothing,
    /// What preparing wrote down as the whole model's answer to the probe.
    Probe,
    /// The whole model's answer, here and now.
    Whole,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RanOutput {
    /// Its name, type and shape as it is.
    pub value: ValueSpec,
    /// How it compares; absent where it was compared with nothing.
    pub verdict: Option<Verdict>,
}

/// An output beside the one that is right.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Bit for bit.
    Equal,
    /// In some bit.
    #[serde(rename_all = "camelCase")]
    Differs {
        /// The largest difference; absent where shapes or types differ or one is no number.
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
