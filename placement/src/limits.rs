//! Limits of a solve, and what makes it reproducible.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Limits of a solve: a deadline and a way to cancel. The only clock that a strategy may read.
#[derive(Debug, Clone, Default)]
pub struct Ctx {
    deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
}

impl Ctx {
    /// No deadline.
    pub fn unlimited() -> Self {
        Self::default()
    }

    /// Stop at `deadline` and return what was found.
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline: Some(deadline),
            cancelled: Arc::default(),
        }
    }

    /// The same limits, and stop within `duration` from now.
    pub fn within(&self, duration: Duration) -> Self {
        let own = Instant::now().checked_add(duration);
        Self {
            deadline: self.deadline.into_iter().chain(own).min(),
            cancelled: Arc::clone(&self.cancelled),
        }
    }

    /// A handle that cancels the solve when set to true.
    pub fn cancel_handle(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Whether to stop now.
    pub fn expired(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.deadline.is_some_and(|d| Instant::now() >= d)
    }

    /// Time left; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline
            .map(|d| d.saturating_duration_since(Instant::now()))
    }

    /// The same limits with only `share` (in `0..=1`) of the remaining time.
    pub fn part(&self, share: f64) -> Self {
        let deadline = self
            .remaining()
            .map(|left| Instant::now() + left.mul_f64(share.clamp(0.0, 1.0)));
        Self {
            deadline,
            cancelled: Arc::clone(&self.cancelled),
        }
    }
}

/// Options of a solve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SolveOptions {
    /// Seed of everything random; the same seed gives the same answer.
    pub seed: u64,
    /// Units of work after which to stop. Unlike a deadline this is reproducible.
    pub work_limit: Option<u64>,
}

impl Default for SolveOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            work_limit: Some(4_000_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_time_is_never_longer_than_the_whole() {
        let hour = Duration::from_secs(3600);
        let day = 24 * hour;
        assert!(Ctx::unlimited().within(Duration::ZERO).expired());
        assert!(!Ctx::unlimited().within(hour).expired());
        let left = Ctx::unlimited().within(hour).within(day).remaining();
        assert!(left.is_some_and(|l| l <= hour));
        assert_eq!(Ctx::unlimited().within(Duration::MAX).remaining(), None);
    }

    #[test]
    fn cancelling_reaches_every_part() {
        let ctx = Ctx::unlimited();
        let part = ctx.within(Duration::from_secs(3600));
        ctx.cancel_handle().store(true, Ordering::Relaxed);
        assert!(part.expired());
    }
}
