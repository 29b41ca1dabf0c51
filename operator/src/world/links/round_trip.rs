//! The round trip of a pair, the same seen from either end. Its noise is
//! one-sided (queues and a throttled process only add), so a median of the newest
//! samples will do, and a contended sample counts only where it is below.

use super::median;
use std::collections::VecDeque;

/// Samples behind the median.
const WINDOW: usize = 5;

/// The newest samples of a pair.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    seconds: VecDeque<f64>,
    /// Nothing but an upper bound is known.
    is_bound: bool,
}

impl RoundTrip {
    /// Takes in a sample, within bounds; whether it counted.
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
