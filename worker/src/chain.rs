//! Consecutive blocks as they run here: one that prepares inputs, the rest as one graph, or
//! both.

use lamina_images::{ImageFault, TypicalError, prepare, typical};
use lamina_model::{Preprocessing, Tensor, ValueSpec};
use lamina_torchscript::{Batch, InPlace, LoadError, LoadOptions, RunError, Seen, Slice};
use lamina_worker_link::cell::{CellError, scan_block};
use std::path::PathBuf;
use std::time::Instant;

/// Measured runs of a block that prepares inputs.
const MEASURED_RUNS: usize = 5;
/// The image that a block is measured with is the same on every host.
const SEED: u64 = 1;

/// Blocks that are loaded.
#[derive(Debug)]
pub(crate) struct Chain {
    ahead: Option<Preprocessing>,
    /// Absent where the first block is all there is.
    graph: Option<Slice>,
}

/// What loading took and gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ChainReport {
    /// Median time of a run at batch 1, in seconds.
    pub(crate) run_seconds: f64,
    /// Memory that it keeps or takes for a moment, in bytes.
    pub(crate) resident_bytes: u64,
}

/// Blocks cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum ChainError {
    /// Whoever made a block may have had reasons of its own.
    #[error(transparent)]
    Block(#[from] CellError),
    #[error(transparent)]
    Graph(#[from] LoadError),
    #[error("warming up with an image fails")]
    Typical(#[from] TypicalError),
    #[error("warming up with an image fails")]
    Image(#[from] ImageFault),
}

/// A run fails.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum ChainFault {
    #[error(transparent)]
    Graph(#[from] RunError),
    #[error(transparent)]
    Image(#[from] ImageFault),
    #[error("{got} inputs came where {wanted} are taken")]
    Inputs { wanted: usize, got: usize },
}

impl Chain {
    /// Loads `blocks`, files in order of execution. `inputs` are the values that cross into the
    /// first.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) fn load(
        blocks: &[PathBuf],
        inputs: &[ValueSpec],
        options: &LoadOptions,
    ) -> Result<(Self, ChainReport), ChainError> {
        let mut kinds = Vec::with_capacity(blocks.len());
        for block in blocks {
            kinds.push(scan_block(block)?);
        }
        // One behind the first is refused by libtorch, as what it is none of.
        let ahead = kinds.into_iter().next().flatten();
        let mut report = ChainReport {
            run_seconds: 0.0,
            resident_bytes: 0,
        };
        let (rest, takes) = match &ahead {
            None => (blocks, inputs.to_vec()),
            Some(ahead) => {
                report.run_seconds = measured(ahead)?;
                // Each lane prepares an image of its own.
                let lanes = u64::from(options.lanes.max(1));
                report.resident_bytes = ahead.peak_bytes().saturating_mul(lanes);
                (blocks.get(1..).unwrap_or_default(), ahead.gives())
            }
        };
        let graph = if rest.is_empty() && ahead.is_some() {
            None
        } else {
            let (graph, loaded) = Slice::load(rest, &takes, options)?;
            report.run_seconds += loaded.run_seconds.p50;
            report.resident_bytes = report.resident_bytes.saturating_add(loaded.resident_bytes);
            Some(graph)
        };
        Ok((Self { ahead, graph }, report))
    }

    /// See [`Slice::specialize`]. Images come one at a time: they have sizes of their own, so
    /// that no two of them make one tensor.
    pub(crate) fn specialize(&self, rows: &[i64]) -> Vec<Batch> {
        match (&self.ahead, &self.graph) {
            (None, Some(graph)) => graph.specialize(rows),
            _ => Vec::new(),
        }
    }

    /// See [`Slice::run_in_place`].
    ///
    /// # Errors
    /// See [`ChainFault`]; the blocks stay usable.
    pub(crate) fn run_in_place<R>(
        &self,
        inputs: Vec<InPlace<'_>>,
        take: impl FnOnce(&[Seen<'_>]) -> R,
    ) -> Result<R, ChainFault> {
        let Some(ahead) = &self.ahead else {
            return run(self.graph.as_ref(), inputs, take);
        };
        check_count(ahead, inputs.len())?;
        let mut made = Vec::new();
        for (place, image) in ahead.images() {
            let input = &inputs[place];
            let tensor = prepare(image, input.shape, input.data)?;
            made.push((place, tensor.shape, tensor.datatype, Vec::from(tensor.data)));
        }
        let mut values = inputs;
        for (place, shape, datatype, data) in &mut made {
            values[*place] = InPlace {
                datatype: *datatype,
                shape,
                data,
            };
        }
        run(self.graph.as_ref(), values, take)
    }
}

/// Where there is no graph, what goes in comes out.
fn run<R>(
    graph: Option<&Slice>,
    values: Vec<InPlace<'_>>,
    take: impl FnOnce(&[Seen<'_>]) -> R,
) -> Result<R, ChainFault> {
    if let Some(graph) = graph {
        return Ok(graph.run_in_place(values, take)?);
    }
    let seen: Vec<Seen<'_>> = values
        .iter()
        .map(|value| Seen {
            datatype: value.datatype,
            shape: value.shape,
            data: value.data,
        })
        .collect();
    Ok(take(&seen))
}

/// Refuses another number of inputs than the block takes.
fn check_count(ahead: &Preprocessing, got: usize) -> Result<(), ChainFault> {
    let wanted = ahead.inputs.len();
    if wanted == got {
        Ok(())
    } else {
        Err(ChainFault::Inputs { wanted, got })
    }
}

/// What the block makes of `values`, as they travel.
///
/// # Errors
/// See [`ChainFault`].
pub(crate) fn prepared(
    ahead: &Preprocessing,
    values: &[Tensor],
) -> Result<Vec<Tensor>, ChainFault> {
    check_count(ahead, values.len())?;
    let mut given = values.to_vec();
    for (place, image) in ahead.images() {
        let value = &values[place];
        given[place] = prepare(image, &value.shape, &value.data)?;
    }
    Ok(given)
}

fn measured(ahead: &Preprocessing) -> Result<f64, ChainError> {
    let mut seconds = 0.0;
    for (_, image) in ahead.images() {
        let value = typical(image, SEED)?;
        let mut samples = Vec::with_capacity(MEASURED_RUNS);
        for _ in 0..MEASURED_RUNS {
            let begin = Instant::now();
            prepare(image, &value.shape, &value.data)?;
            samples.push(begin.elapsed().as_secs_f64());
        }
        samples.sort_by(f64::total_cmp);
        seconds += samples[MEASURED_RUNS / 2];
    }
    Ok(seconds)
}
