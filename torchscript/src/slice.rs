mod batches;

pub use batches::Batch;

use crate::draw;
use crate::ffi::{self, Block, Borrowed, Cost, Gear, Graph, TorchError};
use crate::ffi::{on_borrowed, with_elements};
use crate::message::OTHER_WAY;
use crate::stats::seconds;
use crate::tensors::{Dense, dense, from_torch, kind_of, relative_difference, to_torch};
use crate::{LoadError, RunError};
use lamina_model::{DataType, Seconds, Tensor, ValueSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

/// Measured forwards after the warm-up.
const MEASURED_RUNS: usize = 5;
/// Forwards until an optimized graph has its final speed: one in which libtorch sees the shapes,
/// one in which it compiles for them, one that fills caches.
pub(crate) const SPECIALIZING_RUNS: u32 = 3;
/// Largest difference of an optimized answer, relative to its largest value.
const TOLERANCE: f64 = 1e-3;

/// How to load a slice.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Threads per forward; 1 unless the host's CPU quota is larger.
    pub threads: u32,
    /// Concurrent forwards, each of which holds its own activations.
    pub lanes: u32,
    /// Optimize the merged graph (folding, fusion, layouts) for requests of batch 1. Results then
    /// differ from the whole model's in the last digits; if they differ by more, the graph stays as
    /// it was.
    pub optimize: bool,
    /// Forwards before the measured ones; at least as many as libtorch needs to specialize.
    pub warmup_runs: u32,
}

/// Measurements of loading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadReport {
    /// Reading, merging, optimizing and warming up, in seconds of wall time.
    pub load_seconds: f64,
    /// One forward at batch 1, wall time, after warm-up.
    pub run_seconds: Seconds,
    /// Approximate memory of the slice: its weights with packed copies, and the peak activations of
    /// forwards at batch 1, one in each lane.
    pub resident_bytes: u64,
}

/// Consecutive blocks merged into one graph, optimized and warmed up.
///
/// Several threads may run it at the same time; if it keeps state, they take turns.
#[derive(Debug)]
pub struct Slice {
    graph: Graph,
    /// The same graph compiled for other numbers of rows.
    by_rows: RwLock<BTreeMap<i64, Arc<Graph>>>,
    inputs: Vec<ValueSpec>,
    /// Its warm-up request, at batch 1.
    request: Vec<Tensor>,
    threads: u32,
}

