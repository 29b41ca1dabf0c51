//! Slices at random cuts: the manifest's prediction, and the measurement.

use crate::rounds::{Spread, thread_seconds};
use crate::variants::{request, slices};
use anyhow::Result;
use lamina_model::Manifest;
use lamina_torchscript::Caches;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// Turns whose times are discarded.
const FIRST_TURNS: usize = 2;

#[derive(Serialize)]
pub(crate) struct Slice {
    pub(crate) first: usize,
    pub(crate) last: usize,
    pub(crate) predicted_seconds: f64,
    pub(crate) wall: Spread,
    pub(crate) cpu: Spread,
}

impl Slice {
    pub(crate) fn error(&self) -> f64 {
        (self.predicted_seconds / self.wall.median - 1.0).abs()
    }

    /// Error of the prediction corrected by `factor`, in CPU time.
    pub(crate) fn cpu_error(&self, factor: f64) -> f64 {
        (self.predicted_seconds * factor / self.cpu.median - 1.0).abs()
    }
}

/// Predicted as by the operator and the strategies: the times of the blocks, and the penalty of the
/// cut at the end.
fn predicted(manifest: &Manifest, first: usize, end: usize) -> f64 {
    let sum: f64 = manifest.blocks[first..end].iter().map(|b| b.time.p50).sum();
    let penalty = manifest.blocks[end - 1].cut_penalty_seconds;
    sum + if end < manifest.blocks.len() {
        penalty
    } else {
        0.0
    }
}

pub(crate) fn measure(
    folder: &Path,
    manifest: &Manifest,
    count: usize,
    rounds: usize,
) -> Result<Vec<Slice>> {
    let caches = Caches::new();
    let mut measured = Vec::new();
    for borders in drawn(manifest.blocks.len(), count) {
        let slices = slices(folder, manifest, &borders)?;
        let mut samples = vec![(Vec::new(), Vec::new()); slices.len()];
        for round in 0..rounds + FIRST_TURNS {
            let mut values = request(&manifest.inputs);
            for (slice, (wall, cpu)) in slices.iter().zip(&mut samples) {
                // On its host, something else ran before a slice.
                caches.fill();
                let (start, cpu_start) = (Instant::now(), thread_seconds());
                values = slice.run(&values)?;
                if round >= FIRST_TURNS {
                    wall.push(start.elapsed().as_secs_f64());
                    cpu.push(thread_seconds() - cpu_start);
                }
            }
        }
        for (ends, (wall, cpu)) in borders.windows(2).zip(samples) {
            measured.push(Slice {
                first: ends[0],
                last: ends[1] - 1,
                predicted_seconds: predicted(manifest, ends[0], ends[1]),
                wall: Spread::of(wall),
                cpu: Spread::of(cpu),
            });
        }
    }
    Ok(measured)
}

/// Different cuts into two slices and into three, `count` of each if there are that many. The same
/// on every host.
fn drawn(blocks: usize, count: usize) -> BTreeSet<Vec<usize>> {
    let mut state = 1_u64;
    let mut dice = |sides: usize| {
        // Knuth's multiplier of MMIX.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        1 + usize::try_from(state >> 33).unwrap_or(0) % sides.max(1)
    };
    let mut all = BTreeSet::new();
    for cuts in [1, 2] {
        for _ in 0..count.min(blocks / 2) {
            let mut borders = BTreeSet::from([0, blocks]);
            while borders.len() < 2 + cuts.min(blocks - 1) {
                borders.insert(dice(blocks - 1));
            }
            all.insert(borders.into_iter().collect());
        }
    }
    all
}
