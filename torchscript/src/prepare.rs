use crate::PrepareError;
use lamina_model::{InputSpec, Manifest};
use std::path::Path;
use std::time::Duration;

/// How to prepare a model.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The model's inputs in the order of `forward`; names are the user's.
    pub inputs: Vec<InputSpec>,
    /// Timed runs per measured graph, after warm-up; at least 3 are made.
    pub timing_runs: u32,
    /// Time that profiling may take altogether; runs are dropped, never blocks.
    pub profile_budget: Duration,
    /// [`crate::reference_gflops`] of this host, written into the manifest.
    pub prepared_gflops: f64,
    /// Seed of the inputs drawn for the checks and the probe.
    pub seed: u64,
}

/// What [`prepare`] is doing; `done` counts up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Reading and freezing the model.
    Loading,
    /// Writing blocks.
    Slicing {
        /// Blocks written.
        done: u32,
        /// Blocks to write.
        total: u32,
    },
    /// Comparing boundary values with the whole model's.
    Checking {
        /// Values compared.
        done: u32,
        /// Values to compare.
        total: u32,
    },
    /// Measuring blocks.
    Profiling {
        /// Blocks measured.
        done: u32,
        /// Blocks to measure.
        total: u32,
    },
}

/// Slices `model` into `out_dir`: one `<digest>.pt` per block and the probe as
/// `<digest>.safetensors`. The same model gives the same bytes.
///
/// # Errors
/// See [`PrepareError`]; a model that cannot be cut is one block, no error.
pub fn prepare(
    model: &Path,
    out_dir: &Path,
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Manifest, PrepareError> {
    let _ = (out_dir, options);
    progress(Progress::Loading);
    Err(PrepareError::NotTorchScript {
        path: model.to_owned(),
        reason: "the slicer is not linked yet".into(),
    })
}
