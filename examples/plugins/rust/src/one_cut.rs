//! The strategy itself, pure: every cut, every node.

use lamina_placement::check::evaluate;
use lamina_placement::{Placement, Problem, Segment};
use lamina_proto::strategy as wire;
use std::time::Instant;

/// A search over the cuts of a problem.
pub(crate) struct Search {
    problem: Problem,
    /// Nodes that may run the blocks after the cut.
    nodes: Vec<String>,
}

/// A placement and the checker's value of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) placement: wire::Placement,
    pub(crate) objective: f64,
}

impl Search {
    /// The blocks after the cut may run on any node, or only on `to` if given.
    ///
    /// # Errors
    /// There are several workloads, or no such node.
    pub(crate) fn new(problem: Problem, to: Option<String>) -> Result<Self, String> {
        if problem.workloads.len() != 1 {
            return Err(format!(
                "one workload is placed, here are {}",
                problem.workloads.len()
            ));
        }
        let known: Vec<String> = problem.nodes.iter().map(|n| n.name.clone()).collect();
        let nodes = match to {
            Some(node) if !known.contains(&node) => {
                return Err(format!("`to` names {node}; known are {}", known.join(", ")));
            }
            Some(node) => vec![node],
            None => known,
        };
        Ok(Self { problem, nodes })
    }

    /// Tries everything until `until`, passes each better placement to `tell`, and returns the
    /// best. Stops when `tell` returns that nobody listens.
    pub(crate) fn run(&self, until: Instant, tell: impl Fn(&Found) -> bool) -> Option<Found> {
        let mut best: Option<Found> = None;
        for placement in self.candidates() {
            if Instant::now() >= until {
                break;
            }
            let Ok(metrics) = evaluate(&self.problem, std::slice::from_ref(&placement)) else {
                continue;
            };
            let is_better = |b: &Found| metrics.objective < b.objective;
            if best.as_ref().is_none_or(is_better) {
                let found = Found {
                    placement: to_wire(placement),
                    objective: metrics.objective,
                };
                if !tell(&found) {
                    return None;
                }
                best = Some(found);
            }
        }
        best
    }

    fn candidates(&self) -> impl Iterator<Item = Placement> {
        let workload = &self.problem.workloads[0];
        let blocks = workload.blocks.len();
        let cuts = move |node| (0..=blocks).map(move |cut| (node, cut));
        self.nodes.iter().flat_map(cuts).map(move |(node, cut)| {
            let parts = [(&workload.entry, 0..cut), (node, cut..blocks)];
            let mut segments: Vec<Segment> = Vec::new();
            for (node, blocks) in parts.into_iter().filter(|(_, blocks)| !blocks.is_empty()) {
                match segments.last_mut().filter(|s| s.node == *node) {
                    Some(same) => same.blocks.extend(blocks),
                    None => segments.push(Segment {
                        node: node.clone(),
                        blocks: blocks.collect(),
                    }),
                }
            }
            Placement {
                workload: workload.name.clone(),
                segments,
                thresholds: Vec::new(),
            }
        })
    }
}

fn to_wire(placement: Placement) -> wire::Placement {
    let number = |block: usize| u32::try_from(block).unwrap_or(u32::MAX);
    wire::Placement {
        workload: placement.workload,
        segments: placement
            .segments
            .into_iter()
            .map(|s| wire::Segment {
                node: s.node,
                blocks: s.blocks.into_iter().map(number).collect(),
            })
            .collect(),
        exit_rows: Vec::new(),
    }
}
