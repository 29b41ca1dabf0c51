//! Small problems for tests.

use crate::{Block, BlockCost, Link, Node, Problem, Tier, Value, Workload};

/// A chain of `seconds.len()` blocks, `seconds[block][node]`, over nodes that are all joined by the
/// same link, entry at the first. Values are named `v0` (input) to `vL` (output); each block has
/// `memory` bytes of memory and slice.
pub(crate) fn chain(
    tiers: &[Tier],
    seconds: &[&[f64]],
    value_bytes: &[u64],
    memory: u64,
    link: Link,
) -> Problem {
    let nodes: Vec<Node> = tiers
        .iter()
        .enumerate()
        .map(|(i, tier)| Node::new(format!("n{i}"), *tier, 1 << 30))
        .collect();
    let mut problem = Problem {
        workloads: vec![Workload {
            name: "net".into(),
            entry: "n0".into(),
            rate_per_second: 0.0,
            weight: 1.0,
            values: value_bytes
                .iter()
                .enumerate()
                .map(|(i, bytes)| Value {
                    name: format!("v{i}"),
                    bytes: *bytes,
                })
                .collect(),
            blocks: seconds
                .iter()
                .enumerate()
                .map(|(b, row)| Block {
                    inputs: vec![format!("v{b}")],
                    outputs: vec![format!("v{}", b + 1)],
                    memory_bytes: memory,
                    slice_bytes: memory,
                    costs: row
                        .iter()
                        .enumerate()
                        .map(|(n, s)| (format!("n{n}"), BlockCost::new(*s)))
                        .collect(),
                })
                .collect(),
            outputs: vec![format!("v{}", seconds.len())],
            final_accuracy: None,
            exits: Vec::new(),
            constraints: crate::Constraints::default(),
            previous: None,
        }],
        ..Problem::default()
    };
    for a in &nodes {
        for b in nodes.iter().filter(|b| b.name != a.name) {
            problem.set_link(&a.name, &b.name, link);
        }
    }
    problem.nodes = nodes;
    problem
}
