//! Requests as a user's client sends them, each compared with PyTorch's own answer, and the verdict
//! on the results.

mod client;
mod verdict;

pub use client::{Client, ClientError};
pub use verdict::{Evidence, Finding, Phases, judge, median_ms};

use serde::Deserialize;

/// One line of output of `e2e/python/client.py`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// A photograph and its labels.
    Photograph(Photograph),
    /// The proof that answers distinguish images.
    Reference(Reference),
    /// One request of the load.
    Request(Request),
    /// The load's own count at its end.
    Summary(Summary),
    /// How a malformed request was refused.
    Refusal(Refusal),
    /// The answers of the health calls.
    Health(Health),
}

/// How a malformed request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Refusal {
    pub case: String,
    /// gRPC status, `INVALID_ARGUMENT`.
    pub code: String,
    pub details: String,
}

/// The answers of the health calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Health {
    pub live: bool,
    pub ready: bool,
    pub model: bool,
    /// Whether a model that does not exist is ready.
    pub unknown: bool,
}

/// A photograph and its labels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs)]
pub struct Photograph {
    pub name: String,
    pub label: String,
    /// Softmax of the label, 0 to 1.
    pub confidence: f64,
    /// PyTorch's label.
    pub torch_label: String,
    pub max_abs_diff: f64,
    pub seconds: f64,
    pub revision: i64,
    pub path: String,
    pub timing: Vec<Hop>,
}

/// The proof that answers distinguish images.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Reference {
    /// Number of different images.
    pub images: u64,
    /// Largest difference between an answer and PyTorch's that counts as correct.
    pub tolerance: f64,
    /// Smallest difference (largest over classes) between two images' answers.
    pub smallest_difference: f64,
}

/// Outcome of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The right answer, in time.
    Correct,
    /// An answer that is not PyTorch's.
    Wrong,
    /// No answer within the deadline, or an error.
    Lost,
    /// The active model does not take such inputs; used where that is expected.
    Refused,
}

/// One request of the load.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Request {
    /// Number of the request, from 0; the images repeat.
    pub id: u64,
    /// When it was sent, seconds since 1970.
    pub at: f64,
    /// Time until the answer or the error.
    pub seconds: f64,
    /// Its outcome.
    pub outcome: Outcome,
    /// Largest difference from PyTorch's answer.
    #[serde(default)]
    pub max_abs_diff: Option<f64>,
    /// Why it was lost.
    #[serde(default)]
    pub error: Option<String>,
    /// Revision that answered.
    #[serde(default)]
    pub revision: i64,
    /// Path of that revision.
    #[serde(default)]
    pub path: String,
    /// Time per host.
    #[serde(default)]
    pub timing: Vec<Hop>,
}

/// Time on one host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Hop {
    pub node: String,
    pub segment: u32,
    pub queue_us: u64,
    pub compute_us: u64,
    /// To the next host and back, without that host's own time.
    pub transfer_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// The load's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct Summary {
    pub sent: u64,
    pub correct: u64,
    pub refused: u64,
    pub lost: u64,
    pub wrong: u64,
}
