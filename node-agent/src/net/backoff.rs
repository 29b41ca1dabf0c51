//! Exponential backoff with jitter, so that hosts that fail together do not retry together.

use rand::Rng;
use std::time::Duration;

/// Waits between tries: `first`, then twice as long each time up to `longest`,
/// each shortened by up to a half.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// How long to wait now.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// After a success.
    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_anew() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(400));
        for full in [100, 200, 400, 400] {
            let wait = backoff.next_wait();
            assert!((ms(full / 2)..=ms(full)).contains(&wait), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.next_wait() <= ms(100));
    }
}
