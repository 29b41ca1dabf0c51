//! Several workloads: a few are taken out and re-placed exactly on what the others leave (large
//! neighbourhood search: Shaw, "Using constraint programming and local search methods to solve
//! vehicle routing problems", 1998). Finds good placements, proves nothing.

use super::labels::IMPROVEMENT;
use super::terms::{Exact, Tuning};
use crate::dense::{Dense, MEMORY};
use crate::limits::Ctx;
use crate::random::Dice;

/// Labels per re-placement.
const LABELS: u64 = 20_000;
/// Orders tried for a first placement.
const ORDERS: usize = 24;
/// Most workloads taken out at once.
const MOST: usize = 3;
/// Failures in a row after which to stop, and how many more per workload.
const FAILURES: (usize, usize) = (40, 10);
/// Share of choices in which the workloads taken out are near each other.
const RELATED: f64 = 0.6;

/// A search in progress.
pub(super) struct Regroup<'a> {
    how: &'a Exact<'a>,
    dense: &'a Dense,
    ctx: &'a Ctx,
    dice: Dice,
    /// Labels and rounds spent, and their limit.
    pub work: u64,
    max_work: u64,
}

/// A node per block, for each placed chain.
type Places = Vec<Option<Vec<usize>>>;

impl<'a> Regroup<'a> {
    pub(super) fn new(how: &'a Exact<'a>, dense: &'a Dense, ctx: &'a Ctx, max_work: u64) -> Self {
        Self {
            how,
            dense,
            ctx,
            dice: Dice::new(how.seed),
            work: 0,
            max_work,
        }
    }

    /// A placement better than `start`, whose cost is the sum over its chains; without `start`, a
    /// first placement. Stops at `enough`.
    pub(super) fn search(
        &mut self,
        start: Option<Vec<usize>>,
        enough: f64,
    ) -> Option<(f64, Vec<usize>)> {
        let mut places = match &start {
            Some(path) => self.split(path),
            None => self.first()?,
        };
        let mut cost = self.cost(&places);
        let chains = places.len();
        let (mut failures, mut round) = (0, 0);
        while failures < FAILURES.0 + FAILURES.1 * chains && !self.is_over() && cost > enough {
            let size = 1 + (round + failures / FAILURES.0) % MOST;
            round += 1;
            let out = self.choose(&places, size.min(chains));
            if self.replace(&mut places, &out) {
                cost = self.cost(&places);
                failures = 0;
            } else {
                failures += 1;
            }
        }
        let path: Vec<usize> = places.into_iter().flatten().flatten().collect();
        Some((self.dense.evaluate(&path)?, path))
    }

    fn is_over(&self) -> bool {
        self.work >= self.max_work || self.ctx.expired()
    }

    fn split(&self, path: &[usize]) -> Places {
        let mut rest = path;
        let chains = self.dense.chains.iter();
        chains
            .map(|chain| {
                let (own, others) = rest.split_at(chain.l);
                rest = others;
                Some(own.to_vec())
            })
            .collect()
    }

    fn cost(&self, places: &Places) -> f64 {
        let costs = places.iter().enumerate().map(|(k, nodes)| {
            let nodes = nodes.as_deref();
            nodes.map_or(0.0, |nodes| self.dense.chain_cost(k, nodes))
        });
        costs.sum()
    }

    /// One after the other, the largest first; a workload that does not fit is first in the next
    /// try.
    fn first(&mut self) -> Option<Places> {
        let chains = self.dense.chains.len();
        let mut order: Vec<usize> = (0..chains).collect();
        let size = |k: &usize| self.dense.chains[*k].need[MEMORY].iter().sum::<f64>();
        order.sort_by(|a, b| size(b).total_cmp(&size(a)));
        for _ in 0..ORDERS {
            let mut places: Places = vec![None; chains];
            let stuck = order.iter().position(|k| !self.replace(&mut places, &[*k]));
            let Some(stuck) = stuck else {
                return Some(places);
            };
            if self.is_over() || stuck == 0 {
                return None;
            }
            order[..=stuck].rotate_right(1);
            // The same order again would end the same way.
            let swapped = self.dice.below(chains - 1) + 1;
            let with = self.dice.below(chains - 1) + 1;
            order.swap(swapped, with);
        }
        None
    }

    /// Which ones to take out: often one and those that share nodes with it.
    fn choose(&mut self, places: &Places, size: usize) -> Vec<usize> {
        let chains = places.len();
        let mut out = vec![self.dice.below(chains)];
        let seed = out[0];
        let shares = |k: &usize| {
            let (own, other) = (&places[seed], &places[*k]);
            let own = own.as_deref().unwrap_or_default();
            other.iter().flatten().any(|i| own.contains(i))
        };
        let related: Vec<usize> = (0..chains).filter(|k| *k != seed && shares(k)).collect();
        while out.len() < size {
            let near = !related.is_empty() && self.dice.chance(RELATED);
            let next = if near {
                related[self.dice.below(related.len())]
            } else {
                self.dice.below(chains)
            };
            if !out.contains(&next) {
                out.push(next);
            }
        }
        out
    }

    /// Re-places `out`; returns whether that is better (or, if they were not placed, possible).
    fn replace(&mut self, places: &mut Places, out: &[usize]) -> bool {
        let kept: Vec<(usize, &[usize])> = places
            .iter()
            .enumerate()
            .filter(|(k, _)| !out.contains(k))
            .filter_map(|(k, nodes)| Some((k, nodes.as_deref()?)))
            .collect();
        let left = self.dense.residual(&kept, out);
        let before: f64 = out
            .iter()
            .map(|k| {
                let nodes = places[*k].as_deref();
                nodes.map_or(f64::INFINITY, |nodes| self.dense.chain_cost(*k, nodes))
            })
            .sum();
        let limits = self.ctx.part(0.25);
        let solve = Exact {
            tuning: Tuning::part_of_a_search(LABELS),
            ctx: &limits,
            max_work: self.max_work.saturating_sub(self.work).min(LABELS * 2),
            cutoff: before * (1.0 - IMPROVEMENT),
            any: false,
            start: None,
            seed: self.how.seed,
        };
        let outcome = solve.solve(&left);
        self.work += outcome.work + 1;
        let Some((_, path)) = outcome.best else {
            return false;
        };
        let mut rest = path.as_slice();
        for k in out {
            let (own, others) = rest.split_at(self.dense.chains[*k].l);
            places[*k] = Some(own.to_vec());
            rest = others;
        }
        true
    }
}
