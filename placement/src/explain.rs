//! Why a placement is as it is, and why there is none, in the kube-scheduler's terms.

use crate::problem::{Node, Problem, Transition, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

mod others;
mod queue;
mod relief;
mod split;

pub use others::{Alternative, Baseline};
pub use relief::{Limit, Relief, why_infeasible};
pub use split::{Explanation, Stretch, Tight, Unused, Way, explain};

/// Blocks that no node can host, with the reason for each node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unplaced {
    /// The workload.
    pub workload: String,
    /// First of the blocks.
    pub first: usize,
    /// Last of the blocks.
    pub last: usize,
    /// Bytes that they need together.
    pub memory_bytes: u64,
    /// Nodes in the problem.
    pub nodes: usize,
    /// How many nodes each reason excludes, most first; every node counts once.
    pub reasons: Vec<(usize, String)>,
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0/{} nodes can host ", self.nodes)?;
        if self.first == self.last {
            write!(f, "block {}", self.first)?;
        } else {
            write!(f, "blocks {}..{}", self.first, self.last)?;
        }
        write!(f, " ({})", bytes(self.memory_bytes))?;
        let separators = std::iter::once(": ").chain(std::iter::repeat(", "));
        for ((count, reason), separator) in self.reasons.iter().zip(separators) {
            write!(f, "{separator}{count} {reason}")?;
        }
        Ok(())
    }
}

/// `612Mi`, as Kubernetes writes quantities, rounded to the nearest.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["", "Ki", "Mi", "Gi"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value >= 10.0 || value.fract() < 0.05 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// Names the obstacle of each workload: the first stretch of blocks that no node
/// can take, given those that can run the blocks before. Empty if each stretch
/// finds a node by itself; then only several of them together are too much.
///
/// Nodes that lack memory are judged by the whole stretch, which is as long as one
/// node would have to take: from the first block that cannot be placed to the last
/// that cannot.
pub(crate) fn explain_infeasible(problem: &Problem) -> Vec<Unplaced> {
    problem
        .workloads
        .iter()
        .filter_map(|w| unplaced(problem, w))
        .collect()
}

fn unplaced(problem: &Problem, workload: &Workload) -> Option<Unplaced> {
    let blocks = workload.blocks.len();
    let mut at: BTreeSet<&str> = BTreeSet::from([workload.entry.as_str()]);
    for first in 0..blocks {
        let against = |b: usize, from: &BTreeSet<&str>| -> Vec<Option<String>> {
            let of = |n: &Node| {
                reason_alone(workload, n, b)
                    .or_else(|| no_room_to_switch(problem, workload, n, b))
                    .or_else(|| no_way(problem, workload, from, n, b))
            };
            problem.nodes.iter().map(of).collect()
        };
        let reasons = against(first, &at);
        let next: BTreeSet<&str> = problem
            .nodes
            .iter()
            .zip(&reasons)
            .filter(|(_, r)| r.is_none())
            .map(|(n, _)| n.name.as_str())
            .collect();
        if !next.is_empty() {
            at = next;
            continue;
        }
        let mut last = first;
        while last + 1 < blocks && against(last + 1, &at).iter().all(Option::is_some) {
            last += 1;
        }
        return Some(summary(problem, workload, first, last, reasons));
    }
    too_much_together(problem, workload)
}

fn summary(
    problem: &Problem,
    workload: &Workload,
    first: usize,
    last: usize,
    reasons: Vec<Option<String>>,
) -> Unplaced {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in reasons.into_iter().flatten() {
        *counts.entry(reason).or_default() += 1;
    }
    let mut reasons: Vec<(usize, String)> = counts.into_iter().map(|(r, c)| (c, r)).collect();
    reasons.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Unplaced {
        workload: workload.name.clone(),
        first,
        last,
        memory_bytes: workload.blocks[first..=last]
            .iter()
            .map(|b| b.memory_bytes)
            .fold(0, u64::saturating_add),
        nodes: problem.nodes.len(),
        reasons,
    }
}

/// All nodes that may host anything hold less than the model needs.
fn too_much_together(problem: &Problem, workload: &Workload) -> Option<Unplaced> {
    let blocks = workload.blocks.len();
    let needed: u64 = workload
        .blocks
        .iter()
        .map(|b| b.memory_bytes)
        .fold(0, u64::saturating_add);
    let usable = |n: &Node| (0..blocks).any(|b| reason_alone(workload, n, b).is_none());
    let there: u64 = problem
        .nodes
        .iter()
        .filter(|n| usable(n))
        .map(|n| n.memory_bytes)
        .fold(0, u64::saturating_add);
    if there >= needed {
        return None;
    }
    let reasons = problem
        .nodes
        .iter()
        .map(|n| {
            let reasons: Vec<Option<String>> =
                (0..blocks).map(|b| reason_alone(workload, n, b)).collect();
            if usable(n) {
                Some("insufficient memory".to_owned())
            } else {
                reasons.into_iter().flatten().next()
            }
        })
        .collect();
    Some(summary(problem, workload, 0, blocks - 1, reasons))
}

