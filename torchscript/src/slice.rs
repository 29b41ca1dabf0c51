use crate::draw;
use crate::ffi::{self, Block, Graph, TorchError};
use crate::stats::seconds;
use crate::tensors::{from_torch, to_torch};
use crate::{LoadError, RunError};
use lamina_model::{Seconds, Tensor, ValueSpec};
use std::path::PathBuf;
use std::time::Instant;

/// Measured forwards after the warm-up.
const MEASURED_RUNS: usize = 5;

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
    /// Memory that the slice keeps, about: its weights with packed copies and
    /// the most activations that a forward at batch 1 holds.
    pub resident_bytes: u64,
}

/// Consecutive blocks merged into one graph, optimized and warmed up.
///
/// Not `Sync`: one forward at a time. Move it to the thread that runs it.
#[derive(Debug)]
pub struct Slice {
    graph: Graph,
    inputs: Vec<ValueSpec>,
    threads: u32,
}

impl Slice {
    /// Loads `blocks` (files in order of execution; their hashes were checked
    /// by the caller, for libtorch checks nothing). `inputs` are the values
    /// that cross into the first block; they are enforced by [`Slice::run`].
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        blocks: &[PathBuf],
        inputs: &[ValueSpec],
        options: &LoadOptions,
    ) -> Result<(Self, LoadReport), LoadError> {
        let start = Instant::now();
        if blocks.is_empty() {
            return Err(LoadError::NoBlocks);
        }
        let (graph, examples) = merged(blocks, options.optimize)?;
        let slice = Self {
            graph,
            inputs: inputs.to_vec(),
            threads: options.threads,
        };
        let report = slice.warm_up(start, &examples, options)?;
        Ok((slice, report))
    }

    /// Runs one forward. Inputs are checked first and copied, since a slice may
    /// overwrite its input.
    ///
    /// # Errors
    /// See [`RunError`]; the slice stays usable.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        if inputs.len() != self.inputs.len() {
            return Err(RunError::InputCount {
                expected: self.inputs.len(),
                got: inputs.len(),
            });
        }
        for (tensor, spec) in inputs.iter().zip(&self.inputs) {
            tensor.check(spec)?;
        }
        let mut inputs = inputs
            .iter()
            .map(to_torch)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| RunError::Forward { reason: e.0 })?;
        let outputs = self
            .graph
            .run(&mut inputs, self.threads)
            .map_err(|e| RunError::Forward { reason: e.reason() })?;
        let carried = |(index, output): (usize, &tch::Tensor)| {
            from_torch(output).map_err(|e| RunError::OutputType {
                index,
                datatype: e.0,
            })
        };
        outputs.iter().enumerate().map(carried).collect()
    }

    /// The values that it takes.
    pub fn inputs(&self) -> &[ValueSpec] {
        &self.inputs
    }

    fn warm_up(
        &self,
        start: Instant,
        examples: &[Option<Vec<i64>>],
        options: &LoadOptions,
    ) -> Result<LoadReport, LoadError> {
        let fails = |reason: String| LoadError::WarmUp { reason };
        let request = draw::warm_up(&self.inputs, examples).map_err(|e| fails(e.0))?;
        for _ in 0..options.warmup_runs.max(1) {
            self.run(&request).map_err(|e| fails(e.to_string()))?;
        }
        let load_seconds = start.elapsed().as_secs_f64();
        let mut samples = Vec::with_capacity(MEASURED_RUNS);
        for _ in 0..MEASURED_RUNS {
            let run = Instant::now();
            self.run(&request).map_err(|e| fails(e.to_string()))?;
            samples.push(run.elapsed().as_secs_f64());
        }
        let tensors: Vec<tch::Tensor> = request
            .iter()
            .map(to_torch)
            .collect::<Result<_, _>>()
            .map_err(|e| fails(e.0))?;
        let cost = self.graph.cost(&tensors).map_err(|e| fails(e.reason()))?;
        Ok(LoadReport {
            load_seconds,
            run_seconds: seconds(&samples),
            resident_bytes: cost.constant_bytes + cost.peak_bytes,
        })
    }
}

/// The blocks as one graph, with what to warm it up with; what they were read
/// into is dropped again.
#[allow(clippy::type_complexity)] // taken apart at once
fn merged(files: &[PathBuf], optimize: bool) -> Result<(Graph, Vec<Option<Vec<i64>>>), LoadError> {
    let unreadable = |path: &PathBuf, error: TorchError| LoadError::Block {
        path: path.clone(),
        reason: error.reason(),
    };
    let blocks = files
        .iter()
        .map(|path| Block::load(path).map_err(|e| unreadable(path, e)))
        .collect::<Result<Vec<_>, _>>()?;
    let graph =
        Graph::merge(&blocks, optimize).map_err(|e| LoadError::Chain { reason: e.reason() })?;
    let examples = blocks[0].examples().map_err(|e| unreadable(&files[0], e))?;
    Ok((graph, examples))
}

/// Threads that libtorch uses inside one operation on the calling thread,
/// outside of [`Slice::run`], which brings its own number.
pub fn set_threads(threads: u32) {
    // It throws for numbers below 1 only, which the border excludes.
    let _ = ffi::set_threads(threads);
}