impl Slice {
    /// Loads `blocks` (files in order of execution; the caller has checked their
    /// hashes, since libtorch checks nothing). `inputs` are the values that cross
    /// into the first block; [`Slice::run`] enforces them.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        blocks: &[PathBuf],
        inputs: &[ValueSpec],
        options: &LoadOptions,
    ) -> Result<(Self, LoadReport), LoadError> {
        let start = Instant::now();
        let fails = |reason: String| LoadError::WarmUp { reason };
        if blocks.is_empty() {
            return Err(LoadError::NoBlocks);
        }
        let first = read(&blocks[0])?;
        let examples = first.examples().map_err(|e| unreadable(&blocks[0], &e))?;
        drop(first);
        let request = draw::warm_up(inputs, &examples).map_err(|e| fails(e.0))?;
        let warm = |graph: Graph, runs: u32| -> Result<(Self, Vec<Tensor>), LoadError> {
            let slice = Self {
                graph,
                by_rows: RwLock::default(),
                inputs: inputs.to_vec(),
                request: request.clone(),
                threads: options.threads,
            };
            let mut answer = Vec::new();
            for _ in 0..runs {
                answer = match slice.run(&request) {
                    // Noise may take a path that the slice cannot follow; a real request may not.
                    Err(RunError::OtherWay { .. }) => Vec::new(),
                    ran => ran.map_err(|e| fails(e.to_string()))?,
                };
            }
            Ok((slice, answer))
        };
        let (plain, expected) = warm(merged(blocks, Gear::Plain)?, 1)?;
        let slice = if options.optimize {
            // One copy of the weights at a time: the plain graph is dropped before the optimized
            // one packs its own.
            drop(plain);
            let runs = options.warmup_runs.max(SPECIALIZING_RUNS);
            Gear::fastest(|gear| {
                if gear == Gear::Plain {
                    return Ok(warm(merged(blocks, gear)?, 1)?.0);
                }
                let (slice, answer) = warm(merged(blocks, gear)?, runs)?;
                // libtorch's passes are trusted only if their answer is right.
                if agrees(&answer, &expected) {
                    Ok(slice)
                } else {
                    Err(fails("optimizing changes the answer".into()))
                }
            })?
        } else {
            plain
        };
        let load_seconds = start.elapsed().as_secs_f64();
        let sizes = blocks
            .iter()
            .filter_map(|b| Some(std::fs::metadata(b).ok()?.len()));
        let file_bytes = sizes.sum();
        let (run_seconds, cost) = slice.measured(&request, file_bytes).map_err(fails)?;
        let report = LoadReport {
            load_seconds,
            run_seconds,
            resident_bytes: cost.constant_bytes + cost.peak_bytes * u64::from(options.lanes.max(1)),
        };
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
        let rows = rows(inputs.iter().map(|tensor| tensor.shape.as_slice()));
        match self.for_rows(rows) {
            Some(graph) => forward(&graph, inputs, self.threads),
            None => forward(&self.graph, inputs, self.threads),
        }
    }

    /// The graph compiled for this number of rows, if there is one.
    fn for_rows(&self, rows: Option<i64>) -> Option<Arc<Graph>> {
        let by_rows = self.by_rows.read().unwrap_or_else(PoisonError::into_inner);
        by_rows.get(&rows?).cloned()
    }

    /// Runs one forward on `inputs` in place, which it may overwrite, and lets `take` see the
    /// outputs in place, possibly in the same memory.
    ///
    /// # Errors
    /// See [`RunError`]; the slice stays usable.
    pub fn run_in_place<R>(
        &self,
        inputs: Vec<InPlace<'_>>,
        take: impl FnOnce(&[Seen<'_>]) -> R,
    ) -> Result<R, RunError> {
        if inputs.len() != self.inputs.len() {
            return Err(RunError::InputCount {
                expected: self.inputs.len(),
                got: inputs.len(),
            });
        }
        let fails = |reason: String| RunError::Forward { reason };
        let own = self.for_rows(rows(inputs.iter().map(|input| input.shape)));
        let graph = own.as_deref().unwrap_or(&self.graph);
        let mut borrowed: Vec<Borrowed<'_>> = inputs.into_iter().map(borrow).collect();
        let ran = on_borrowed(&mut borrowed, |tensors| {
            let outputs = graph
                .run(tensors, self.threads)
                .map_err(|e| RunError::thrown(&e))?;
            seen(outputs, take)
        });
        ran.map_err(|e| fails(e.to_string()))?
    }

    /// Its inputs.
    pub fn inputs(&self) -> &[ValueSpec] {
        &self.inputs
    }

    /// If the request takes another path, its memory is estimated from the files.
    fn measured(&self, request: &[Tensor], file_bytes: u64) -> Result<(Seconds, Cost), String> {
        let mut samples = Vec::with_capacity(MEASURED_RUNS);
        for _ in 0..MEASURED_RUNS {
            let run = Instant::now();
            match self.run(request) {
                Ok(_) | Err(RunError::OtherWay { .. }) => (),
                Err(error) => return Err(error.to_string()),
            }
            samples.push(run.elapsed().as_secs_f64());
        }
        let tensors: Result<Vec<_>, _> = request.iter().map(to_torch).collect();
        let cost = self.graph.cost(&tensors.map_err(|e| e.0)?);
        let cost = match cost {
            Err(error) if error.reason().starts_with(OTHER_WAY) => Cost {
                flops: 0,
                largest_flops: 0,
                peak_bytes: 0,
                constant_bytes: file_bytes,
            },
            cost => cost.map_err(|e| e.reason())?,
        };
        Ok((seconds(&samples), cost))
    }
}

/// Rows of a request, if all its inputs have the same number.
fn rows<'a>(mut shapes: impl Iterator<Item = &'a [i64]>) -> Option<i64> {
    let first = *shapes.next()?.first()?;
    shapes
        .all(|shape| shape.first() == Some(&first))
        .then_some(first)
}