/// Why one block cannot be on a node, regardless of the others.
fn reason_alone(workload: &Workload, node: &Node, b: usize) -> Option<String> {
    let c = &workload.constraints;
    let block = &workload.blocks[b];
    if let Some(reason) = &node.excluded {
        return Some(reason.clone());
    }
    if c.allowed_tiers
        .as_ref()
        .is_some_and(|t| !t.contains(&node.tier))
    {
        return Some(format!("tier={} excluded", node.tier));
    }
    if b < c.keep_first_on_entry && node.name != workload.entry {
        return Some(format!(
            "excluded because the first {} blocks stay on {}",
            c.keep_first_on_entry, workload.entry
        ));
    }
    if let Some(pin) = c.pins.iter().find(|p| p.block == b && p.node != node.name) {
        return Some(format!("excluded by a pin to {}", pin.node));
    }
    if c.forbidden
        .iter()
        .any(|f| f.block == b && f.node == node.name)
    {
        return Some("forbidden".to_owned());
    }
    let Some(cost) = block.costs.get(&node.name) else {
        return Some("without a measured time".to_owned());
    };
    if block.memory_bytes > node.memory_bytes {
        return Some("insufficient memory".to_owned());
    }
    let limits = [
        c.tier_slice_limit_bytes.get(&node.tier),
        c.node_slice_limit_bytes.get(&node.name),
    ];
    if let Some(limit) = limits.into_iter().flatten().min()
        && block.slice_bytes > *limit
    {
        return Some(format!("slice limit {}", bytes(*limit)));
    }
    let room = node.utilisation_cap - node.load_share;
    let busy = workload.rate_per_second * certain_reach(workload, b) * cost.seconds
        / f64::from(node.concurrency.max(1));
    if room <= 0.0 || busy > room * (1.0 + 1e-9) {
        return Some(format!("too slow for {} req/s", workload.rate_per_second));
    }
    None
}

/// A node that could hold the block, but not beside its present blocks until the switch is over.
fn no_room_to_switch(
    problem: &Problem,
    workload: &Workload,
    node: &Node,
    b: usize,
) -> Option<String> {
    if problem.transition == Transition::Drain {
        return None;
    }
    let mut held = node.resident_bytes;
    for other in &problem.workloads {
        let segments = other.previous.iter().flat_map(|p| &p.segments);
        let blocks: BTreeSet<usize> = segments
            .filter(|s| s.node == node.name)
            .flat_map(|s| s.blocks.iter().copied())
            .collect();
        if std::ptr::eq(other, workload) && blocks.contains(&b) {
            return None;
        }
        for block in blocks.iter().filter_map(|b| other.blocks.get(*b)) {
            held = held.saturating_add(block.memory_bytes);
        }
    }
    let needed = held.saturating_add(workload.blocks[b].memory_bytes);
    (held > 0 && needed > node.memory_bytes)
        .then(|| "insufficient memory during the switch".to_owned())
}

/// The least probability of reaching block `b` under any thresholds.
fn certain_reach(workload: &Workload, b: usize) -> f64 {
    workload
        .exits
        .iter()
        .filter(|e| e.after_block < b)
        .map(|e| 1.0 - e.table.iter().map(|r| r.rate).fold(0.0, f64::max))
        .product()
}

/// Why a node cannot be reached from any that runs the previous block.
fn no_way(
    problem: &Problem,
    workload: &Workload,
    from: &BTreeSet<&str>,
    node: &Node,
    b: usize,
) -> Option<String> {
    let name = node.name.as_str();
    if from.contains(name) {
        return None;
    }
    let tier = |n: &str| problem.nodes.iter().find(|x| x.name == n).map(|x| x.tier);
    let mut reason = None;
    for &other in from {
        let missing = if problem.link(other, name).is_none() {
            Some(format!("link {other}→{name} unmeasured"))
        } else if problem.link(name, other).is_none() {
            Some(format!("link {name}→{other} unmeasured"))
        } else if b > 0 && workload.constraints.monotone_tiers && Some(node.tier) < tier(other) {
            Some(format!("below tier {}", tier(other)?))
        } else {
            return None;
        };
        reason = reason.or(missing);
    }
    reason
}

#[cfg(test)]
mod tests;
