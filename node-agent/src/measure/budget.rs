//! How much of a link probes may take. Pure: the current time is passed in.

use std::time::Duration;

/// Share of a link's time.
const SHARE: f64 = 0.01;
/// Most seconds of a link saved up: two minutes' worth.
const CAPACITY_SECONDS: f64 = 1.2;
/// Part of it reserved for urgent probes.
const RESERVE_SECONDS: f64 = 0.6;

/// Seconds of a link that probes may still use. Overuse is owed.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    seconds: f64,
    at: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            seconds: CAPACITY_SECONDS,
            at: Duration::ZERO,
        }
    }
}

impl Budget {
    /// Whether a probe of about `seconds` fits. One that is longer than the maximum waits until the
    /// budget is full.
    pub(super) fn allows(&self, seconds: f64, is_urgent: bool, now: Duration) -> bool {
        let reserve = if is_urgent { 0.0 } else { RESERVE_SECONDS };
        // Sums of shares differ in the last digits.
        self.left(now) + 1e-9 >= (seconds + reserve).min(CAPACITY_SECONDS)
    }

    /// Notes that a probe took `seconds`.
    pub(super) fn spend(&mut self, seconds: f64, now: Duration) {
        self.seconds = self.left(now) - seconds;
        self.at = now;
    }

    fn left(&self, now: Duration) -> f64 {
        let since = now.saturating_sub(self.at).as_secs_f64();
        (self.seconds + SHARE * since).min(CAPACITY_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// Share of the time, from the second hour on, used by probes of `seconds` that are wanted
    /// every second.
    fn share(seconds: f64, is_urgent: bool) -> f64 {
        let mut budget = Budget::default();
        let mut spent = 0.0;
        for second in 0..50 * HOUR {
            let now = Duration::from_secs(second);
            if budget.allows(seconds, is_urgent, now) {
                budget.spend(seconds, now);
                spent += if second >= HOUR { seconds } else { 0.0 };
            }
        }
        spent / (49 * HOUR) as f64
    }

    #[test]
    fn probes_take_one_part_in_a_hundred_however_long_each_is() {
        for seconds in [0.05, 0.5, 3.0, 20.0] {
            for is_urgent in [false, true] {
                let share = share(seconds, is_urgent);
                assert!((0.0089..=0.0101).contains(&share), "{seconds} s: {share}");
            }
        }
    }

    #[test]
    fn no_minute_sees_more_than_what_was_saved_up_and_its_share() {
        let mut budget = Budget::default();
        let mut probes: Vec<(u64, f64)> = Vec::new();
        for second in 0..2 * HOUR {
            let now = Duration::from_secs(second);
            if budget.allows(0.1, true, now) {
                budget.spend(0.1, now);
                probes.push((second, 0.1));
            }
        }
        for (begin, _) in &probes {
            let within = probes
                .iter()
                .filter(|(at, _)| (*begin..begin + 60).contains(at));
            let spent: f64 = within.map(|(_, seconds)| seconds).sum();
            assert!(spent <= CAPACITY_SECONDS + 60.0 * SHARE + 1e-6, "{spent}");
        }
    }

    #[test]
    fn what_is_urgent_finds_something_left() {
        let mut budget = Budget::default();
        let now = Duration::ZERO;
        while budget.allows(0.1, false, now) {
            budget.spend(0.1, now);
        }
        assert!(budget.allows(0.4, true, now));
    }
}
