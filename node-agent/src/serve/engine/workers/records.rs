//! Lessons from crashes: which models share a worker, and which have to wait. Pure.

use super::super::{EngineError, ModelCrashes};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

/// Which models share a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Sharing {
    /// Those of a namespace: a tenant harms no other.
    #[default]
    PerNamespace,
    /// None: each has its own.
    PerModel,
    /// All: least memory.
    One,
}

/// Crashes further apart are unrelated.
const MEMORY: Duration = Duration::from_secs(600);
/// A worker of several models is split after this many crashes.
const SHARED_CRASHES: usize = 2;
/// Crashes of one model without a pause: each request is tried twice.
const FREE_CRASHES: u32 = 3;
/// The first pause, which doubles with each further crash.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A worker that ended unexpectedly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crash {
    /// The worker's group.
    pub(super) group: String,
    /// Models that were loaded there.
    pub(super) residents: BTreeSet<String>,
    /// Those that were computing or being loaded.
    pub(super) suspects: BTreeSet<String>,
    /// `SIGSEGV`, or another cause.
    pub(super) cause: String,
}

/// The crash records.
#[derive(Debug, Default)]
pub(super) struct Records {
    sharing: Sharing,
    models: BTreeMap<String, Record>,
    groups: BTreeMap<String, Vec<Instant>>,
    /// Models that have a worker of their own, to protect them or their neighbours.
    apart: BTreeSet<String>,
    total: u64,
}

#[derive(Debug)]
struct Record {
    /// Since the agent started.
    count: u32,
    /// Without a long pause between them.
    in_a_row: u32,
    cause: String,
    last: (Instant, SystemTime),
    pause: Duration,
}

impl Records {
    pub(super) fn new(sharing: Sharing) -> Self {
        Self {
            sharing,
            ..Self::default()
        }
    }

    /// The worker group of `model`.
    pub(super) fn group_of(&self, model: &str) -> String {
        let namespace = || {
            model
                .split_once('/')
                .map_or(model, |(namespace, _)| namespace)
        };
        match self.sharing {
            _ if self.apart.contains(model) => model.to_owned(),
            Sharing::PerModel => model.to_owned(),
            Sharing::PerNamespace => namespace().to_owned(),
            Sharing::One => String::new(),
        }
    }

    /// # Errors
    /// `model` crashed too often to be tried again now.
    pub(super) fn admit(&self, model: &str, now: Instant) -> Result<(), EngineError> {
        let Some(record) = self.models.get(model) else {
            return Ok(());
        };
        let left = record.pause_left(now);
        if left.is_zero() {
            return Ok(());
        }
        Err(EngineError::Quarantined {
            model: model.to_owned(),
            count: record.count,
            cause: record.cause.clone(),
            left,
        })
    }

    /// Records `crash`.
    pub(super) fn crashed(&mut self, crash: &Crash, (now, wall): (Instant, SystemTime)) {
        self.total += 1;
        let group = self.groups.entry(crash.group.clone()).or_default();
        group.retain(|at| now.saturating_duration_since(*at) < MEMORY);
        group.push(now);
        // If there were several, any may have done it: the guilty one will crash again when alone.
        if crash.residents.len() > 1 && group.len() >= SHARED_CRASHES {
            self.apart.extend(crash.residents.iter().cloned());
            self.groups.remove(&crash.group);
        }
        let mut suspects = crash.suspects.iter();
        if let (Some(culprit), None) = (suspects.next(), suspects.next()) {
            self.blame(culprit, &crash.cause, (now, wall));
        }
    }

    fn blame(&mut self, model: &str, cause: &str, now: (Instant, SystemTime)) {
        let record = self.models.entry(model.to_owned());
        let record = record.or_insert_with(|| Record {
            count: 0,
            in_a_row: 0,
            cause: String::new(),
            last: now,
            pause: Duration::ZERO,
        });
        if now.0.saturating_duration_since(record.last.0) > MEMORY + record.pause {
            record.in_a_row = 0;
        }
        record.count = record.count.saturating_add(1);
        record.in_a_row = record.in_a_row.saturating_add(1);
        cause.clone_into(&mut record.cause);
        record.last = now;
        record.pause = pause(record.in_a_row);
    }

    /// The models to blame, with their pauses as of `now`.
    pub(super) fn told(&self, now: Instant) -> Vec<ModelCrashes> {
        let told = self.models.iter().map(|(model, record)| ModelCrashes {
            model: model.clone(),
            count: record.count,
            cause: record.cause.clone(),
            last: record.last.1,
            quarantined_until: (!record.pause_left(now).is_zero())
                .then(|| record.last.1 + record.pause),
        });
        told.collect()
    }