/// A borrowed input: little-endian, row-major, without padding.
#[derive(Debug)]
pub struct InPlace<'a> {
    /// Element type.
    pub datatype: DataType,
    /// Size of each dimension.
    pub shape: &'a [i64],
    /// The elements.
    pub data: &'a mut [u8],
}

/// An output in libtorch's memory, with the layout of an input.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Element type.
    pub datatype: DataType,
    /// Size of each dimension.
    pub shape: &'a [i64],
    /// The elements.
    pub data: &'a [u8],
}

fn borrow(input: InPlace<'_>) -> Borrowed<'_> {
    if input.datatype == DataType::Bool {
        // Any byte but 0 and 1 would be undefined behaviour inside a kernel.
        for byte in input.data.iter_mut() {
            *byte = u8::from(*byte != 0);
        }
    }
    Borrowed {
        kind: kind_of(input.datatype),
        shape: input.shape,
        data: input.data,
    }
}

fn seen<R>(outputs: Vec<tch::Tensor>, take: impl FnOnce(&[Seen<'_>]) -> R) -> Result<R, RunError> {
    let dense = |(index, output): (usize, tch::Tensor)| {
        dense(output).map_err(|e| RunError::OutputType {
            index,
            datatype: e.0,
        })
    };
    let outputs: Vec<Dense> = outputs
        .into_iter()
        .enumerate()
        .map(dense)
        .collect::<Result<_, _>>()?;
    let places: Vec<_> = outputs.iter().map(|o| (&o.tensor, o.bytes)).collect();
    let shapes: Vec<Vec<i64>> = outputs.iter().map(|o| o.tensor.size()).collect();
    Ok(with_elements(&places, |elements| {
        let seen: Vec<Seen<'_>> = outputs
            .iter()
            .zip(&shapes)
            .zip(elements)
            .map(|((output, shape), data)| Seen {
                datatype: output.datatype,
                shape,
                data,
            })
            .collect();
        take(&seen)
    }))
}

/// One forward; inputs are copied first.
pub(crate) fn forward(
    graph: &Graph,
    inputs: &[Tensor],
    threads: u32,
) -> Result<Vec<Tensor>, RunError> {
    let mut inputs = inputs
        .iter()
        .map(to_torch)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| RunError::Forward { reason: e.0 })?;
    let outputs = graph
        .run(&mut inputs, threads)
        .map_err(|e| RunError::thrown(&e))?;
    let carried = |(index, output): (usize, tch::Tensor)| {
        from_torch(output).map_err(|e| RunError::OutputType {
            index,
            datatype: e.0,
        })
    };
    outputs.into_iter().enumerate().map(carried).collect()
}

/// Whether answers of the optimized graph equal those of the plain one up to rounding.
fn agrees(optimized: &[Tensor], plain: &[Tensor]) -> bool {
    let same = |(a, b): (&Tensor, &Tensor)| relative_difference(a, b) <= TOLERANCE;
    optimized.len() == plain.len() && optimized.iter().zip(plain).all(same)
}

/// The blocks as one graph; intermediate copies are dropped.
fn merged(files: &[PathBuf], gear: Gear) -> Result<Graph, LoadError> {
    let blocks: Vec<Block> = files.iter().map(|f| read(f)).collect::<Result<_, _>>()?;
    Graph::merge(&blocks, gear).map_err(|e| LoadError::Chain { reason: e.reason() })
}

fn read(file: &Path) -> Result<Block, LoadError> {
    Block::load(file).map_err(|e| unreadable(file, &e))
}

fn unreadable(file: &Path, error: &TorchError) -> LoadError {
    LoadError::Block {
        path: file.to_owned(),
        reason: error.reason(),
    }
}

/// Threads that libtorch uses inside one operation on the calling thread, outside of
/// [`Slice::run`], which sets its own number.
pub fn set_threads(threads: u32) {
    // It only throws for numbers below 1, which cannot be passed.
    let _ = ffi::set_threads(threads);
}
