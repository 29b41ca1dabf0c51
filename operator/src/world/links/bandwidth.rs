//! Bandwidth of one direction from noisy samples, in the logarithmic domain.
//!
//! A sample within the noise moves the estimate by its share of the evidence; one outside
//! waits for a second that agrees, so that a single odd transfer changes nothing and a real
//! change is followed within three samples. A contended sample, taken while the host itself
//! was busy, is a lower bound: it may raise the estimate, never lower it.

use super::median;
use super::table::Rate;
use std::time::Duration;

/// Transfers of this size count half as much as very large ones.
const HALF_WEIGHT_BYTES: f64 = 16_384.0;
/// Most evidence kept, in full samples: a new one moves the estimate by at least a quarter of the
/// difference.
const MAX_EVIDENCE: f64 = 4.0;
/// Half-life of evidence without samples.
const EVIDENCE_HALF_LIFE: Duration = Duration::from_secs(120);
/// Below this evidence, every sample is accepted.
const LITTLE_EVIDENCE: f64 = 0.5;
/// Weight of a lower bound if nothing else is known: the next real sample replaces it.
const BOUND_WEIGHT: f64 = 0.02;
/// Initial noise, and its bounds, as a standard deviation of the logarithm.
const FIRST_NOISE: f64 = 0.2;
const NOISE_BOUNDS: (f64, f64) = (0.05, 0.35);
/// A sample is odd if it differs by more than this (a factor of 1.8) and by more than three times
/// the noise.
const ODD: f64 = 0.588;

/// The estimate for one direction.
#[derive(Debug)]
pub(super) struct Bandwidth {
    log: f64,
    noise: f64,
    evidence: f64,
    at: Duration,
    odd: Vec<f64>,
}

/// A measured rate, within bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RateSample {
    pub(super) bytes_per_second: f64,
    pub(super) bytes: u64,
    pub(super) contended: bool,
}

impl Bandwidth {
    /// Starts with the first sample.
    pub(super) fn first(sample: RateSample, now: Duration) -> Self {
        let evidence = if sample.contended {
            BOUND_WEIGHT
        } else {
            weight(sample.bytes)
        };
        Self {
            log: sample.bytes_per_second.ln(),
            noise: FIRST_NOISE,
            evidence,
            at: now,
            odd: Vec::new(),
        }
    }

    /// Adds a sample.
    pub(super) fn add(&mut self, sample: RateSample, now: Duration) {
        let log = sample.bytes_per_second.ln();
        if sample.contended && log <= self.log {
            return;
        }
        let weight = weight(sample.bytes);
        self.evidence = evidence_at(self.evidence, self.at, now);
        self.at = now;
        let difference = log - self.log;
        let gate = ODD.max(3.0 * self.noise);
        if self.evidence < LITTLE_EVIDENCE || difference.abs() <= gate {
            self.odd.clear();
            self.evidence = (self.evidence + weight).min(MAX_EVIDENCE);
            let share = weight / self.evidence;
            self.log += share * difference;
            self.learn_noise(difference.abs().min(gate), share);
        } else {
            self.add_odd(log, weight, gate);
        }
    }

    /// Its entry in the table.
    pub(super) fn rate(&self) -> Rate {
        Rate {
            bytes_per_second: self.log.exp(),
            noise: self.noise.exp_m1(),
            evidence: self.evidence,
            at: self.at,
        }
    }

    /// Two odd samples that agree, or three on the same side, are a change.
    fn add_odd(&mut self, log: f64, weight: f64, gate: f64) {
        let side = (log - self.log).signum();
        self.odd.retain(|o| (o - self.log).signum() == side);
        let confirmed = self.odd.last().is_some_and(|o| (o - log).abs() <= gate);
        self.odd.push(log);
        if confirmed || self.odd.len() >= 3 {
            let newest = self.odd.split_off(self.odd.len().saturating_sub(3));
            self.log = median(newest).unwrap_or(log);
            self.evidence = 2.0 * weight;
            self.odd.clear();
        }
    }

    fn learn_noise(&mut self, deviation: f64, share: f64) {
        // 1.25 converts a mean deviation to a standard one.
        let noise = self.noise + share * (1.25 * deviation - self.noise);
        self.noise = noise.clamp(NOISE_BOUNDS.0, NOISE_BOUNDS.1);
    }
}

/// Evidence of time `at` that is left at `now`.
pub(super) fn evidence_at(evidence: f64, at: Duration, now: Duration) -> f64 {
    let age = now.saturating_sub(at).as_secs_f64();
    evidence * (-age / EVIDENCE_HALF_LIFE.as_secs_f64()).exp2()
}

fn weight(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a weight needs few digits
    let bytes = bytes as f64;
    (bytes / (bytes + HALF_WEIGHT_BYTES)).max(0.02)
}
