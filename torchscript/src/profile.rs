//! The cost of each block.
//!
//! Blocks that are merged and optimized together are faster than the sum of
//! blocks optimized alone. The penalty of a cut is what merging its two
//! neighbours saves: with `T(k)` the time of block `k` optimized alone and
//! `T(k, k+1)` that of both merged and optimized, the cut between them costs
//! `T(k) + T(k+1) - T(k, k+1)`, at least 0. This assumes that changes across a
//! cut are local, as layouts and fusions are: the value is converted to ordinary
//! memory before the cut, and back after it.
//!
//! The penalty counts for the slice that ends at the cut, so the time of a block
//! is `T(k)` minus its penalty. Then the blocks of any slice and the penalty
//! after it add up to that slice: reading the input of the first block and
//! writing the output of the last is included, and what merging saves between
//! them is not. Timers between the blocks of the merged whole would say less:
//! values pass between fused operations in oneDNN's own layouts, which a timer
//! in between undoes (mobilenet_v2 took half as long again).
//!
//! Samples of the three alternate, so that a change of the host's speed affects
//! all of them; the smallest CPU time of the thread counts. Before each sample
//! the caches are filled with other data, as for a slice that gets occasional
//! requests: refetching is part of the cost of a slice (0.3 to 0.7 ms for the
//! last blocks of mobilenet_v2, a third of their time). The times of blocks are
//! then rescaled to sum to the wall time of the whole.

use crate::caches::Caches;
use crate::ffi::{Block, Cost, Gear, Graph, Timing, TorchError};
use crate::slice::SPECIALIZING_RUNS;
use crate::stats::seconds;
use lamina_model::Seconds;
use std::slice::from_ref;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Fewest samples per graph, whatever the budget.
const FEWEST_RUNS: u32 = 3;
/// No block takes less than this share of the mean block's time.
const SMALLEST_SHARE: f64 = 0.01;

/// Profile of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BlockProfile {
    pub(crate) cost: Cost,
    pub(crate) time: Seconds,
    pub(crate) cut_penalty_seconds: f64,
}

/// CPU seconds around a boundary.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Border {
    /// The block before it, optimized alone.
    before: f64,
    /// The block after it, optimized alone.
    behind: f64,
    /// Both merged and optimized.
    merged: f64,
}

impl Border {
    fn penalty(&self) -> f64 {
        (self.before + self.behind - self.merged).max(0.0)
    }
}

/// Costs of one forward of each of `blocks`; `boundaries[i]` are the values that cross into block
/// `i` at batch 1.
pub(crate) fn costs(blocks: &[Block], boundaries: &[Vec<Tensor>]) -> Result<Vec<Cost>, TorchError> {
    let pairs = blocks.iter().zip(boundaries);
    pairs
        .map(|(block, inputs)| Graph::merge(from_ref(block), Gear::Plain)?.cost(inputs))
        .collect()
}

/// The profile of blocks that nobody measured: their FLOPs at a speed of `gflops`.
pub(crate) fn estimated(costs: &[Cost], gflops: f64) -> Vec<BlockProfile> {
    let speed = (gflops * 1e9).max(1.0);
    let profile = |&cost: &Cost| {
        let seconds = cost.flops as f64 / speed;
        BlockProfile {
            cost,
            time: Seconds {
                p50: seconds,
                p10: seconds,
                p90: seconds,
            },
            cut_penalty_seconds: 0.0,
        }
    };
    costs.iter().map(profile).collect()
}

/// Profiles `blocks`, whose `costs` and `boundaries` are those of [`costs`]. `measured` receives
/// the number of blocks done.
pub(crate) fn profile(
    blocks: &[Block],
    boundaries: &[Vec<Tensor>],
    costs: &[Cost],
    runs: u32,
    budget: Duration,
    mut measured: impl FnMut(u32),
) -> Result<Vec<BlockProfile>, TorchError> {
    let deadline = Instant::now() + budget;
    let runs = runs.max(FEWEST_RUNS);
    let caches = Caches::new();
    let whole = measure_whole(blocks, &boundaries[0], runs, &caches)?;
    let mut borders = Vec::new();
    for k in 1..blocks.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(blocks.len() - k).unwrap_or(1);
        let end = Instant::now() + share;
        borders.push(measure_border(blocks, boundaries, k, runs, end, &caches)?);
        measured(u32::try_from(k).unwrap_or(u32::MAX));
    }
    Ok(combined(costs, &whole, &borders))
}

fn combined(costs: &[Cost], whole: &[Timing], borders: &[Border]) -> Vec<BlockProfile> {
    let wall: Vec<f64> = whole.iter().map(|t| t.wall_seconds).collect();
    let cpu: Vec<f64> = whole.iter().map(|t| t.cpu_seconds).collect();
    let whole = seconds(&wall);
    let wall_per_cpu = whole.p50 / smallest(&cpu).max(f64::MIN_POSITIVE);
    let penalties = borders.iter().map(Border::penalty).chain([0.0]);
    let shares = shares(&attributed(borders));
    costs
        .iter()
        .zip(shares.into_iter().zip(penalties))
        .map(|(&cost, (share, penalty))| BlockProfile {
            cost,
            time: scaled(whole, share),
            cut_penalty_seconds: penalty * wall_per_cpu,
        })
        .collect()
}

