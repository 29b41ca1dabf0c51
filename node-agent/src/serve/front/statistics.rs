//! Statistics of requests for each model that enters here, for benchmark clients. Pure apart
//! from the lock: the current time is passed in.

use super::output::VERSION;
use lamina_proto::hop::HopTiming;
use lamina_proto::inference::{InferStatistics, ModelStatistics, StatisticDuration};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Times of an answered request on the hosts of its path, and its number of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) queue: Duration,
    pub(super) compute: Duration,
    pub(super) rows: u64,
}

impl Spent {
    pub(super) fn of(timings: &[HopTiming], rows: u64) -> Self {
        let sum = |of: fn(&HopTiming) -> u64| {
            let micros = timings.iter().map(of).fold(0, u64::saturating_add);
            Duration::from_micros(micros)
        };
        Self {
            queue: sum(|t| t.queue_us),
            compute: sum(|t| t.compute_us),
            rows,
        }
    }
}

/// A count and a total time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Total {
    count: u64,
    time: Duration,
}

impl Total {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time = self.time.saturating_add(time);
    }

    fn rendered(self) -> Option<StatisticDuration> {
        Some(StatisticDuration {
            count: self.count,
            ns: u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

/// Statistics of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    answered: Total,
    failed: Total,
    queue: Total,
    compute: Total,
    rows: u64,
    /// Time of the last answer, in milliseconds since 1970.
    last_ms: u64,
}

impl Counts {
    /// In the protocol's form, for the model that the client calls `name`.
    pub(super) fn rendered(self, name: String) -> ModelStatistics {
        // Benchmark clients expect equal counts for each part, though two of them are measured with
        // the third.
        let within = Total {
            count: self.compute.count,
            time: Duration::ZERO,
        };
        ModelStatistics {
            name,
            version: VERSION.to_owned(),
            last_inference: self.last_ms,
            inference_count: self.rows,
            execution_count: self.answered.count,
            inference_stats: Some(InferStatistics {
                success: self.answered.rendered(),
                fail: self.failed.rendered(),
                queue: self.queue.rendered(),
                compute_input: within.rendered(),
                compute_infer: self.compute.rendered(),
                compute_output: within.rendered(),
            }),
        }
    }
}

/// By the UID of the Placement, while it enters here. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Statistics(Arc<Mutex<BTreeMap<String, Counts>>>);

impl Statistics {
    /// A request of `placement_uid` was answered after `took`, `now_ms` since 1970. A new Placement
    /// replaces those that are no longer here.
    pub(super) fn answered(
        &self,
        placement_uid: &str,
        took: Duration,
        spent: Spent,
        now_ms: u64,
        is_here: impl Fn(&str) -> bool,
    ) {
        self.count(placement_uid, is_here, |counts| {
            counts.answered.add(took);
            counts.queue.add(spent.queue);
            counts.compute.add(spent.compute);
            counts.rows = counts.rows.saturating_add(spent.rows);
            counts.last_ms = counts.last_ms.max(now_ms);
        });
    }

    /// As [`Statistics::answered`], for a request that failed.
    pub(super) fn failed(
        &self,
        placement_uid: &str,
        took: Duration,
        is_here: impl Fn(&str) -> bool,
    ) {
        self.count(placement_uid, is_here, |counts| counts.failed.add(took));
    }

    /// The counts of a Placement.
    pub(super) fn of(&self, placement_uid: &str) -> Counts {
        self.lock().get(placement_uid).copied().unwrap_or_default()
    }

    fn count(
        &self,
        placement_uid: &str,
        is_here: impl Fn(&str) -> bool,
        change: impl FnOnce(&mut Counts),
    ) {
        let mut counts = self.lock();
        if !counts.contains_key(placement_uid) {
            counts.retain(|uid, _| is_here(uid));
        }
        change(counts.entry(placement_uid.to_owned()).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn times_are_summed_over_requests_and_over_the_hosts_of_each() {
        let on = |queue_us, compute_us| HopTiming {
            queue_us,
            compute_us,
            ..HopTiming::default()
        };
        let spent = Spent::of(&[on(1, 200), on(10, 2000)], 3);
        let statistics = Statistics::default();
        statistics.answered("u", MS(5), spent, 1000, |_| true);
        statistics.answered("u", MS(7), spent, 900, |_| true);
        statistics.failed("u", MS(30), |_| true);
        let told = statistics.of("u").rendered("m".into());
        assert_eq!((told.name.as_str(), told.version.as_str()), ("m", "1"));
        assert_eq!((told.inference_count, told.execution_count), (6, 2));
        assert_eq!(told.last_inference, 1000);
        let stats = told.inference_stats.unwrap();
        let of = |d: Option<StatisticDuration>| d.map(|d| (d.count, d.ns)).unwrap();
        assert_eq!(of(stats.success), (2, 12_000_000));
        assert_eq!(of(stats.fail), (1, 30_000_000));
        assert_eq!(of(stats.queue), (2, 22_000));
        assert_eq!(of(stats.compute_infer), (2, 4_400_000));
        assert_eq!(of(stats.compute_input), (2, 0));
    }

    #[test]
    fn what_enters_here_no_more_makes_room() {
        let statistics = Statistics::default();
        for uid in ["old", "u"] {
            statistics.failed(uid, MS(1), |_| true);
        }
        statistics.failed("u", MS(1), |_| false);
        assert_eq!(statistics.of("u").failed.count, 2, "it is known");
        statistics.failed("new", MS(1), |uid| uid == "u");
        assert_eq!(statistics.of("old"), Counts::default());
        assert_eq!(statistics.lock().len(), 2);
    }
}
