//! Rate limits by key or by address, per second. Pure apart from its owner's locks: the current
//! time is passed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A burst, and a rate per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) burst: f64,
    pub(super) a_second: f64,
}

impl Rate {
    /// As users state it: the burst is the requests of one second.
    pub(super) fn per_second(requests: u32) -> Self {
        let a_second = f64::from(requests.max(1));
        Self {
            burst: a_second,
            a_second,
        }
    }
}

/// The rest of a rate.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn now(self, rate: Rate, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + since * rate.a_second).min(rate.burst)
    }
}

/// Buckets by key, at most `most`.
#[derive(Debug)]
pub(super) struct Rates<K> {
    buckets: BTreeMap<K, Bucket>,
    most: usize,
}

impl<K: Ord + Clone> Rates<K> {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            buckets: BTreeMap::new(),
            most,
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// There is none; the time until there is.
    pub(super) fn take(&mut self, key: &K, rate: Rate, now: Instant) -> Result<(), Duration> {
        let left = match self.buckets.get(key) {
            Some(bucket) => bucket.now(rate, now),
            None => {
                self.make_room(rate, now);
                rate.burst
            }
        };
        if left < 1.0 {
            // Not taken: a refused request must not delay the next one.
            return Err(Duration::from_secs_f64((1.0 - left) / rate.a_second));
        }
        let left = left - 1.0;
        self.buckets.insert(key.clone(), Bucket { left, at: now });
        Ok(())
    }

    /// A full bucket can be dropped; otherwise the least recently used one is.
    fn make_room(&mut self, rate: Rate, now: Instant) {
        if self.buckets.len() < self.most {
            return;
        }
        self.buckets.retain(|_, b| b.now(rate, now) < rate.burst);
        while self.buckets.len() >= self.most {
            let oldest = self.buckets.iter().min_by_key(|(_, b)| b.at);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            self.buckets.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_what_it_is_said_to_hold() {
        let (rate, now) = (Rate::per_second(2), Instant::now());
        let mut rates = Rates::new(8);
        rates.take(&"a", rate, now).unwrap();
        rates.take(&"a", rate, now).unwrap();
        let wait = rates.take(&"a", rate, now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        rates.take(&"b", rate, now).unwrap();
        rates.take(&"a", rate, now + wait).unwrap();
        rates.take(&"a", rate, now + wait).unwrap_err();
        // Unused requests accumulate only up to the burst.
        let later = now + Duration::from_secs(60);
        rates.take(&"a", rate, later).unwrap();
        rates.take(&"a", rate, later).unwrap();
        rates.take(&"a", rate, later).unwrap_err();
    }

    #[test]
    fn many_keep_a_bounded_number_and_the_busy_ones() {
        let (rate, now) = (Rate::per_second(1), Instant::now());
        let mut rates = Rates::new(4);
        for address in 0..100 {
            let later = now + Duration::from_millis(address);
            rates.take(&address, rate, later).unwrap();
            assert!(rates.buckets.len() <= 4);
        }
        rates
            .take(&99, rate, now + Duration::from_millis(100))
            .unwrap_err();
    }
}
