//! The problem compiled for the strategies: names become ordinals, exits become
//! weights, constraints become infinite costs and capacities.

use crate::objective::Criterion;
use crate::problem::{Problem, Transition, Workload};
use crate::solution::{Placement, Segment};
use std::collections::HashMap;

mod chain;
mod kinds;
mod measure;
mod plan;
mod reckon;
mod residual;
mod traffic;

pub(crate) use chain::Chain;
pub(crate) use kinds::{COMPUTE, KINDS, LOADING, MEMORY, Rows, SLICES};
pub(crate) use measure::{Aim, Measure, Toll};

use plan::Plan;

/// Tolerance for rounding in capacities that are not whole bytes; half of the checker's.
const SLACK: f64 = 5e-10;

/// A problem in ordinals. Costs are in objective seconds.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// Nodes.
    pub n: usize,
    /// Round trip in seconds, `[from][to]`; infinite if a direction is missing.
    pub round_trip: Vec<f64>,
    /// Seconds per byte, `[from][to]`.
    pub forth: Vec<f64>,
    /// Seconds per byte of the reply, `[from][to]` of the request.
    pub back: Vec<f64>,
    /// Load per byte and second: seconds per byte over the allowed share.
    pub forth_load: Vec<f64>,
    /// The same for the reply, which loads the link `[to][from]`.
    pub back_load: Vec<f64>,
    /// Tier ranks.
    pub tier: Vec<u8>,
    /// Capacity by kind and node; that of [`SLICES`] is in the chain.
    pub capacity: [Vec<f64>; KINDS],
    /// Highest load of a link; 1 is all of its share.
    pub link_capacity: f64,
    /// Utilisation that the workloads may add, whatever the lowered capacities.
    pub free_compute: Vec<f64>,
    /// Utilisation by others.
    pub load_share: Vec<f64>,
    /// Joules per byte there and back, `[from][to]`; empty if no link has any.
    pub joules: Tariff,
    /// Money per byte, likewise.
    pub money: Tariff,
    /// Limited sums.
    pub budgets: Vec<Budget>,
    /// What is minimized.
    pub aim: Aim,
    /// No rate is known: loads are for one request per second of the mix, and limit nothing.
    pub nominal: bool,
    /// One per workload.
    pub chains: Vec<Chain>,
}

/// Cost of a byte besides time, `[from][to]` of the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tariff {
    /// For a byte of the request.
    pub forth: Vec<f64>,
    /// For a byte of the reply, which travels `[to][from]`.
    pub back: Vec<f64>,
}

/// Most budgets of a problem: a latency limit and a ranked criterion each.
pub(crate) const MAX_BUDGETS: usize = 4;

/// A sum that must stay below a limit.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// What each chain adds.
    pub measures: Vec<Measure>,
    /// Limit of each chain; with `total`, of all together.
    pub limits: Vec<f64>,
    /// Whether all chains share one limit.
    pub total: bool,
}

impl Dense {
    /// Compiles a valid problem under a choice of exit rows per workload, for its objective (the
    /// first criterion of a ranked one).
    pub(crate) fn new(problem: &Problem, rows: &[Rows]) -> Self {
        Self::aimed(problem, rows, &Aim::of(&problem.objective), &[])
    }

    /// Compiles it for another aim, with criteria that must stay below a value.
    pub(crate) fn aimed(
        problem: &Problem,
        rows: &[Rows],
        aim: &Aim,
        caps: &[(Criterion, f64)],
    ) -> Self {
        let n = problem.nodes.len();
        let names = problem.nodes.iter().enumerate();
        let index: HashMap<&str, usize> = names.map(|(i, x)| (x.name.as_str(), i)).collect();
        let per_node = |of: fn(&crate::Node) -> f64| problem.nodes.iter().map(of).collect();
        let mut dense = Self {
            n,
            round_trip: vec![f64::INFINITY; n * n],
            forth: vec![f64::INFINITY; n * n],
            back: vec![f64::INFINITY; n * n],
            forth_load: vec![f64::INFINITY; n * n],
            back_load: vec![f64::INFINITY; n * n],
            tier: problem.nodes.iter().map(|x| x.tier as u8).collect(),
            capacity: std::array::from_fn(|_| vec![f64::INFINITY; n]),
            link_capacity: 1.0 + SLACK,
            free_compute: per_node(|x| x.utilisation_cap - x.load_share),
            load_share: per_node(|x| x.load_share),
            joules: Tariff::default(),
            money: Tariff::default(),
            budgets: Vec::new(),
            aim: aim.clone(),
            nominal: false,
            chains: Vec::new(),
        };
        // Most problems meter nothing, and a walk over all links takes time.
        if dense.set_links(problem, &index) {
            dense.set_tariffs(problem, &index);
        }
        dense.set_capacities(problem);
        let mix: f64 = problem.workloads.iter().map(|w| w.rate_per_second).sum();
        // Without any rate, throughput assumes one request per second.
        let about_rate = aim.is_rate() || caps.iter().any(|(c, _)| *c == Criterion::Throughput);
        dense.nominal = mix == 0.0 && about_rate;
        let limited = |w: &Workload| w.constraints.latency_limit_seconds.is_some();
        let latency = problem.workloads.iter().any(limited).then_some(None);
        let sums = caps.iter().filter(|(c, _)| !c.is_worst());
        let plan = Plan {
            aim,
            budgets: latency
                .into_iter()
                .chain(sums.map(|(c, _)| Some(*c)))
                .collect(),
            index: &index,
            mix,
            workloads: problem.workloads.len(),
            nominal: dense.nominal,
        };
        dense.set_chains(problem, rows, &plan, caps);
        if dense.nominal {
            dense.capacity[COMPUTE].fill(f64::INFINITY);
            dense.link_capacity = f64::INFINITY;
        }
        let limit_only = aim.worst.is_none() && caps.iter().all(|(c, _)| !c.is_worst());
        dense.drop_ample(limit_only);
        for (criterion, cap) in caps.iter().filter(|(c, _)| c.is_worst()) {
            dense.lower(*criterion, *cap);
        }
        dense
    }

