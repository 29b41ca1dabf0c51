//! One workload, compiled.

use super::kinds::{COMPUTE, KINDS, LOADING, MEMORY, Rows, SLICES};
use super::measure::{Measure, Source, Toll};
use super::plan::Plan;
use super::traffic::Traffic;
use crate::problem::{Problem, Transition, Workload};
use std::collections::HashMap;

/// One workload with its thresholds chosen.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    /// Blocks.
    pub l: usize,
    /// Entry node.
    pub entry: usize,
    /// Expected cost of block and node, `[block][node]`; infinite if it must not run there.
    pub cost: Vec<f64>,
    /// Cost of a crossing.
    pub toll: Toll,
    /// Need of a block of each kind, `[block][node]`; empty if it cannot be short anywhere.
    pub need: [Vec<f64>; KINDS],
    /// Slice limit per node.
    pub slice_capacity: Vec<f64>,
    /// Requests per second.
    pub rate: f64,
    /// Expected request bytes at the cut before block `b`.
    pub bytes: Vec<f64>,
    /// Expected reply bytes at the cut before block `b`.
    pub reply: Vec<f64>,
    /// Utilisation of cutting before block `b` with block `b-1` on a node, `[b][node]`; empty if no
    /// block has a penalty.
    pub cut_load: Vec<f64>,
    /// Tiers must not go down.
    pub monotone: bool,
    /// Node of each block in the previous placement, if it is complete and all its nodes still
    /// exist.
    pub previous: Option<Vec<usize>>,
}

impl Chain {
    /// Compiles one workload; returns what its budgets count, in order.
    pub(super) fn new(
        problem: &Problem,
        workload: &Workload,
        plan: &Plan<'_>,
        rows: &Rows,
    ) -> (Self, Vec<Measure>) {
        let (n, l) = (problem.nodes.len(), workload.blocks.len());
        let traffic = Traffic::new(workload, rows);
        let (held, previous) = holdings(workload, n, plan.index);
        let at_hand = at_hand(workload, &held, n, plan.index);
        let source = Source {
            problem,
            workload,
            traffic: &traffic,
            index: plan.index,
            share: plan.share(workload),
            at_hand: &at_hand,
        };
        let Measure { cost, toll } = if plan.aim.sum.is_empty() {
            source.latency()
        } else {
            source.weighted(&plan.aim.sum)
        };
        let budgets = plan.budgets.iter().map(|budget| match budget {
            None => source.latency(),
            Some(criterion) => source.weighted(&[(*criterion, 1.0)]),
        });
        let budgets = budgets.collect();
        let mut chain = Self {
            l,
            entry: plan
                .index
                .get(workload.entry.as_str())
                .copied()
                .unwrap_or_default(),
            cost,
            toll,
            need: std::array::from_fn(|_| vec![0.0; l * n]),
            slice_capacity: vec![f64::INFINITY; n],
            rate: plan.rate(workload),
            bytes: traffic.bytes,
            reply: traffic.reply,
            cut_load: Vec::new(),
            monotone: workload.constraints.monotone_tiers,
            previous,
        };
        chain.set_needs(problem, workload, plan.index, &traffic.reach);
        if problem.transition == Transition::Shared {
            for (need, _) in chain.need[LOADING]
                .iter_mut()
                .zip(&held)
                .filter(|(_, h)| **h)
            {
                *need = 0.0;
            }
        }
        chain.set_limits(problem, workload);
        (chain, budgets)
    }

    fn set_needs(
        &mut self,
        problem: &Problem,
        workload: &Workload,
        index: &HashMap<&str, usize>,
        reach: &[f64],
    ) {
        let n = problem.nodes.len();
        let penalties = workload.blocks.iter().flat_map(|b| b.costs.values());
        if penalties.into_iter().any(|c| c.cut_penalty_seconds > 0.0) {
            self.cut_load = vec![0.0; self.l * n];
        }
        for (b, block) in workload.blocks.iter().enumerate() {
            for (name, cost) in &block.costs {
                let Some(&i) = index.get(name.as_str()) else {
                    continue;
                };
                let lanes = f64::from(problem.nodes[i].concurrency);
                self.need[COMPUTE][b * n + i] = self.rate * reach[b] * cost.seconds / lanes;
                if !self.cut_load.is_empty() && b + 1 < self.l {
                    self.cut_load[(b + 1) * n + i] =
                        self.rate * reach[b + 1] * cost.cut_penalty_seconds / lanes;
                }
            }
            for i in 0..n {
                self.need[MEMORY][b * n + i] = block.memory_bytes as f64;
                self.need[LOADING][b * n + i] = block.memory_bytes as f64;
                self.need[SLICES][b * n + i] = block.slice_bytes as f64;
            }
        }
    }

