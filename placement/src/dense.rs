//! The problem compiled for the strategies: names become ordinals, exits become
//! weights, constraints become infinite costs and capacities.

use crate::problem::{Objective, Problem, Transition, Workload};
use crate::solution::{Placement, Segment};
use std::collections::HashMap;

/// What a node has a limited amount of. The slice limit counts one workload
/// alone, the others are shared by all.
pub(crate) const MEMORY: usize = 0;
/// Bytes loaded during the switch.
pub(crate) const LOADING: usize = 1;
/// Utilisation.
pub(crate) const COMPUTE: usize = 2;
/// Slice bytes of one workload.
pub(crate) const SLICES: usize = 3;
/// How many kinds there are.
pub(crate) const KINDS: usize = 4;

/// Room for rounding in capacities that are not whole bytes; half of what the
/// checker allows.
const SLACK: f64 = 5e-10;

/// The choice of one table row per exit.
pub(crate) type Rows = Vec<usize>;

/// A problem in ordinals. Costs are in objective seconds.
#[derive(Debug, Clone)]
pub(crate) struct Dense {
    /// Nodes.
    pub n: usize,
    /// Round trip in seconds, `[from][to]`; infinite where a direction is
    /// missing.
    pub round_trip: Vec<f64>,
    /// Seconds per byte, `[from][to]`.
    pub forth: Vec<f64>,
    /// Seconds per byte of the reply, `[from][to]` of the request.
    pub back: Vec<f64>,
    /// Load per byte and second: seconds per byte over the share allowed.
    pub forth_load: Vec<f64>,
    /// The same for the reply, which loads the link `[to][from]`.
    pub back_load: Vec<f64>,
    /// Tier ranks.
    pub tier: Vec<u8>,
    /// Capacity by kind and node; that of [`SLICES`] is in the chain.
    pub capacity: [Vec<f64>; KINDS],
    /// Highest load of a link; 1 is all of its share.
    pub link_capacity: f64,
    /// Utilisation that the workloads may add, whatever the capacities are
    /// lowered to.
    pub free_compute: Vec<f64>,
    /// One per workload.
    pub chains: Vec<Chain>,
}

/// What a path costs.
struct Tally {
    cost: f64,
    bottleneck: f64,
}

/// One workload with its thresholds chosen.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    /// Blocks.
    pub l: usize,
    /// Entry node.
    pub entry: usize,
    /// Expected cost of block and node, `[block][node]`; infinite where it
    /// must not run.
    pub cost: Vec<f64>,
    /// Seconds of `cost` that are latency, unweighted; the rest is migration.
    pub latency: Vec<f64>,
    /// What a block takes of each kind, `[block][node]`; empty when it cannot
    /// be short anywhere.
    pub need: [Vec<f64>; KINDS],
    /// Slice limit per node.
    pub slice_capacity: Vec<f64>,
    /// Weight in the objective.
    pub weight: f64,
    /// Requests per second.
    pub rate: f64,
    /// Probability of reaching the cut before block `b`.
    pub reach: Vec<f64>,
    /// Expected request bytes at the cut before block `b`.
    pub bytes: Vec<f64>,
    /// Expected reply bytes at the cut before block `b`.
    pub reply: Vec<f64>,
    /// Expected latency of cutting before block `b` with block `b-1` on a node,
    /// `[b][node]`; empty where no block has a penalty.
    pub cut: Vec<f64>,
    /// Utilisation of that.
    pub cut_load: Vec<f64>,
    /// Tiers must not go down.
    pub monotone: bool,
    /// Highest expected latency in seconds.
    pub latency_limit: f64,
    /// Node of each block in the previous placement, if it is complete and all
    /// its nodes are still there.
    pub previous: Option<Vec<usize>>,
}

