//! What the checker computes from a workload and its placement alone: probabilities, bytes that
//! cross and bytes that are held.

use crate::problem::{Node, Problem, Transition, Workload};
use crate::solution::Placement;
use std::collections::BTreeSet;

/// Probabilities for the chosen thresholds.
pub(super) struct Odds {
    /// That block `b` runs.
    pub reach: Vec<f64>,
    /// Expected reply bytes of requests that leave after block `b` or later.
    pub reply_bytes: Vec<f64>,
    pub accuracy: Option<f64>,
}

/// Probabilities under the given thresholds; `None` if one is in no table.
pub(super) fn odds(workload: &Workload, thresholds: &[f64]) -> Option<Odds> {
    if thresholds.len() != workload.exits.len() {
        return None;
    }
    let blocks = workload.blocks.len();
    let mut left = 1.0;
    let mut reach = vec![1.0; blocks];
    // Probability-weighted reply bytes by the block after which they leave.
    let mut reply_at = vec![0.0; blocks];
    let mut accuracy = 0.0;
    let mut next = 0;
    for b in 0..blocks {
        reach[b] = left;
        while next < workload.exits.len() && workload.exits[next].after_block == b {
            let exit = &workload.exits[next];
            let row = exit
                .table
                .iter()
                .find(|r| r.threshold == thresholds[next])?;
            let leaving = left * row.rate;
            reply_at[b] += leaving * exit.reply_bytes as f64;
            accuracy += leaving * row.accuracy;
            left *= 1.0 - row.rate;
            next += 1;
        }
    }
    reply_at[blocks - 1] += left * output_bytes(workload) as f64;
    let mut reply_bytes = vec![0.0; blocks];
    let mut sum = 0.0;
    for b in (0..blocks).rev() {
        sum += reply_at[b];
        reply_bytes[b] = sum;
    }
    Some(Odds {
        reach,
        reply_bytes,
        accuracy: workload.final_accuracy.map(|last| accuracy + left * last),
    })
}

pub(super) fn bytes_of(workload: &Workload, names: &BTreeSet<&str>) -> u64 {
    workload
        .values
        .iter()
        .filter(|v| names.contains(v.name.as_str()))
        .map(|v| v.bytes)
        .fold(0, u64::saturating_add)
}

pub(super) fn output_bytes(workload: &Workload) -> u64 {
    bytes_of(
        workload,
        &workload.outputs.iter().map(String::as_str).collect(),
    )
}

/// Bytes of the values that exist before block `boundary` and are needed after it.
pub(super) fn live_bytes(workload: &Workload, boundary: usize) -> u64 {
    let later = &workload.blocks[boundary..];
    let made_later: BTreeSet<&str> = later
        .iter()
        .flat_map(|b| b.outputs.iter().map(String::as_str))
        .collect();
    let needed: BTreeSet<&str> = later
        .iter()
        .flat_map(|b| b.inputs.iter().map(String::as_str))
        .chain(workload.outputs.iter().map(String::as_str))
        .filter(|v| !made_later.contains(v))
        .collect();
    bytes_of(workload, &needed)
}

pub(super) fn held_before(workload: &Workload) -> BTreeSet<(&str, usize)> {
    workload
        .previous
        .iter()
        .flat_map(|p| &p.segments)
        .flat_map(|s| s.blocks.iter().map(move |b| (s.node.as_str(), *b)))
        .collect()
}

/// As [`held_before`], with the blocks that nodes have on their disks.
pub(super) fn at_hand_before(workload: &Workload) -> BTreeSet<(&str, usize)> {
    let on_disk = workload.previous.iter().flat_map(|p| &p.on_disk);
    let on_disk = on_disk.flat_map(|s| s.blocks.iter().map(move |b| (s.node.as_str(), *b)));
    let mut at_hand = held_before(workload);
    at_hand.extend(on_disk);
    at_hand
}

pub(super) fn placed_on<'p>(
    placement: &'p Placement,
    node: &'p str,
) -> impl Iterator<Item = usize> + 'p {
    placement
        .segments
        .iter()
        .filter(move |s| s.node == node)
        .flat_map(|s| s.blocks.iter().copied())
}

pub(super) fn memory_after(problem: &Problem, placements: &[Placement], node: &str) -> u64 {
    let mut sum = 0u64;
    for (workload, placement) in problem.workloads.iter().zip(placements) {
        for b in placed_on(placement, node) {
            sum = sum.saturating_add(workload.blocks[b].memory_bytes);
        }
    }
    sum
}

pub(super) fn memory_before(problem: &Problem, node: &Node) -> u64 {
    let mut sum = node.resident_bytes;
    for workload in &problem.workloads {
        for (_, b) in held_before(workload)
            .iter()
            .filter(|(n, _)| *n == node.name)
        {
            sum = sum.saturating_add(workload.blocks.get(*b).map_or(0, |b| b.memory_bytes));
        }
    }
    sum
}

/// Bytes that the node loads for the switch.
pub(super) fn memory_loaded(problem: &Problem, placements: &[Placement], node: &str) -> u64 {
    let mut sum = 0u64;
    for (workload, placement) in problem.workloads.iter().zip(placements) {
        let unchanged = workload
            .previous
            .as_ref()
            .is_some_and(|p| p.segments == placement.segments);
        let held = held_before(workload);
        for b in placed_on(placement, node) {
            let stays = match problem.transition {
                Transition::Separate => unchanged,
                Transition::Shared | Transition::Drain => held.contains(&(node, b)),
            };
            if !stays {
                sum = sum.saturating_add(workload.blocks[b].memory_bytes);
            }
        }
    }
    sum
}
