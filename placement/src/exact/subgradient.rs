//! Prices that rise where the relaxed placement overdraws a capacity and fall where it leaves some
//! (subgradient ascent with Polyak's step).

use super::reduce::restrict_prices;
use super::tables::{Prices, Relaxed};
use crate::dense::{COMPUTE, Dense, KINDS, SLICES};

/// Rounds without progress after which the step is halved.
const PATIENCE: usize = 6;
/// A smaller step is not worth a round.
const SMALLEST_STEP: f64 = 0.02;

/// An ascent in progress.
pub(super) struct Ascent {
    /// Prices of the next round.
    pub prices: Prices,
    /// Prices of the round before.
    pub last: Prices,
    /// Prices of the best bound so far.
    pub best: Prices,
    /// The best bound of these prices so far.
    value: f64,
    step: f64,
    stalled: usize,
}

/// What the relaxed placement uses beyond capacity (negative: what it leaves), in the shape of the
/// prices.
struct Excess {
    node: [Vec<f64>; KINDS],
    link: Vec<(usize, f64)>,
}

impl Ascent {
    pub(super) fn new(dense: &Dense) -> Self {
        Self {
            prices: Prices::zero(dense),
            last: Prices::zero(dense),
            best: Prices::zero(dense),
            value: f64::NEG_INFINITY,
            step: 1.0,
            stalled: 0,
        }
    }

    /// Continues with the remaining nodes of `n`.
    pub(super) fn restrict(&mut self, n: usize, ids: &[usize]) {
        for prices in [&mut self.prices, &mut self.last, &mut self.best] {
            *prices = restrict_prices(prices, n, ids);
        }
    }

    /// Adjusts the prices after a round. False if nothing more can be gained.
    pub(super) fn step(&mut self, dense: &Dense, round: &Relaxed, cutoff: f64) -> bool {
        self.last = self.prices.clone();
        if round.value > self.value {
            self.value = round.value;
            self.best = self.prices.clone();
            self.stalled = 0;
        } else {
            self.stalled += 1;
            if self.stalled >= PATIENCE {
                self.stalled = 0;
                self.step *= 0.5;
            }
        }
        if self.step < SMALLEST_STEP {
            return false;
        }
        let value = round.value;
        let excess = self.excess(dense, &round.paths);
        // Capacities differ in unit: each excess is relative to its own.
        let (mut norm, mut any) = (0.0, false);
        self.each(dense, &excess, |price, over, capacity| {
            if over > 0.0 || *price > 0.0 {
                norm += (over / capacity).powi(2);
                any = any || over > 0.0 || *price > 0.0;
            }
        });
        if !any || norm <= 0.0 {
            return false;
        }
        let target = if cutoff < f64::INFINITY {
            cutoff
        } else {
            value + 0.1 * value.abs() + 1e-12
        };
        let length = self.step * (target - value).max(1e-3 * value.abs()) / norm;
        self.each(dense, &excess, |price, over, capacity| {
            *price = (*price + length * over / (capacity * capacity)).max(0.0);
        });
        true
    }

    fn each(&mut self, dense: &Dense, excess: &Excess, mut act: impl FnMut(&mut f64, f64, f64)) {
        let n = dense.n;
        for (kind, all) in self.prices.node.iter_mut().enumerate() {
            for (at, price) in all.iter_mut().enumerate() {
                let capacity = if kind == SLICES {
                    dense.chains[at / n].slice_capacity[at % n]
                } else {
                    dense.capacity[kind][at]
                };
                if capacity < f64::INFINITY && capacity > 0.0 {
                    act(price, excess.node[kind][at], capacity);
                }
            }
        }
        for (at, over) in &excess.link {
            if self.prices.link.is_empty() {
                self.prices.link = vec![0.0; n * n];
            }
            act(&mut self.prices.link[*at], *over, dense.link_capacity);
        }
    }

    fn excess(&self, dense: &Dense, paths: &[Vec<usize>]) -> Excess {
        let n = dense.n;
        let chains = dense.chains.len();
        let mut node: [Vec<f64>; KINDS] =
            std::array::from_fn(|kind| vec![0.0; n * if kind == SLICES { chains } else { 1 }]);
        let mut links = std::collections::BTreeMap::new();
        for (k, (chain, path)) in dense.chains.iter().zip(paths).enumerate() {
            let mut at = chain.entry;
            for (b, &to) in path.iter().enumerate() {
                for (kind, need) in chain.need.iter().enumerate() {
                    if !need.is_empty() {
                        let base = if kind == SLICES { k * n } else { 0 };
                        node[kind][base + to] += need[b * n + to];
                    }
                }
                if at != to {
                    if !chain.cut_load.is_empty() {
                        node[COMPUTE][at] += chain.cut_load[b * n + at];
                    }
                    if chain.rate > 0.0 {
                        let (forth, back) = (at * n + to, to * n + at);
                        *links.entry(forth).or_insert(0.0) +=
                            chain.rate * chain.bytes[b] * dense.forth_load[forth];
                        *links.entry(back).or_insert(0.0) +=
                            chain.rate * chain.reply[b] * dense.back_load[forth];
                    }
                }
                at = to;
            }
        }
        for (kind, all) in node.iter_mut().enumerate() {
            for (at, used) in all.iter_mut().enumerate() {
                *used -= if kind == SLICES {
                    dense.chains[at / n].slice_capacity[at % n]
                } else {
                    dense.capacity[kind][at]
                };
            }
        }
        let capacity = dense.link_capacity;
        let priced = |at: usize| self.prices.link.get(at).is_some_and(|p| *p > 0.0);
        for at in (0..self.prices.link.len()).filter(|at| priced(*at)) {
            links.entry(at).or_insert(0.0);
        }
        let link = if capacity == f64::INFINITY {
            Vec::new()
        } else {
            links
                .into_iter()
                .map(|(at, used)| (at, used - capacity))
                .filter(|(at, over)| *over > 0.0 || priced(*at))
                .collect()
        };
        Excess { node, link }
    }
}
