//! A prepared model as a workload to place, computed in the same way by the operator and `kubectl
//! lamina plan`. Pure, as both of its sides.

mod crossings;
mod exits;
mod thresholds;

pub use crossings::{AUTO_MAX_ERROR, Activations, Crossing, crossing, encode, percent, short};
pub use exits::{exits, expected_shares};
pub use thresholds::{Choices, InForce, can_choose, choices, choosable};

use lamina_model::{Block, Manifest};
use lamina_placement as placement;
use lamina_placement::{BlockCost, Constraints, Workload};
use std::collections::{BTreeMap, BTreeSet};

/// Memory of one block in bytes once it is loaded and runs: its weights as constants of the graph
/// and once more packed for the host's processor, and the peak of its activations.
pub const fn memory_bytes(block: &Block) -> u64 {
    block
        .weight_bytes
        .saturating_mul(2)
        .saturating_add(block.peak_activation_bytes)
}

/// Factor on the times of a manifest for a host with `gflops` in the same benchmark: 1 if one of
/// the two speeds is unknown.
pub fn time_factor(manifest: &Manifest, gflops: f64) -> f64 {
    if gflops > 0.0 && manifest.prepared_gflops > 0.0 {
        manifest.prepared_gflops / gflops
    } else {
        1.0
    }
}

/// The workload of one model whose requests arrive at `entry`.
///
/// `time_factors` has each host that can run its blocks by name, with the factor
/// on their times there. Rate, constraints, exits and previous placement are not
/// set.
pub fn workload(
    manifest: &Manifest,
    name: &str,
    entry: &str,
    time_factors: &BTreeMap<String, f64>,
) -> Workload {
    let mut given: BTreeSet<&str> = BTreeSet::new();
    let values = manifest
        .inputs
        .iter()
        .chain(manifest.blocks.iter().flat_map(|b| &b.outputs))
        .filter(|v| given.insert(&v.name))
        .map(|v| placement::Value {
            name: v.name.clone(),
            bytes: v.bytes(1).unwrap_or(u64::MAX),
        })
        .collect();
    let mut known: BTreeSet<&str> = manifest.inputs.iter().map(|v| v.name.as_str()).collect();
    let blocks = manifest.blocks.iter().map(|b| {
        // Values that only pass through a block come from another one.
        let own = b.outputs.iter().filter(|v| known.insert(&v.name));
        let outputs = own.map(|v| v.name.clone()).collect();
        to_place(b, outputs, time_factors)
    });
    let blocks = blocks.collect();
    Workload {
        name: name.to_owned(),
        entry: entry.to_owned(),
        rate_per_second: 0.0,
        weight: 1.0,
        values,
        blocks,
        outputs: manifest.outputs.iter().map(|v| v.name.clone()).collect(),
        final_accuracy: None,
        exits: Vec::new(),
        constraints: Constraints::default(),
        previous: None,
    }
}

fn to_place(
    block: &Block,
    outputs: Vec<String>,
    time_factors: &BTreeMap<String, f64>,
) -> placement::Block {
    let cost = |factor: f64| BlockCost {
        seconds: block.time.p50 * factor,
        cut_penalty_seconds: block.cut_penalty_seconds * factor,
    };
    placement::Block {
        inputs: block.inputs.clone(),
        outputs,
        memory_bytes: memory_bytes(block),
        slice_bytes: block.weight_bytes,
        costs: time_factors
            .iter()
            .map(|(name, factor)| (name.clone(), cost(*factor)))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