/// A merged and optimized graph after its warm-up.
struct Warm<'a> {
    graph: Graph,
    inputs: &'a [Tensor],
}

impl<'a> Warm<'a> {
    fn new(blocks: &[Block], inputs: &'a [Tensor]) -> Result<Self, TorchError> {
        Gear::fastest(|gear| {
            let warm = Self {
                graph: Graph::merge(blocks, gear)?,
                inputs,
            };
            for _ in 0..SPECIALIZING_RUNS {
                warm.graph.time(inputs)?;
            }
            Ok(warm)
        })
    }

    fn sample(&self, caches: &Caches) -> Result<Timing, TorchError> {
        caches.fill();
        self.graph.time(self.inputs)
    }
}

/// Samples both sides of boundary `k`, alone and merged, until `runs` or `end`.
fn measure_border(
    blocks: &[Block],
    boundaries: &[Vec<Tensor>],
    k: usize,
    runs: u32,
    end: Instant,
    caches: &Caches,
) -> Result<Border, TorchError> {
    let graphs = [
        Warm::new(&blocks[k - 1..k], &boundaries[k - 1])?,
        Warm::new(&blocks[k..=k], &boundaries[k])?,
        Warm::new(&blocks[k - 1..=k], &boundaries[k - 1])?,
    ];
    let mut cpu = [const { Vec::new() }; 3];
    for run in 0..runs {
        if run >= FEWEST_RUNS && Instant::now() >= end {
            break;
        }
        for (graph, samples) in graphs.iter().zip(&mut cpu) {
            samples.push(graph.sample(caches)?.cpu_seconds);
        }
    }
    let [before, behind, merged] = cpu.map(|samples| smallest(&samples));
    Ok(Border {
        before,
        behind,
        merged,
    })
}

fn measure_whole(
    blocks: &[Block],
    inputs: &[Tensor],
    runs: u32,
    caches: &Caches,
) -> Result<Vec<Timing>, TorchError> {
    let whole = Warm::new(blocks, inputs)?;
    (0..runs).map(|_| whole.sample(caches)).collect()
}

/// The time each block adds to a slice that continues after it.
fn attributed(borders: &[Border]) -> Vec<f64> {
    let Some(last) = borders.last() else {
        return vec![1.0];
    };
    let behind = borders.iter().map(|b| b.behind);
    let alone = borders
        .iter()
        .zip(std::iter::once(f64::INFINITY).chain(behind));
    // A block is measured before one boundary and after another.
    let inner = alone.map(|(border, behind)| border.before.min(behind) - border.penalty());
    inner.chain([last.behind]).collect()
}

/// `times` as shares of their sum, each at least the minimum.
fn shares(times: &[f64]) -> Vec<f64> {
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let floor = (mean * SMALLEST_SHARE).max(f64::MIN_POSITIVE);
    let raised: Vec<f64> = times.iter().map(|time| time.max(floor)).collect();
    let sum: f64 = raised.iter().sum();
    raised.into_iter().map(|time| time / sum).collect()
}

fn smallest(samples: &[f64]) -> f64 {
    let smallest = samples.iter().copied().fold(f64::INFINITY, f64::min);
    if smallest.is_finite() { smallest } else { 0.0 }
}

fn scaled(whole: Seconds, share: f64) -> Seconds {
    Seconds {
        p50: whole.p50 * share,
        p10: whole.p10 * share,
        p90: whole.p90 * share,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn border(before: f64, behind: f64, merged: f64) -> Border {
        Border {
            before,
            behind,
            merged,
        }
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "{got:?}, not {want:?}");
        }
    }

    #[test]
    fn a_penalty_is_what_merging_saves_and_never_negative() {
        assert_close(&[border(2.5, 4.0, 5.5).penalty()], &[1.0]);
        assert_close(&[border(0.1, 0.1, 0.3).penalty()], &[0.0]);
    }

    #[test]
    fn shares_sum_to_one_and_none_vanishes() {
        assert_close(&shares(&[2.0, 3.0, 5.0]), &[0.2, 0.3, 0.5]);
        let clamped = shares(&[-0.1, 4.0]);
        assert!(clamped.iter().all(|&s| s > 0.0), "{clamped:?}");
        assert_close(&[clamped.iter().sum()], &[1.0]);
    }

    #[test]
    fn times_and_penalties_are_brought_to_the_wall_time_of_the_whole() {
        let cost = Cost {
            flops: 1,
            largest_flops: 1,
            peak_bytes: 2,
            constant_bytes: 3,
        };
        // The process gets half of the host's time.
        let whole = [Timing {
            wall_seconds: 20.0,
            cpu_seconds: 10.0,
        }];
        let borders = [border(4.0, 7.0, 10.0)];
        let blocks = combined(&[cost; 2], &whole, &borders);
        let times: Vec<f64> = blocks.iter().map(|b| b.time.p50).collect();
        assert_close(&times, &[6.0, 14.0]);
        let penalties: Vec<f64> = blocks.iter().map(|b| b.cut_penalty_seconds).collect();
        assert_close(&penalties, &[2.0, 0.0]);
    }
}