    /// Makes disallowed places infinitely expensive, and sets the slice limits.
    fn set_limits(&mut self, problem: &Problem, workload: &Workload) {
        let n = problem.nodes.len();
        let c = &workload.constraints;
        for (i, node) in problem.nodes.iter().enumerate() {
            let tier_limit = c.tier_slice_limit_bytes.get(&node.tier).copied();
            let node_limit = c.node_slice_limit_bytes.get(&node.name).copied();
            if let Some(limit) = tier_limit.into_iter().chain(node_limit).min() {
                self.slice_capacity[i] = limit as f64 + 0.5;
            }
            let closed = node.excluded.is_some()
                || node.utilisation_cap <= node.load_share
                || c.allowed_tiers
                    .as_ref()
                    .is_some_and(|t| !t.contains(&node.tier));
            for b in 0..self.l {
                let away = b < c.keep_first_on_entry && i != self.entry;
                if closed || away {
                    self.forbid(b, i, n);
                }
            }
        }
        for pin in &c.pins {
            for (i, node) in problem.nodes.iter().enumerate() {
                if node.name != pin.node {
                    self.forbid(pin.block, i, n);
                }
            }
        }
        for item in &c.forbidden {
            for (i, node) in problem.nodes.iter().enumerate() {
                if node.name == item.node {
                    self.forbid(item.block, i, n);
                }
            }
        }
    }

    fn forbid(&mut self, block: usize, node: usize, n: usize) {
        self.cost[block * n + node] = f64::INFINITY;
    }

    pub(crate) fn total_need(&self, kind: usize, node: usize, n: usize) -> f64 {
        if self.need[kind].is_empty() {
            return 0.0;
        }
        let blocks: f64 = (0..self.l)
            .filter(|b| self.cost[b * n + node] < f64::INFINITY)
            .map(|b| self.need[kind][b * n + node])
            .sum();
        let cuts: f64 = if kind == COMPUTE && !self.cut_load.is_empty() {
            (0..self.l).map(|b| self.cut_load[b * n + node]).sum()
        } else {
            0.0
        };
        blocks + cuts
    }
}

/// Which node holds which block, `[block][node]`, and the node of each block if the previous
/// placement is complete and all its nodes exist.
fn holdings(
    workload: &Workload,
    n: usize,
    index: &HashMap<&str, usize>,
) -> (Vec<bool>, Option<Vec<usize>>) {
    let Some(previous) = &workload.previous else {
        return (Vec::new(), None);
    };
    let l = workload.blocks.len();
    let mut held = vec![false; l * n];
    let mut order = Vec::new();
    for segment in &previous.segments {
        let node = index.get(segment.node.as_str()).copied();
        for &b in &segment.blocks {
            order.push((b, node));
            if let Some(i) = node {
                held[b * n + i] = true;
            }
        }
    }
    let in_order = order.iter().map(|(b, _)| *b).eq(0..l);
    let nodes: Option<Vec<usize>> = order.into_iter().map(|(_, node)| node).collect();
    (held, nodes.filter(|_| in_order))
}

/// As `held`, with the blocks that nodes have on their disks.
fn at_hand(
    workload: &Workload,
    held: &[bool],
    n: usize,
    index: &HashMap<&str, usize>,
) -> Vec<bool> {
    let mut at_hand = held.to_vec();
    for segment in workload.previous.iter().flat_map(|p| &p.on_disk) {
        if let Some(i) = index.get(segment.node.as_str()) {
            for &b in &segment.blocks {
                at_hand[b * n + i] = true;
            }
        }
    }
    at_hand
}
