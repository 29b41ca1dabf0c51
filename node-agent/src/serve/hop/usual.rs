//! Usual times of the next hosts, so that a request that could be answered otherwise does not wait
//! for a silent one until the system closes the connection.

use crate::telemetry::SegmentKey;
use std::collections::BTreeMap;
use std::time::Duration;

/// If nothing is known of the next host.
const AT_FIRST: Duration = Duration::from_secs(3);
/// An answer is waited for this many times the usual time, …
const TIMES: f64 = 3.0;
/// … plus this, for stalls of the host and the link.
const HICCUP: Duration = Duration::from_millis(250);
/// Factor for the longest time after each shorter one.
const KEPT: f64 = 0.98;
/// Most segments remembered, including those of old revisions.
const MOST: usize = 256;

/// Pure: times are passed in.
#[derive(Debug, Default)]
pub(super) struct Usual {
    known: BTreeMap<SegmentKey, Time>,
}

/// The longest recent time, and the bytes that were sent for it.
#[derive(Debug, Clone, Copy)]
struct Time {
    seconds: f64,
    bytes: f64,
}

impl Usual {
    /// How long a request of `bytes` for `segment` waits.
    pub(super) fn patience(&self, segment: &SegmentKey, bytes: u64) -> Duration {
        let Some(time) = self.known.get(segment) else {
            return AT_FIRST;
        };
        // More rows take longer to send and to compute.
        let times = (bytes as f64 / time.bytes.max(1.0)).max(1.0);
        let usual = Duration::try_from_secs_f64(time.seconds * times * TIMES);
        usual.map_or(Duration::MAX, |usual| usual.saturating_add(HICCUP))
    }

    /// A request of `bytes` for `segment` was answered after `took`.
    pub(super) fn took(&mut self, segment: &SegmentKey, bytes: u64, took: Duration) {
        let (seconds, bytes) = (took.as_secs_f64(), bytes as f64);
        let before = self.known.get(segment).copied();
        let kept = before.map(|time| Time {
            seconds: time.seconds * KEPT,
            ..time
        });
        let new = kept
            .filter(|kept| kept.seconds > seconds)
            .unwrap_or(Time { seconds, bytes });
        if before.is_none() && self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(segment.clone(), new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(revision: i64) -> SegmentKey {
        SegmentKey {
            placement_uid: "u".into(),
            revision,
            segment: 1,
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn patience_is_a_few_times_the_usual_time() {
        let mut usual = Usual::default();
        assert_eq!(usual.patience(&segment(1), 1000), AT_FIRST);
        for took in [20, 50, 30] {
            usual.took(&segment(1), 1000, millis(took));
        }
        let patience = usual.patience(&segment(1), 1000).as_millis();
        assert!((390..=400).contains(&patience), "{patience}");
        assert_eq!(usual.patience(&segment(2), 1000), AT_FIRST);
        // Eight rows take proportionally longer, and a smaller request no less.
        let patience = usual.patience(&segment(1), 8000).as_millis();
        assert!((1400..=1450).contains(&patience), "{patience}");
        assert!(usual.patience(&segment(1), 10) > millis(390));
    }

    #[test]
    fn one_long_time_is_forgotten() {
        let mut usual = Usual::default();
        usual.took(&segment(1), 1000, millis(9000));
        for _ in 0..400 {
            usual.took(&segment(1), 1000, millis(10));
        }
        assert!(usual.patience(&segment(1), 1000) < millis(300));
    }

    #[test]
    fn only_so_many_segments_are_remembered() {
        let mut usual = Usual::default();
        for revision in 0..1000 {
            usual.took(&segment(revision), 1, millis(1));
        }
        assert!(usual.known.len() <= MOST);
    }
}