    fn set_capacities(&mut self, problem: &Problem) {
        for (i, node) in problem.nodes.iter().enumerate() {
            self.capacity[MEMORY][i] = node.memory_bytes as f64 + 0.5;
            // One that others fill beyond its cap has no capacity, rather than a negative one that
            // no placement respects.
            self.capacity[COMPUTE][i] = self.free_compute[i].max(0.0) * (1.0 + SLACK);
            let held = held_bytes(problem, i).saturating_add(node.resident_bytes);
            let free = node.memory_bytes.saturating_sub(held);
            self.capacity[LOADING][i] = match problem.transition {
                Transition::Drain => f64::INFINITY,
                Transition::Shared | Transition::Separate => free as f64 + 0.5,
            };
        }
    }

    fn set_chains(
        &mut self,
        problem: &Problem,
        rows: &[Rows],
        plan: &Plan<'_>,
        caps: &[(Criterion, f64)],
    ) {
        for budget in &plan.budgets {
            let cap = budget.and_then(|c| caps.iter().find(|(of, _)| *of == c));
            self.budgets.push(Budget {
                measures: Vec::new(),
                limits: match cap {
                    Some((_, cap)) => vec![*cap; problem.workloads.len()],
                    None => problem.workloads.iter().map(latency_limit).collect(),
                },
                total: cap.is_some(),
            });
        }
        for (workload, rows) in problem.workloads.iter().zip(rows) {
            let (chain, measures) = Chain::new(problem, workload, plan, rows);
            self.chains.push(chain);
            for (budget, measure) in self.budgets.iter_mut().zip(measures) {
                budget.measures.push(measure);
            }
        }
    }

    /// Lowers every capacity to what a worst place of the given value leaves.
    pub(crate) fn lower(&mut self, criterion: Criterion, value: f64) {
        let mix: f64 = self.chains.iter().map(|c| c.rate).sum();
        for i in 0..self.n {
            let room = match criterion {
                Criterion::Throughput => value * mix * self.free_compute[i],
                Criterion::Fairness => value - self.load_share[i],
                _ => value * self.free_compute[i],
            };
            if room < 0.0 {
                for chain in &mut self.chains {
                    let places = chain.cost.iter_mut().skip(i).step_by(self.n);
                    places.for_each(|c| *c = f64::INFINITY);
                }
            }
            if self.nominal && criterion != Criterion::Throughput {
                continue;
            }
            let capacity = &mut self.capacity[COMPUTE][i];
            *capacity = capacity.min(room.max(0.0));
        }
        if criterion == Criterion::Throughput {
            self.link_capacity = self.link_capacity.min(value * mix);
        }
    }

    fn set_tariffs(&mut self, problem: &Problem, index: &HashMap<&str, usize>) {
        type Price = fn(&crate::Link) -> f64;
        let prices: [Price; 2] = [|l| l.joules_per_byte, |l| l.price_per_byte];
        let n = self.n;
        for (tariff, price) in [&mut self.joules, &mut self.money].into_iter().zip(prices) {
            let links = problem.links.iter().flat_map(|(from, row)| {
                let i = index.get(from.as_str()).copied();
                row.iter()
                    .filter(move |(_, link)| price(link) > 0.0)
                    .filter_map(move |(to, link)| Some((i?, *index.get(to.as_str())?, link)))
            });
            for (i, j, link) in links {
                if tariff.forth.is_empty() {
                    tariff.forth = vec![0.0; n * n];
                    tariff.back = vec![0.0; n * n];
                }
                tariff.forth[i * n + j] = price(link);
                tariff.back[j * n + i] = price(link);
            }
        }
    }

