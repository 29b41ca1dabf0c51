//! Variants that take turns.

use crate::variants::{Loaded, Variant, request};
use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use lamina_model::Manifest;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// Turns whose times are discarded.
const FIRST_TURNS: usize = 2;

/// Seconds of one variant's forwards.
#[derive(Serialize)]
pub(crate) struct Times {
    pub(crate) variant: Variant,
    /// Wall time.
    pub(crate) wall: Spread,
    /// The thread's CPU time, which other work on the host disturbs less.
    pub(crate) cpu: Spread,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Spread {
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().saturating_sub(1);
        let at = |percent: usize| samples.get(last * percent / 100).copied().unwrap_or(0.0);
        Self {
            p10: at(10),
            median: at(50),
            p90: at(90),
        }
    }
}

pub(crate) fn measure(
    model: &Path,
    folder: &Path,
    manifest: &Manifest,
    rounds: usize,
) -> Result<Vec<Times>> {
    let request = request(&manifest.inputs);
    let mut loaded: Vec<(Variant, Loaded)> = Vec::new();
    for &variant in Variant::value_variants() {
        loaded.push((variant, variant.load(model, folder, manifest)?));
    }
    let expected = loaded[0].1.run(&request)?;
    for (variant, loaded) in &loaded {
        let answer = loaded.run(&request)?;
        ensure!(
            answer.len() == expected.len() && answer[0].shape == expected[0].shape,
            "{} gives something else",
            variant.title()
        );
    }
    let mut wall = vec![Vec::new(); loaded.len()];
    let mut cpu = wall.clone();
    for round in 0..rounds + FIRST_TURNS {
        for turn in 0..loaded.len() {
            // Another one goes first each time, because the one before affects the caches.
            let at = (turn + round) % loaded.len();
            let (start, cpu_start) = (Instant::now(), thread_seconds());
            loaded[at].1.run(&request)?;
            if round >= FIRST_TURNS {
                wall[at].push(start.elapsed().as_secs_f64());
                cpu[at].push(thread_seconds() - cpu_start);
            }
        }
    }
    let times = loaded.iter().zip(wall.into_iter().zip(cpu));
    Ok(times
        .map(|((variant, _), (wall, cpu))| Times {
            variant: *variant,
            wall: Spread::of(wall),
            cpu: Spread::of(cpu),
        })
        .collect())
}

pub(crate) fn thread_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}