impl Dense {
    /// Compiles a valid problem under a choice of exit rows per workload.
    pub(crate) fn new(problem: &Problem, rows: &[Rows]) -> Self {
        let n = problem.nodes.len();
        let index: HashMap<&str, usize> = problem
            .nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.name.as_str(), i))
            .collect();
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
            free_compute: problem
                .nodes
                .iter()
                .map(|x| x.utilisation_cap - x.load_share)
                .collect(),
            chains: Vec::new(),
        };
        dense.set_links(problem, &index);
        for (i, node) in problem.nodes.iter().enumerate() {
            let room = node.utilisation_cap - node.load_share;
            dense.capacity[MEMORY][i] = node.memory_bytes as f64 + 0.5;
            dense.capacity[COMPUTE][i] = room * (1.0 + SLACK);
            let held = held_bytes(problem, i).saturating_add(node.resident_bytes);
            let free = node.memory_bytes.saturating_sub(held);
            dense.capacity[LOADING][i] = match problem.transition {
                Transition::Drain => f64::INFINITY,
                Transition::Shared | Transition::Separate => free as f64 + 0.5,
            };
        }
        let unknown_rate = problem.workloads.iter().all(|w| w.rate_per_second == 0.0);
        for (workload, rows) in problem.workloads.iter().zip(rows) {
            // Without any rate, throughput is asked for one request per second
            // of the mix.
            let rate = if unknown_rate && problem.objective == Objective::Throughput {
                1.0 / problem.workloads.len() as f64
            } else {
                workload.rate_per_second
            };
            dense
                .chains
                .push(Chain::new(problem, workload, rate, rows, &index));
        }
        if unknown_rate && problem.objective == Objective::Throughput {
            dense.capacity[COMPUTE].fill(f64::INFINITY);
            dense.link_capacity = f64::INFINITY;
        }
        dense.drop_ample(problem.objective == Objective::Latency);
        dense
    }

    fn set_links(&mut self, problem: &Problem, index: &HashMap<&str, usize>) {
        let n = self.n;
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
    }

    /// Forgets kinds of which no node can run short, so that no pass counts
    /// them. Compute time only where it `is_limit_only` and not the objective.
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
        // Without another placement to hold, loading is the same as holding.
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

    /// Cost of crossing from node `from` to `to` before block `b`; infinite
    /// where that is not possible, even for this crossing alone.
    #[inline]
    pub(crate) fn crossing(&self, chain: &Chain, b: usize, from: usize, to: usize) -> f64 {
        let seconds = self.crossing_seconds(chain, b, from, to);
        if seconds < f64::INFINITY {
            chain.weight * seconds
        } else {
            seconds
        }
    }

    /// The same in seconds of latency, whatever the weight.
    #[inline]
    pub(crate) fn crossing_seconds(&self, chain: &Chain, b: usize, from: usize, to: usize) -> f64 {
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
        let cut = if chain.cut.is_empty() {
            0.0
        } else {
            chain.cut[b * self.n + from]
        };
        chain.reach[b] * self.round_trip[at]
            + chain.bytes[b] * self.forth[at]
            + chain.reply[b] * self.back[at]
            + cut
    }

    /// Cost of a whole placement, a node per block, all chains (or the first
    /// few) one after the other; `None` when it breaks a constraint.
    pub(crate) fn evaluate(&self, path: &[usize]) -> Option<f64> {
        self.tally(path).map(|tally| tally.cost)
    }

    /// Objective of a whole placement (or of the first few chains).
    pub(crate) fn value(&self, problem: &Problem, path: &[usize]) -> Option<f64> {
        let tally = self.tally(path)?;
        Some(match problem.objective {
            Objective::Latency => tally.cost,
            Objective::Throughput => tally.bottleneck,
        })
    }

    fn tally(&self, path: &[usize]) -> Option<Tally> {
        let n = self.n;
        let mut used: [Vec<f64>; KINDS] = std::array::from_fn(|_| vec![0.0; n]);
        let mut links: HashMap<usize, f64> = HashMap::new();
        let (mut cost_of_all, mut offset) = (0.0, 0);
        for chain in &self.chains {
            let Some(nodes) = path.get(offset..offset + chain.l) else {
                break;
            };
            offset += chain.l;
            // Held twice or not, what does not change is not loaded.
            let unchanged = chain.previous.as_ref().is_some_and(|p| p == nodes);
            let (mut cost, mut latency) = (0.0, 0.0);
            let mut at = chain.entry;
            used[SLICES].fill(0.0);
            for (b, &node) in nodes.iter().enumerate() {
                if node != at {
                    cost += self.crossing(chain, b, at, node);
                    latency += self.crossing_seconds(chain, b, at, node);
                    self.load_links(chain, b, at, node, &mut links);
                    if !chain.cut_load.is_empty() {
                        used[COMPUTE][at] += chain.cut_load[b * n + at];
                    }
                }
                cost += chain.cost[b * n + node];
                latency += chain.latency[b * n + node];
                for (kind, used) in used.iter_mut().enumerate() {
                    if !(chain.need[kind].is_empty() || kind == LOADING && unchanged) {
                        used[node] += chain.need[kind][b * n + node];
                    }
                }
                at = node;
            }
            let slices = &used[SLICES];
            if cost == f64::INFINITY
                || latency > chain.latency_limit
                || (0..n).any(|i| slices[i] > chain.slice_capacity[i])
            {
                return None;
            }
            cost_of_all += cost;
        }
        let fits = (0..SLICES).all(|kind| {
            used[kind]
                .iter()
                .zip(&self.capacity[kind])
                .all(|(u, c)| u <= c)
        });
        let flows = links.values().all(|load| *load <= self.link_capacity);
        (fits && flows).then(|| Tally {
            cost: cost_of_all,
            bottleneck: self.bottleneck(&used[COMPUTE], &links),
        })
    }

    /// Seconds per request of the mix at the slowest node or link.
    fn bottleneck(&self, compute: &[f64], links: &HashMap<usize, f64>) -> f64 {
        let nodes = compute
            .iter()
            .zip(&self.free_compute)
            .map(|(used, room)| if *used > 0.0 { used / room } else { 0.0 });
        let busiest = nodes.chain(links.values().copied()).fold(0.0, f64::max);
        let mix: f64 = self.chains.iter().map(|c| c.rate).sum();
        if mix > 0.0 { busiest / mix } else { 0.0 }
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

    /// The placements that a path stands for.
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

    /// The previous placements of all chains one after the other, if each has
    /// a complete one.
    pub(crate) fn previous_path(&self) -> Option<Vec<usize>> {
        let mut path = Vec::new();
        for chain in &self.chains {
            path.extend(chain.previous.as_ref()?);
        }
        Some(path)
    }
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

impl Chain {
    fn new(
        problem: &Problem,
        workload: &Workload,
        rate: f64,
        rows: &Rows,
        index: &HashMap<&str, usize>,
    ) -> Self {
        let (n, l) = (problem.nodes.len(), workload.blocks.len());
        let traffic = Traffic::new(workload, rows);
        let mut chain = Self {
            l,
            entry: index
                .get(workload.entry.as_str())
                .copied()
                .unwrap_or_default(),
            cost: vec![f64::INFINITY; l * n],
            latency: vec![f64::INFINITY; l * n],
            need: std::array::from_fn(|_| vec![0.0; l * n]),
            slice_capacity: vec![f64::INFINITY; n],
            weight: workload.weight,
            rate,
            reach: traffic.reach,
            bytes: traffic.bytes,
            reply: traffic.reply,
            cut: Vec::new(),
            cut_load: Vec::new(),
            monotone: workload.constraints.monotone_tiers,
            latency_limit: workload
                .constraints
                .latency_limit_seconds
                .map_or(f64::INFINITY, |s| s * (1.0 + SLACK)),
            previous: None,
        };
        chain.set_blocks(problem, workload, index);
        chain.set_cuts(problem, workload, index);
        chain.set_limits(problem, workload);
        chain.set_previous(problem, workload, index);
        chain
    }

    fn set_blocks(&mut self, problem: &Problem, workload: &Workload, index: &HashMap<&str, usize>) {
        let n = problem.nodes.len();
        for (b, block) in workload.blocks.iter().enumerate() {
            for (name, cost) in &block.costs {
                let Some(&i) = index.get(name.as_str()) else {
                    continue;
                };
                let node = &problem.nodes[i];
                let at = b * n + i;
                self.latency[at] = self.reach[b] * cost.seconds / (1.0 - node.load_share);
                self.cost[at] = self.weight * self.latency[at];
                self.need[COMPUTE][at] =
                    self.rate * self.reach[b] * cost.seconds / f64::from(node.concurrency);
            }
            for i in 0..n {
                self.need[MEMORY][b * n + i] = block.memory_bytes as f64;
                self.need[LOADING][b * n + i] = block.memory_bytes as f64;
                self.need[SLICES][b * n + i] = block.slice_bytes as f64;
            }
        }
    }

    fn set_cuts(&mut self, problem: &Problem, workload: &Workload, index: &HashMap<&str, usize>) {
        let (n, l) = (problem.nodes.len(), self.l);
        let any = workload
            .blocks
            .iter()
            .any(|b| b.costs.values().any(|c| c.cut_penalty_seconds > 0.0));
        if !any {
            return;
        }
        self.cut = vec![0.0; l * n];
        self.cut_load = vec![0.0; l * n];
        for (b, block) in workload.blocks.iter().enumerate().take(l - 1) {
            for (name, cost) in &block.costs {
                let Some(&i) = index.get(name.as_str()) else {
                    continue;
                };
                let node = &problem.nodes[i];
                let seconds = self.reach[b + 1] * cost.cut_penalty_seconds;
                self.cut[(b + 1) * n + i] = seconds / (1.0 - node.load_share);
                self.cut_load[(b + 1) * n + i] = self.rate * seconds / f64::from(node.concurrency);
            }
        }
    }

    /// Makes what is not allowed infinitely dear, and sets the slice limits.
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
        self.latency[block * n + node] = f64::INFINITY;
    }

    fn set_previous(
        &mut self,
        problem: &Problem,
        workload: &Workload,
        index: &HashMap<&str, usize>,
    ) {
        let Some(previous) = &workload.previous else {
            return;
        };
        let n = problem.nodes.len();
        let mut held = vec![false; self.l * n];
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
        let per_byte = match problem.objective {
            Objective::Latency => self.weight * previous.move_seconds_per_byte,
            Objective::Throughput => 0.0,
        };
        for (b, block) in workload.blocks.iter().enumerate() {
            for i in 0..n {
                let at = b * n + i;
                if !held[at] {
                    self.cost[at] += per_byte * block.slice_bytes as f64;
                } else if problem.transition == Transition::Shared {
                    self.need[LOADING][at] = 0.0;
                }
            }
        }
        let in_order = order.iter().map(|(b, _)| *b).eq(0..self.l);
        let nodes: Option<Vec<usize>> = order.into_iter().map(|(_, node)| node).collect();
        self.previous = nodes.filter(|_| in_order);
    }

    fn total_need(&self, kind: usize, node: usize, n: usize) -> f64 {
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

/// Expected traffic over each cut.
struct Traffic {
    reach: Vec<f64>,
    bytes: Vec<f64>,
    reply: Vec<f64>,
}

impl Traffic {
    fn new(workload: &Workload, rows: &Rows) -> Self {
        let l = workload.blocks.len();
        let size: HashMap<&str, f64> = workload
            .values
            .iter()
            .map(|v| (v.name.as_str(), v.bytes as f64))
            .collect();
        let mut reach = vec![1.0; l];
        let mut leaving = vec![0.0; l];
        let mut left = 1.0;
        for b in 0..l {
            reach[b] = left;
            for (exit, row) in workload.exits.iter().zip(rows) {
                if exit.after_block == b {
                    let rate = exit.table[*row].rate;
                    leaving[b] += left * rate * exit.reply_bytes as f64;
                    left *= 1.0 - rate;
                }
            }
        }
        let mut outputs: Vec<&str> = workload.outputs.iter().map(String::as_str).collect();
        outputs.sort_unstable();
        outputs.dedup();
        let reply: f64 = outputs.iter().filter_map(|v| size.get(v)).sum();
        leaving[l - 1] += left * reply;
        for b in (0..l - 1).rev() {
            leaving[b] += leaving[b + 1];
        }
        // A value lives from its giver (or the start) to its last taker.
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut last: HashMap<&str, usize> = HashMap::new();
        for (b, block) in workload.blocks.iter().enumerate() {
            for v in &block.inputs {
                last.insert(v, b);
            }
            for v in &block.outputs {
                first.insert(v, b + 1);
            }
        }
        for v in outputs {
            last.insert(v, l);
        }
        let mut bytes = vec![0.0; l];
        for (v, end) in last {
            let start = first.get(v).copied().unwrap_or(0);
            let range = start..=end.min(l - 1);
            for b in bytes.get_mut(range).unwrap_or_default() {
                *b += size.get(v).copied().unwrap_or(0.0);
            }
        }
        for (bytes, reach) in bytes.iter_mut().zip(&reach) {
            *bytes *= reach;
        }
        Self {
            reach,
            bytes,
            reply: leaving,
        }
    }
}