    /// Returns whether any link is metered.
    fn set_links(&mut self, problem: &Problem, index: &HashMap<&str, usize>) -> bool {
        let n = self.n;
        let mut metered = false;
        let mut sorted: Vec<(&str, usize)> = index.iter().map(|(k, v)| (*k, *v)).collect();
        sorted.sort_unstable();
        let mut one_way = vec![f64::INFINITY; n * n];
        for (from, row) in &problem.links {
            let Some(&i) = index.get(from.as_str()) else {
                continue;
            };
            let mut names = sorted.iter().peekable();
            for (to, link) in row {
                while names.next_if(|(name, _)| *name < to.as_str()).is_some() {}
                let Some(&&(name, j)) = names.peek() else {
                    break;
                };
                if name != to {
                    continue;
                }
                let at = i * n + j;
                metered |= link.joules_per_byte > 0.0 || link.price_per_byte > 0.0;
                one_way[at] = link.latency_seconds;
                self.forth[at] = link.bytes_per_second.recip();
                self.forth_load[at] = self.forth[at] / link.share;
            }
        }
        for i in 0..n {
            for j in 0..n {
                let (at, turned) = (i * n + j, j * n + i);
                self.round_trip[at] = one_way[at] + one_way[turned];
                self.back[at] = self.forth[turned];
                self.back_load[at] = self.forth_load[turned];
            }
        }
        metered
    }

    /// Drops kinds that no node can run short of, so that no pass counts them. Compute time only if
    /// it `is_limit_only` and not the objective.
    fn drop_ample(&mut self, is_limit_only: bool) {
        for kind in (0..KINDS).filter(|k| *k != COMPUTE || is_limit_only) {
            let short = (0..self.n).any(|i| {
                let total: f64 = self
                    .chains
                    .iter()
                    .map(|c| c.total_need(kind, i, self.n))
                    .sum();
                if kind == SLICES {
                    self.chains
                        .iter()
                        .any(|c| c.total_need(SLICES, i, self.n) > c.slice_capacity[i])
                } else {
                    total > self.capacity[kind][i]
                }
            });
            if !short {
                for chain in &mut self.chains {
                    chain.need[kind] = Vec::new();
                }
            }
        }
        // Without another placement to hold, loading equals holding.
        let same = self.capacity[LOADING]
            .iter()
            .zip(&self.capacity[MEMORY])
            .all(|(a, b)| a == b)
            && self
                .chains
                .iter()
                .all(|c| c.need[LOADING] == c.need[MEMORY]);
        if same {
            for chain in &mut self.chains {
                chain.need[LOADING] = Vec::new();
            }
        }
    }

    /// Capacity of a kind on a node for a chain.
    #[inline]
    pub(crate) fn room(&self, chain: &Chain, kind: usize, node: usize) -> f64 {
        if kind == SLICES {
            chain.slice_capacity[node]
        } else {
            self.capacity[kind][node]
        }
    }

    /// The placements of a path.
    pub(crate) fn placements(
        &self,
        problem: &Problem,
        rows: &[Rows],
        path: &[usize],
    ) -> Vec<Placement> {
        let mut offset = 0;
        let mut placements = Vec::new();
        for ((workload, chain), rows) in problem.workloads.iter().zip(&self.chains).zip(rows) {
            let nodes = &path[offset..offset + chain.l];
            offset += chain.l;
            let mut segments: Vec<Segment> = Vec::new();
            for (b, &node) in nodes.iter().enumerate() {
                let name = &problem.nodes[node].name;
                match segments.last_mut() {
                    Some(last) if last.node == *name => last.blocks.push(b),
                    _ => segments.push(Segment {
                        node: name.clone(),
                        blocks: vec![b],
                    }),
                }
            }
            placements.push(Placement {
                workload: workload.name.clone(),
                segments,
                thresholds: workload
                    .exits
                    .iter()
                    .zip(rows)
                    .map(|(e, r)| e.table[*r].threshold)
                    .collect(),
            });
        }
        placements
    }

    /// The previous placements of all chains one after the other, if each has a complete one.
    pub(crate) fn previous_path(&self) -> Option<Vec<usize>> {
        let mut path = Vec::new();
        for chain in &self.chains {
            path.extend(chain.previous.as_ref()?);
        }
        Some(path)
    }
}

fn latency_limit(workload: &Workload) -> f64 {
    let limit = workload.constraints.latency_limit_seconds;
    limit.map_or(f64::INFINITY, |s| s * (1.0 + SLACK))
}

fn held_bytes(problem: &Problem, node: usize) -> u64 {
    let name = &problem.nodes[node].name;
    let mut sum = 0u64;
    for workload in &problem.workloads {
        let Some(previous) = &workload.previous else {
            continue;
        };
        let mut seen = vec![false; workload.blocks.len()];
        for segment in previous.segments.iter().filter(|s| s.node == *name) {
            for &b in &segment.blocks {
                if !std::mem::replace(&mut seen[b], true) {
                    sum = sum.saturating_add(workload.blocks[b].memory_bytes);
                }
            }
        }
    }
    sum
}
