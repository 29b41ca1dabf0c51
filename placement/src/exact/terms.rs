//! The terms of a solve, and its result.

use crate::limits::Ctx;

/// Rounds of price adjustment.
const ROUNDS: usize = 160;

/// When to use which pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Labels tried before any price is computed: enough for most small problems.
    pub quick_labels: u64,
    /// Labels tried from both ends before those from one; 0 for never.
    pub halves: u64,
    /// Labels tried before branch and bound starts.
    pub labels: u64,
    /// With more nodes than this, thin them out first.
    pub wide: usize,
    /// Rounds of price adjustment.
    pub rounds: usize,
    /// Whether long passes may run: workloads regrouped, wide beams, branch and bound.
    pub thorough: bool,
}

impl Tuning {
    /// For one of many problems in a search.
    pub(super) fn part_of_a_search(labels: u64) -> Self {
        Self {
            halves: labels,
            labels,
            rounds: ROUNDS / 4,
            thorough: false,
            ..Self::default()
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            quick_labels: 4_000,
            halves: 400_000,
            labels: u64::MAX,
            wide: 48,
            rounds: ROUNDS,
            thorough: true,
        }
    }
}

/// How to solve.
#[derive(Debug, Clone)]
pub(crate) struct Exact<'a> {
    /// When to use which pass.
    pub tuning: Tuning,
    /// Limits.
    pub ctx: &'a Ctx,
    /// Most labels.
    pub max_work: u64,
    /// Only placements cheaper than this are wanted.
    pub cutoff: f64,
    /// Stop at the first placement that is cheap enough.
    pub any: bool,
    /// A known placement, with its cost.
    pub start: Option<(f64, Vec<usize>)>,
    /// Seed of everything random.
    pub seed: u64,
}

/// The result.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Cost and node per block, all chains one after the other; cheaper than
    /// the cutoff.
    pub best: Option<(f64, Vec<usize>)>,
    /// No placement costs less than the smaller of this and the best (or the cutoff, without one).
    pub bound: f64,
    /// Whether the search was completed: then `best` is the optimum below the cutoff, or there is
    /// none.
    pub complete: bool,
    /// The pass that ended it.
    pub stage: &'static str,
    /// Labels and rounds spent.
    pub work: u64,
    /// Nodes left at the end.
    pub nodes_left: usize,
}
