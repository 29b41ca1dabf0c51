//! Network coordinates: estimated round trips between hosts that never measured each other.
//!
//! Vivaldi (Dabek et al., 2004) with height vectors: a position in a small space for the
//! way through the wide network, and a height for the way from the host to it, which is on
//! every path of that host. The host that measured moves; how far depends on whose
//! coordinate is better known. A lying host thus misplaces itself, while others trust it
//! less and are pulled a bounded way.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Dimensions of the position; more add little once there is a height.
const DIMENSIONS: usize = 3;
/// Largest share of the difference that one sample corrects.
const GAIN: f64 = 0.25;
/// Weight of the newest sample in a host's error.
const ERROR_GAIN: f64 = 0.25;
/// Error of an unknown host, and the bounds of the learned error.
const FIRST_ERROR: f64 = 1.0;
const ERROR_BOUNDS: (f64, f64) = (0.02, 2.0);
/// No sample moves a host further than this, or further than its round trip.
const LONGEST_MOVE_SECONDS: f64 = 0.1;
/// The least height: two hosts are never in exactly the same place.
const LEAST_HEIGHT_SECONDS: f64 = 1e-5;
/// Pulls everything towards the origin against drift: one part in a hundred of the position at this
/// distance.
const GRAVITY_SECONDS: f64 = 1.0;
/// Samples before a coordinate is used.
const TELLING_SAMPLES: u32 = 4;
/// A coordinate is published again after it moved by more than this, plus a share of the round trip
/// that moved it, so that users do not follow noise.
const TELL_SECONDS: f64 = 5e-4;
const TELL_SHARE: f64 = 0.15;

/// The position of a host in the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Coordinate {
    position: [f64; DIMENSIONS],
    height: f64,
    /// Relative error of its predictions, learned from its samples.
    error: f64,
}

/// A host's coordinate, and the last published one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tracked {
    now: Coordinate,
    told: Option<Coordinate>,
    samples: u32,
}

impl Coordinate {
    /// A coordinate near the origin, different for each name.
    fn first(name: &str) -> Self {
        let position = std::array::from_fn(|axis| 1e-3 * (unit(name, axis) - 0.5));
        Self {
            position,
            height: LEAST_HEIGHT_SECONDS,
            error: FIRST_ERROR,
        }
    }

    /// The round trip to `other` in seconds.
    pub(super) fn distance(&self, other: &Self) -> f64 {
        self.apart(other) + self.height + other.height
    }

    /// Position on one axis, for searching.
    pub(super) fn axis(&self, axis: usize) -> f64 {
        self.position[axis % DIMENSIONS]
    }

    /// The way from the host into the network, in seconds.
    pub(super) const fn height(&self) -> f64 {
        self.height
    }

    fn apart(&self, other: &Self) -> f64 {
        norm(&self.minus(other))
    }

    fn minus(&self, other: &Self) -> [f64; DIMENSIONS] {
        std::array::from_fn(|i| self.position[i] - other.position[i])
    }

    /// Distance that `other` moved from here: heights do not add up in this case.
    fn moved(&self, other: &Self) -> f64 {
        self.apart(other) + (self.height - other.height).abs()
    }

    /// Moves towards or away from `other` to bring their distance closer to a measured `rtt`
    /// (positive, finite, in seconds).
    fn learn(&mut self, other: &mut Self, rtt: f64) {
        let distance = self.distance(other);
        let (own, its) = (self.error.powi(2), other.error.powi(2));
        let weight = own / (own + its);
        let relative = ((distance - rtt).abs() / rtt).min(ERROR_BOUNDS.1);
        self.doubt(relative, weight);
        other.doubt(relative, 1.0 - weight);
        let longest = LONGEST_MOVE_SECONDS.min(rtt);
        let force = (GAIN * weight * (rtt - distance)).clamp(-longest, longest);
        self.shift(other, force);
    }

    /// Learns from a prediction with error `relative`. Both ends do: a lying host agrees with
    /// itself, but not with others' measurements.
    fn doubt(&mut self, relative: f64, weight: f64) {
        let share = ERROR_GAIN * weight;
        let error = relative * share + self.error * (1.0 - share);
        self.error = error.clamp(ERROR_BOUNDS.0, ERROR_BOUNDS.1);
    }

    /// Moves by `force` along the height vector from `other` to here.
    fn shift(&mut self, other: &Self, force: f64) {
        let along = self.minus(other);
        let apart = norm(&along);
        let heights = self.height + other.height;
        let length = apart + heights;
        for (at, along) in self.position.iter_mut().zip(along) {
            *at += force * along / length;
        }
        self.height = (self.height + force * heights / length).max(LEAST_HEIGHT_SECONDS);
        let far = norm(&self.position) / GRAVITY_SECONDS;
        let pull = (0.01 * far * far).min(0.01);
        for at in &mut self.position {
            *at *= 1.0 - pull;
        }
    }
}

impl Tracked {
    /// An unknown host.
    pub(super) fn new(name: &str) -> Self {
        Self {
            now: Coordinate::first(name),
            told: None,
            samples: 0,
        }
    }

    /// Adds a round trip in seconds that this host measured to `other`; returns the coordinate if
    /// it must be published again.
    pub(super) fn measured(&mut self, other: &mut Self, rtt: f64) -> Option<Coordinate> {
        self.now.learn(&mut other.now, rtt);
        self.samples = self.samples.saturating_add(1);
        if self.samples < TELLING_SAMPLES {
            return None;
        }
        let far = TELL_SECONDS + TELL_SHARE * rtt;
        if self.told.is_some_and(|told| told.moved(&self.now) <= far) {
            return None;
        }
        self.told = Some(self.now);
        self.told
    }
}

fn norm(vector: &[f64; DIMENSIONS]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// A number in [0, 1) that is constant for the name.
fn unit(name: &str, salt: usize) -> f64 {
    let mut hasher = DefaultHasher::new();
    (name, salt).hash(&mut hasher);
    f64::from((hasher.finish() >> 32) as u32) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests;
