use crate::{LoadError, RunError};
use lamina_model::{Seconds, Tensor, ValueSpec};
use std::path::PathBuf;

/// How to load a slice.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Threads per forward; 1 unless the host's CPU quota is larger.
    pub threads: u32,
    /// Optimize the merged graph (folding, oneDNN layouts). Results then differ
    /// from the whole model's in the last digits.
    pub optimize: bool,
    /// Forwards before the measured ones; at least 1 is made.
    pub warmup_runs: u32,
}

/// What loading took and gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadReport {
    /// Reading, merging, optimizing and warming up, in seconds of wall time.
    pub load_seconds: f64,
    /// One forward at batch 1, wall time, after warm-up.
    pub run_seconds: Seconds,
    /// Memory that the slice keeps, about: weights, packed copies, activations.
    pub resident_bytes: u64,
}

/// Consecutive blocks merged into one graph, optimized and warmed up.
#[derive(Debug)]
pub struct Slice {
    inputs: Vec<ValueSpec>,
}

impl Slice {
    /// Loads `blocks` (files in order of execution; their hashes were checked
    /// by the caller). `inputs` are the values that cross into the first block.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        blocks: &[PathBuf],
        inputs: &[ValueSpec],
        options: &LoadOptions,
    ) -> Result<(Self, LoadReport), LoadError> {
        let _ = (inputs, options);
        match blocks.first() {
            None => Err(LoadError::NoBlocks),
            Some(path) => Err(LoadError::Block {
                path: path.clone(),
                reason: "the loader is not linked yet".into(),
            }),
        }
    }

    /// Runs one forward. Inputs are checked first and copied, since a slice may
    /// overwrite its input.
    ///
    /// # Errors
    /// See [`RunError`]; the slice stays usable.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        Err(RunError::InputCount {
            expected: self.inputs.len(),
            got: inputs.len(),
        })
    }

    /// The values that it takes.
    pub fn inputs(&self) -> &[ValueSpec] {
        &self.inputs
    }
}

/// Threads that libtorch uses inside one operation on the calling thread,
/// outside of [`Slice::run`], which brings its own number.
pub fn set_threads(threads: u32) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}
