//! The round trip of a pair, the same from either end. Its noise is one-sided (queues and throttled
//! processes only add), so a median of the newest samples is enough, and a contended sample counts
//! only if it is lower.

use super::median;
use std::collections::VecDeque;

/// Samples behind the median.
const WINDOW: usize = 5;

/// The newest samples of a pair.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    seconds: VecDeque<f64>,
    /// Only an upper bound is known.
    is_bound: bool,
}

impl RoundTrip {
    /// Adds a sample within bounds; returns whether it counted.
    pub(super) fn add(&mut self, seconds: f64, contended: bool) -> bool {
        if contended && self.median().is_some_and(|known| seconds >= known) {
            return false;
        }
        if self.is_bound && !contended {
            self.seconds.clear();
        }
        self.is_bound = contended && (self.is_bound || self.seconds.is_empty());
        if self.seconds.len() == WINDOW {
            self.seconds.pop_front();
        }
        self.seconds.push_back(seconds);
        true
    }

    /// The estimate in seconds.
    pub(super) fn median(&self) -> Option<f64> {
        median(self.seconds.iter().copied().collect())
    }
}
