//! Costs of crossings and whole placements, in ordinals.

use super::{Budget, COMPUTE, Chain, Dense, KINDS, LOADING, SLICES, Tariff, Toll};
use crate::objective::Criterion;
use std::collections::HashMap;

/// The value of a whole placement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Assessment {
    /// Sum of costs.
    pub cost: f64,
    /// The worst place, if the aim has one.
    pub worst: f64,
    /// How far limits are overdrawn, as a sum of shares; 0 exactly if every one is respected.
    pub excess: f64,
}

/// A limit overdrawn by more than this factor counts as this much.
const MOST_EXCESS: f64 = 10.0;

/// Resources of a placement.
pub(super) struct Used {
    pub(super) nodes: [Vec<f64>; KINDS],
    pub(super) links: HashMap<usize, f64>,
    hosts: Vec<bool>,
}

impl Dense {
    /// Cost of crossing from node `from` to `to` before block `b`; infinite if that is impossible
    /// even for this crossing alone.
    #[inline]
    pub(crate) fn crossing(&self, chain: &Chain, b: usize, from: usize, to: usize) -> f64 {
        self.toll(chain, &chain.toll, b, from, to)
    }

    /// What a crossing adds to the sum of the toll.
    #[inline]
    pub(crate) fn toll(&self, chain: &Chain, toll: &Toll, b: usize, from: usize, to: usize) -> f64 {
        if from == to {
            return 0.0;
        }
        let at = from * self.n + to;
        if chain.rate * chain.bytes[b] * self.forth_load[at] > self.link_capacity
            || chain.rate * chain.reply[b] * self.back_load[at] > self.link_capacity
            || (chain.monotone && b > 0 && self.tier[to] < self.tier[from])
            || self.round_trip[at] == f64::INFINITY
        {
            return f64::INFINITY;
        }
        let mut cost = toll.trip[b] * self.round_trip[at]
            + toll.forth[b] * self.forth[at]
            + toll.back[b] * self.back[at];
        if !toll.cut.is_empty() {
            cost += toll.cut[b * self.n + from];
        }
        let priced = |weight: f64, tariff: &Tariff| {
            if weight > 0.0 && !tariff.forth.is_empty() {
                weight * (chain.bytes[b] * tariff.forth[at] + chain.reply[b] * tariff.back[at])
            } else {
                0.0
            }
        };
        cost + priced(toll.joules, &self.joules) + priced(toll.money, &self.money)
    }

    /// Whether bytes cost more than time.
    pub(crate) fn is_metered(&self, toll: &Toll) -> bool {
        (toll.joules > 0.0 && !self.joules.forth.is_empty())
            || (toll.money > 0.0 && !self.money.forth.is_empty())
    }

    /// Cost of a whole placement, a node per block, all chains (or the first few) one after the
    /// other; `None` if it breaks a constraint.
    pub(crate) fn evaluate(&self, path: &[usize]) -> Option<f64> {
        let assessment = self.assess(path)?;
        (assessment.excess == 0.0).then_some(assessment.cost)
    }

    /// The aim's value of a whole placement (or of the first few chains).
    pub(crate) fn value(&self, path: &[usize]) -> Option<f64> {
        let assessment = self.assess(path)?;
        (assessment.excess == 0.0).then(|| self.weigh(&assessment))
    }

    /// The aim's value of an assessment, whatever limits it breaks.
    pub(crate) fn weigh(&self, assessment: &Assessment) -> f64 {
        let sum = if self.aim.sum.is_empty() {
            0.0
        } else {
            assessment.cost
        };
        let worst = self.aim.worst.map_or(0.0, |(_, w)| w * assessment.worst);
        sum + worst
    }

    /// Assesses a whole placement (or the first few chains); `None` if a block or a crossing is
    /// impossible by itself.
    pub(crate) fn assess(&self, path: &[usize]) -> Option<Assessment> {
        let mut used = self.nothing_used();
        let (mut cost, mut offset, mut excess) = (0.0, 0, 0.0);
        let mut spent = vec![0.0; self.budgets.len()];
        for (k, chain) in self.chains.iter().enumerate() {
            let Some(nodes) = path.get(offset..offset + chain.l) else {
                break;
            };
            offset += chain.l;
            cost += self.walk(chain, &chain.cost, &chain.toll, nodes);
            if cost == f64::INFINITY {
                return None;
            }
            self.use_up(chain, nodes, &mut used);
            for (budget, spent) in self.budgets.iter().zip(&mut spent) {
                let measure = &budget.measures[k];
                *spent += self.walk(chain, &measure.cost, &measure.toll, nodes);
                if !budget.total {
                    excess += over(*spent, budget.limits[k]);
                    *spent = 0.0;
                }
            }
            for (used, capacity) in used.nodes[SLICES].iter_mut().zip(&chain.slice_capacity) {
                excess += over(*used, *capacity);
                *used = 0.0;
            }
        }
        let total = |b: &Budget| b.limits.first().copied().unwrap_or(f64::INFINITY);
        for (budget, spent) in self.budgets.iter().zip(spent).filter(|(b, _)| b.total) {
            excess += over(spent, total(budget));
        }
        for kind in 0..SLICES {
            let pairs = used.nodes[kind].iter().zip(&self.capacity[kind]);
            excess += pairs.map(|(u, c)| over(*u, *c)).sum::<f64>();
        }
        let mut loads: Vec<f64> = used.links.values().copied().collect();
        // Sorted, so that the same path gives the same result whatever the map's order.
        loads.sort_by(f64::total_cmp);
        excess += loads
            .iter()
            .map(|u| over(*u, self.link_capacity))
            .sum::<f64>();
        Some(Assessment {
            cost,
            worst: self.worst(&used),
            excess,
        })
    }