    /// Crashes since the agent started.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }
}

impl Record {
    fn pause_left(&self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.last.0);
        self.pause.saturating_sub(passed)
    }
}

fn pause(in_a_row: u32) -> Duration {
    let Some(beyond) = in_a_row.checked_sub(FREE_CRASHES + 1) else {
        return Duration::ZERO;
    };
    FIRST_PAUSE
        .saturating_mul(2_u32.saturating_pow(beyond))
        .min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(group: &str, residents: &[&str], suspects: &[&str]) -> Crash {
        let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Crash {
            group: group.to_owned(),
            residents: set(residents),
            suspects: set(suspects),
            cause: "SIGSEGV".to_owned(),
        }
    }

    /// A clock set by tests.
    #[derive(Clone, Copy)]
    struct Clock(Instant);

    impl Clock {
        fn at(self, seconds: u64) -> (Instant, SystemTime) {
            let passed = Duration::from_secs(seconds);
            (self.0 + passed, SystemTime::UNIX_EPOCH + passed)
        }
    }

    #[test]
    fn who_shares_a_worker_is_a_value() {
        let group = |sharing| Records::new(sharing).group_of("shop/faces");
        assert_eq!(group(Sharing::PerNamespace), "shop");
        assert_eq!(group(Sharing::PerModel), "shop/faces");
        assert_eq!(group(Sharing::One), "");
    }

    #[test]
    fn a_model_that_crashes_waits_longer_each_time_and_is_forgiven() {
        let clock = Clock(Instant::now());
        let mut records = Records::new(Sharing::PerNamespace);
        let alone = crash("a", &["a/bad"], &["a/bad"]);
        let left = |records: &Records, at: u64| match records.admit("a/bad", clock.at(at).0) {
            Ok(()) => 0,
            Err(EngineError::Quarantined { left, .. }) => left.as_secs(),
            Err(other) => panic!("{other}"),
        };
        for _ in 0..3 {
            records.crashed(&alone, clock.at(0));
            assert_eq!(left(&records, 0), 0);
        }
        for (at, pause) in [(0, 5), (5, 10), (15, 20), (40, 40), (80, 80)] {
            records.crashed(&alone, clock.at(at));
            assert_eq!(left(&records, at), pause);
            assert_eq!(left(&records, at + pause), 0);
        }
        for _ in 0..20 {
            records.crashed(&alone, clock.at(200));
        }
        assert_eq!(left(&records, 200), 300);
        let told = records.told(clock.at(200).0);
        assert_eq!((told[0].count, told[0].cause.as_str()), (28, "SIGSEGV"));
        assert_eq!(told[0].quarantined_until, Some(clock.at(500).1));
        records.crashed(&alone, clock.at(200 + 300 + 601));
        assert_eq!(left(&records, 1101), 0);
        assert!(records.admit("a/good", clock.at(0).0).is_ok());
    }

    #[test]
    fn models_part_when_their_worker_crashed_twice() {
        let clock = Clock(Instant::now());
        let mut records = Records::new(Sharing::PerNamespace);
        let shared = crash("a", &["a/bad", "a/good"], &["a/bad", "a/good"]);
        records.crashed(&shared, clock.at(0));
        assert_eq!(records.group_of("a/bad"), "a");
        records.crashed(&shared, clock.at(700));
        assert_eq!(records.group_of("a/bad"), "a", "the first is forgotten");
        records.crashed(&shared, clock.at(701));
        assert_eq!(records.group_of("a/bad"), "a/bad");
        assert_eq!(records.group_of("a/good"), "a/good");
        assert_eq!(records.group_of("a/new"), "a");
        // Nobody knows which of the two it was.
        assert_eq!(records.told(clock.at(701).0), []);
        assert_eq!(records.total(), 3);
    }

    #[test]
    fn whoever_did_nothing_is_not_blamed() {
        let clock = Clock(Instant::now());
        let mut records = Records::new(Sharing::One);
        for second in 0..9 {
            let crash = crash("", &["a/bad", "b/good"], &["a/bad"]);
            records.crashed(&crash, clock.at(second));
        }
        assert!(records.admit("b/good", clock.at(9).0).is_ok());
        assert!(records.admit("a/bad", clock.at(9).0).is_err());
        let models: Vec<String> = records
            .told(clock.at(9).0)
            .into_iter()
            .map(|m| m.model)
            .collect();
        assert_eq!(models, ["a/bad"]);
    }
}
