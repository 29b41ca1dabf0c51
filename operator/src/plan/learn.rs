//! What is learned about hosts from their running slices.

use super::problem::block_indices;
use crate::state::cluster::{row_seconds, speed};
use crate::state::ids;
use crate::state::memory::Memory;
use crate::state::plans;
use crate::state::snapshot::Snapshot;
use lamina_crds::placement::Segment;
use lamina_model::Manifest;
use lamina_profile::time_factor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long a host that failed to load a model's blocks is avoided: a little longer than its agent
/// refuses a slice whose loads ended it.
const LOAD_RETRY_SECONDS: f64 = 660.0;
/// A live time corrects a profiled one by at most this factor, up or down.
const CORRECTION_LIMIT: f64 = 8.0;
/// Smaller changes of a correction are ignored.
const SAME_CORRECTION: f64 = 0.01;

/// Learns how much slower or faster each host runs a manifest's blocks than its benchmark suggests,
/// from all loaded and timed slices; and forgives hosts that failed to load long enough ago.
pub(crate) fn learn(snapshot: &Snapshot, memory: &mut Memory) {
    let is_over = |at: &_| snapshot.seconds_since(*at) >= LOAD_RETRY_SECONDS;
    if memory.learned.load_failures.values().any(is_over) {
        let learned = Arc::make_mut(&mut memory.learned);
        learned.load_failures.retain(|_, at| !is_over(at));
    }
    for (key, factor) in factors(snapshot) {
        let known = memory.learned.corrections.get(&key);
        if known.is_none_or(|k| (k / factor - 1.0).abs() > SAME_CORRECTION) {
            let learned = Arc::make_mut(&mut memory.learned);
            learned.corrections.insert(key, factor);
        }
    }
}

/// Ratio of measured to predicted time, by node and manifest.
fn factors(snapshot: &Snapshot) -> BTreeMap<(String, String), f64> {
    let mut sums: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for placement in &snapshot.placements {
        let uid = ids::uid(&placement.metadata);
        let plans = plans::active(placement).into_iter();
        for plan in plans.chain(plans::target(placement)) {
            let Some(manifest) = snapshot.manifests.get(&plan.manifest) else {
                continue;
            };
            for (index, segment) in plan.segments.iter().enumerate() {
                let node = &segment.host.node;
                let (Some(took), Some(gflops)) = (
                    row_seconds(snapshot, uid, plan, index),
                    snapshot
                        .compute_nodes
                        .get(node)
                        .and_then(|n| speed(snapshot, node, n)),
                ) else {
                    continue;
                };
                let is_cut = index + 1 < plan.segments.len();
                let expected = expected(segment, manifest, is_cut) * time_factor(manifest, gflops);
                if expected > 0.0 {
                    let key = (node.clone(), plan.manifest.clone());
                    let sum = sums.entry(key).or_default();
                    *sum = (sum.0 + took, sum.1 + expected);
                }
            }
        }
    }
    let factor = |(took, expected): (f64, f64)| {
        (took / expected).clamp(1.0 / CORRECTION_LIMIT, CORRECTION_LIMIT)
    };
    sums.into_iter().map(|(k, sum)| (k, factor(sum))).collect()
}

/// Seconds per row of a segment on the host that prepared the model.
fn expected(segment: &Segment, manifest: &Manifest, is_cut: bool) -> f64 {
    let sum: f64 = block_indices(segment, manifest)
        .map(|b| manifest.blocks[b].time.p50)
        .sum();
    let penalty = block_indices(segment, manifest)
        .last()
        .filter(|_| is_cut)
        .map_or(0.0, |b| manifest.blocks[b].cut_penalty_seconds);
    sum + penalty
}
