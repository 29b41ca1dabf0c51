//! What each block costs.
//!
//! Blocks that are merged and optimized together are faster than the sum of
//! blocks optimized alone, so times are attributed inside the merged whole.
//! With `P(k)` the time of the merged and optimized blocks before border `k`,
//! `S(k)` that of the blocks behind it and `W` that of the whole:
//!
//! - a block's time is the mean of what it adds to the prefix and to the
//!   suffix, `(P(k+1) - P(k) + S(k) - S(k+1)) / 2`. These sum to `W`. Noise can
//!   make one negative; it is raised to a small floor and all are rescaled to
//!   sum to `W` again.
//! - the penalty of a cut is `P(k) + S(k) - W`, at least 0.
//!
//! On a busy host each sample of `P` and `S` is divided by the sample of `W`
//! taken right before it, in CPU time of the thread, so that a change of the
//! host's speed cancels; the wall time of `W` gives the scale.

use crate::ffi::{Block, Cost, Graph, TorchError};
use crate::stats::{median, seconds};
use lamina_model::Seconds;
use std::time::{Duration, Instant};
use tch::Tensor;

/// Fewest samples per graph, whatever the budget.
const FEWEST_RUNS: u32 = 3;
/// Forwards before the first sample: kernels are compiled, memory is touched.
const WARM_UPS: u32 = 2;
/// No block takes less than this share of the mean block's time.
const SMALLEST_SHARE: f64 = 0.01;

/// Measured shares of the whole's time, one per inner border.
#[derive(Debug, Clone, Copy, PartialEq)]
struct BorderShares {
    /// `P(k) / W`.
    prefix: f64,
    /// `S(k) / W`.
    suffix: f64,
}

/// Profile of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BlockProfile {
    pub(crate) cost: Cost,
    pub(crate) time: Seconds,
    pub(crate) cut_penalty_seconds: f64,
}

/// Profiles `blocks`; `boundaries[i]` are the values that cross into block `i`
/// at batch 1. `measured` is told the number of blocks done.
pub(crate) fn profile(
    blocks: &[Block],
    boundaries: &[Vec<Tensor>],
    runs: u32,
    budget: Duration,
    mut measured: impl FnMut(u32),
) -> Result<Vec<BlockProfile>, TorchError> {
    let deadline = Instant::now() + budget;
    let costs = blocks
        .iter()
        .zip(boundaries)
        .map(|(block, inputs)| Graph::merge(std::slice::from_ref(block), false)?.cost(inputs))
        .collect::<Result<Vec<Cost>, TorchError>>()?;
    let whole = Warm::new(blocks, &boundaries[0])?;
    let mut wall = Vec::new();
    for _ in 0..runs.max(FEWEST_RUNS) {
        wall.push(whole.sample()?.wall_seconds);
    }
    let mut borders = Vec::new();
    for k in 1..blocks.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(blocks.len() - k).unwrap_or(1);
        borders.push(measure_border(
            &whole,
            [
                (&blocks[..k], boundaries[0].as_slice()),
                (&blocks[k..], boundaries[k].as_slice()),
            ],
            runs,
            Instant::now() + share,
        )?);
        measured(u32::try_from(k).unwrap_or(u32::MAX));
    }
    let whole_seconds = seconds(&wall);
    let times = attribute(&borders);
    let penalties = borders
        .iter()
        .map(|b| (b.prefix + b.suffix - 1.0).max(0.0))
        .chain([0.0]);
    Ok(costs
        .into_iter()
        .zip(times.into_iter().zip(penalties))
        .map(|(cost, (share, penalty))| BlockProfile {
            cost,
            time: scaled(whole_seconds, share),
            cut_penalty_seconds: penalty * whole_seconds.p50,
        })
        .collect())
}

/// A merged and optimized graph after its warm-up.
struct Warm<'a> {
    graph: Graph,
    inputs: &'a [Tensor],
}

impl<'a> Warm<'a> {
    fn new(blocks: &[Block], inputs: &'a [Tensor]) -> Result<Self, TorchError> {
        let warm = Self {
            graph: Graph::merge(blocks, true)?,
            inputs,
        };
        for _ in 0..WARM_UPS {
            warm.sample()?;
        }
        Ok(warm)
    }

    fn sample(&self) -> Result<crate::ffi::Timing, TorchError> {
        self.graph.time(self.inputs)
    }
}

/// Samples what is before and behind a border until `runs` or the deadline.
fn measure_border(
    whole: &Warm<'_>,
    sides: [(&[Block], &[Tensor]); 2],
    runs: u32,
    deadline: Instant,
) -> Result<BorderShares, TorchError> {
    let [before, behind] = sides;
    let before = Warm::new(before.0, before.1)?;
    let behind = Warm::new(behind.0, behind.1)?;
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    for run in 0..runs.max(FEWEST_RUNS) {
        if run >= FEWEST_RUNS && Instant::now() >= deadline {
            break;
        }
        let w = whole.sample()?.cpu_seconds.max(f64::MIN_POSITIVE);
        prefix.push(before.sample()?.cpu_seconds / w);
        suffix.push(behind.sample()?.cpu_seconds / w);
    }
    Ok(BorderShares {
        prefix: median(&prefix),
        suffix: median(&suffix),
    })
}

/// Each block's share of the whole's time; they sum to 1.
fn attribute(borders: &[BorderShares]) -> Vec<f64> {
    let begin = BorderShares {
        prefix: 0.0,
        suffix: 1.0,
    };
    let end = BorderShares {
        prefix: 1.0,
        suffix: 0.0,
    };
    let all: Vec<BorderShares> = [begin]
        .into_iter()
        .chain(borders.iter().copied())
        .chain([end])
        .collect();
    let floor = SMALLEST_SHARE / (all.len() - 1) as f64;
    let raised: Vec<f64> = all
        .windows(2)
        .map(|b| (b[1].prefix - b[0].prefix + b[0].suffix - b[1].suffix) / 2.0)
        .map(|share| share.max(floor))
        .collect();
    let sum: f64 = raised.iter().sum();
    raised.into_iter().map(|share| share / sum).collect()
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

    fn border(prefix: f64, suffix: f64) -> BorderShares {
        BorderShares { prefix, suffix }
    }

    #[test]
    fn without_penalties_a_block_takes_what_it_adds() {
        let shares = attribute(&[border(0.2, 0.8), border(0.5, 0.5)]);
        for (got, want) in shares.iter().zip([0.2, 0.3, 0.5]) {
            assert!((got - want).abs() < 1e-12, "{shares:?}");
        }
    }

    #[test]
    fn an_equal_penalty_on_both_sides_cancels() {
        // Each side of a cut pays 0.05.
        let shares = attribute(&[border(0.25, 0.85), border(0.55, 0.55)]);
        for (got, want) in shares.iter().zip([0.2, 0.3, 0.5]) {
            assert!((got - want).abs() < 1e-12, "{shares:?}");
        }
    }

    #[test]
    fn noise_never_gives_a_negative_time_and_the_sum_is_kept() {
        let shares = attribute(&[border(0.6, 0.5), border(0.5, 0.6), border(0.7, 0.3)]);
        assert!(shares.iter().all(|&s| s > 0.0), "{shares:?}");
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_block_takes_all() {
        assert_eq!(attribute(&[]), [1.0]);
    }
}
