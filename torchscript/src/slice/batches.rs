//! Measures whether it pays to compute rows together.
//!
//! oneDNN Graph compiles for the shapes that it sees, and other shapes run code that is not
//! fused: mobilenet_v2 took 2.9 times as long for each of eight rows as for one. So a slice for
//! several rows has one more graph for each number of rows, with the same weights, though
//! oneDNN packs them once more; and only if that is faster by enough. On one thread
//! mobilenet_v2 gains nothing, because its convolutions keep a core busy with one row.

use super::{MEASURED_RUNS, SPECIALIZING_RUNS, Slice, agrees, forward};
use crate::ffi::Graph;
use crate::tensors::stacked;
use lamina_model::{Tensor, ValueSpec};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Least throughput relative to batch 1 that pays: below it the wait for others costs more.
const LEAST_GAIN: f64 = 1.05;
/// A number of rows that takes this long is too many; larger ones are not tried.
const LONGEST_SECONDS: f64 = 2.0;

/// A number of rows, and the throughput relative to one by one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batch {
    /// Rows.
    pub rows: i64,
    /// Throughput relative to batch 1.
    pub gain: f64,
}

impl Slice {
    /// Those of `sizes`, in ascending order, at which rows are faster together than one by one, and
    /// faster than at the sizes before. The slice is now prepared for these. May run in parallel
    /// with requests.
    pub fn specialize(&self, sizes: &[i64]) -> Vec<Batch> {
        let mut paying = Vec::new();
        if self.inputs.is_empty() || !self.inputs.iter().all(ValueSpec::has_rows) {
            return paying;
        }
        // A request that takes a path the slice cannot follow says nothing.
        let Ok(one) = forward(&self.graph, &self.request, self.threads) else {
            return paying;
        };
        let mut best = LEAST_GAIN;
        for &rows in sizes {
            let Some(tried) = self.tried(rows, &one) else {
                continue;
            };
            if tried.gain > best {
                best = tried.gain;
                paying.push(Batch {
                    rows,
                    gain: tried.gain,
                });
                if let Some(graph) = tried.graph {
                    let by_rows = self.by_rows.write();
                    let mut by_rows = by_rows.unwrap_or_else(PoisonError::into_inner);
                    by_rows.insert(rows, Arc::new(graph));
                }
            }
            if tried.seconds > LONGEST_SECONDS {
                break;
            }
        }
        paying
    }

    /// The gain of this number of rows, each of which gives `one` alone; `None` if they cannot be
    /// computed at once, or give something else.
    fn tried(&self, rows: i64, one: &[Tensor]) -> Option<Tried> {
        let inputs = repeated(&self.request, rows)?;
        let expected = repeated(one, rows)?;
        let own = self.graph.again().ok()?;
        let graph = own.as_ref().unwrap_or(&self.graph);
        let mut answer = Vec::new();
        for _ in 0..SPECIALIZING_RUNS {
            answer = forward(graph, &inputs, self.threads).ok()?;
        }
        if !agrees(&answer, &expected) {
            return None;
        }
        // Alternating, so that a change of the host's speed affects both.
        let (mut alone, mut together) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..MEASURED_RUNS {
            alone = alone.min(self.timed(&self.graph, &self.request)?);
            together = together.min(self.timed(graph, &inputs)?);
        }
        Some(Tried {
            gain: alone * rows as f64 / together.max(f64::MIN_POSITIVE),
            seconds: together,
            graph: own,
        })
    }

    fn timed(&self, graph: &Graph, inputs: &[Tensor]) -> Option<f64> {
        let begin = Instant::now();
        forward(graph, inputs, self.threads).ok()?;
        Some(begin.elapsed().as_secs_f64())
    }
}

struct Tried {
    gain: f64,
    seconds: f64,
    graph: Option<Graph>,
}

/// Each of `tensors` repeated this many times.
fn repeated(tensors: &[Tensor], rows: i64) -> Option<Vec<Tensor>> {
    let rows = usize::try_from(rows).ok()?;
    let repeat = |tensor: &Tensor| stacked(&vec![tensor; rows]);
    tensors.iter().map(repeat).collect()
}