    /// Load of each link that a whole placement uses, `[from][to]`.
    pub(crate) fn link_loads(&self, path: &[usize]) -> Vec<(usize, f64)> {
        let mut links = HashMap::new();
        let mut offset = 0;
        for chain in &self.chains {
            let mut at = chain.entry;
            for b in 0..chain.l {
                let node = path[offset + b];
                if node != at {
                    self.load_links(chain, b, at, node, &mut links);
                }
                at = node;
            }
            offset += chain.l;
        }
        links.into_iter().collect()
    }

    pub(super) fn nothing_used(&self) -> Used {
        Used {
            nodes: std::array::from_fn(|_| vec![0.0; self.n]),
            links: HashMap::new(),
            hosts: vec![false; self.n],
        }
    }

    /// A sum along one chain.
    pub(super) fn walk(&self, chain: &Chain, cost: &[f64], toll: &Toll, nodes: &[usize]) -> f64 {
        let (mut sum, mut at) = (0.0, chain.entry);
        for (b, &node) in nodes.iter().enumerate() {
            if node != at {
                sum += self.toll(chain, toll, b, at, node);
            }
            sum += cost[b * self.n + node];
            at = node;
        }
        sum
    }

    pub(super) fn use_up(&self, chain: &Chain, nodes: &[usize], used: &mut Used) {
        let n = self.n;
        // Held twice or not, unchanged blocks are not loaded.
        let unchanged = chain.previous.as_ref().is_some_and(|p| p == nodes);
        let mut at = chain.entry;
        for (b, &node) in nodes.iter().enumerate() {
            if node != at {
                self.load_links(chain, b, at, node, &mut used.links);
                if !chain.cut_load.is_empty() {
                    used.nodes[COMPUTE][at] += chain.cut_load[b * n + at];
                }
            }
            for (kind, used) in used.nodes.iter_mut().enumerate() {
                if !(chain.need[kind].is_empty() || kind == LOADING && unchanged) {
                    used[node] += chain.need[kind][b * n + node];
                }
            }
            used.hosts[node] = true;
            at = node;
        }
    }

    /// The value of the worst place; 0 if the aim has none.
    fn worst(&self, used: &Used) -> f64 {
        let Some((criterion, _)) = self.aim.worst else {
            return 0.0;
        };
        let hosts = || (0..self.n).filter(|i| used.hosts[*i]);
        let idle = self.nominal && criterion != Criterion::Throughput;
        let compute: Vec<f64> = used.nodes[COMPUTE]
            .iter()
            .map(|u| if idle { 0.0 } else { *u })
            .collect();
        if criterion == Criterion::Fairness {
            let utilisation = hosts().map(|i| self.load_share[i] + compute[i]);
            return utilisation.fold(0.0, f64::max);
        }
        let busiest = hosts()
            .map(|i| compute[i] / self.free_compute[i])
            .fold(0.0, f64::max);
        if criterion == Criterion::ProportionalFairness {
            return busiest;
        }
        let mix: f64 = self.chains.iter().map(|c| c.rate).sum();
        let links = used.links.values().copied().fold(0.0, f64::max);
        if mix > 0.0 {
            busiest.max(links) / mix
        } else {
            0.0
        }
    }

    fn load_links(
        &self,
        chain: &Chain,
        b: usize,
        from: usize,
        to: usize,
        links: &mut HashMap<usize, f64>,
    ) {
        let at = from * self.n + to;
        *links.entry(at).or_default() += chain.rate * chain.bytes[b] * self.forth_load[at];
        let turned = to * self.n + from;
        *links.entry(turned).or_default() += chain.rate * chain.reply[b] * self.back_load[at];
    }
}

/// By what share a limit is overdrawn; 0 exactly if it is not.
fn over(used: f64, limit: f64) -> f64 {
    if used <= limit {
        return 0.0;
    }
    let share = (used - limit) / limit.abs().max(1e-9);
    if share.is_finite() {
        share.clamp(f64::MIN_POSITIVE, MOST_EXCESS)
    } else {
        MOST_EXCESS
    }
}
