//! The link matrix: robust estimates of each directed pair from noisy samples.
//!
//! Bandwidth is estimated in the logarithmic domain. A sample within the noise
//! moves the estimate by its share of the evidence; one outside waits for a
//! second that says the same, so that a single odd transfer changes nothing and
//! a real change is followed within three samples. The round trip is the same
//! seen from either end, so a pair shares it; its noise is one-sided (queues and
//! a throttled process only add), so a median of the newest samples will do.

use super::types::{LinkEstimate, LinkMatrix, WorldEvent};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Transfers of this size are half as good as very large ones.
const HALF_WEIGHT_BYTES: f64 = 16_384.0;
/// Evidence kept at most, in full samples: a new one moves the estimate by at
/// least a quarter of the difference.
const MAX_EVIDENCE: f64 = 4.0;
/// Evidence halves in this time without a sample.
const EVIDENCE_HALF_LIFE: Duration = Duration::from_secs(120);
/// Below this evidence, whatever comes is taken.
const LITTLE_EVIDENCE: f64 = 0.5;
/// Noise assumed before samples tell, and its bounds, as a standard deviation
/// of the logarithm.
const FIRST_NOISE: f64 = 0.2;
const NOISE_BOUNDS: (f64, f64) = (0.05, 0.35);
/// A sample is odd when it differs by more than this (a factor of 1.8) and by
/// more than three times the noise.
const ODD: f64 = 0.588;
/// A bandwidth is told anew when it changed by more than this (a factor of 1.5)
/// and by more than three times its noise.
const TELL: f64 = 0.405;
/// A round trip is told anew when it changed by a factor of 1.5 and by this.
const TELL_RTT_SECONDS: f64 = 0.002;
/// Samples behind the median of the round trip.
const RTT_WINDOW: usize = 5;
/// A peer is unreachable after this many failures in a row.
const FAILURES: u32 = 3;

/// One measurement of a directed link.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Sample {
    /// Round trip in seconds.
    pub(super) rtt_seconds: Option<f64>,
    /// Bytes per second.
    pub(super) bytes_per_second: Option<f64>,
    /// Size of the transfer behind it.
    pub(super) bytes: u64,
    /// The peer did not answer.
    pub(super) failed: bool,
}

/// Estimates of all links that were measured.
#[derive(Debug, Default)]
pub(super) struct Links {
    directions: BTreeMap<(String, String), Direction>,
    round_trips: BTreeMap<(String, String), RoundTrip>,
}

#[derive(Debug, Default)]
struct Direction {
    bandwidth: Option<Bandwidth>,
    failures: u32,
    told: Option<LinkEstimate>,
}

#[derive(Debug)]
struct Bandwidth {
    log: f64,
    noise: f64,
    evidence: f64,
    at: Duration,
    odd: Vec<f64>,
}

#[derive(Debug, Default)]
struct RoundTrip {
    samples: VecDeque<f64>,
    at: Duration,
}

impl Links {
    /// Takes in a sample of the link `from` → `to`.
    pub(super) fn add(
        &mut self,
        from: &str,
        to: &str,
        sample: Sample,
        now: Duration,
    ) -> Vec<WorldEvent> {
        let mut affected = vec![(from.to_owned(), to.to_owned())];
        let direction = self.directions.entry(affected[0].clone()).or_default();
        if sample.failed {
            direction.failures = direction.failures.saturating_add(1);
        } else {
            direction.failures = 0;
        }
        if let Some(speed) = positive(sample.bytes_per_second) {
            match &mut direction.bandwidth {
                Some(known) => known.add(speed.ln(), weight(sample.bytes), now),
                none => *none = Some(Bandwidth::first(speed.ln(), weight(sample.bytes), now)),
            }
        }
        if let Some(rtt) = positive(sample.rtt_seconds) {
            let pair = unordered(from, to);
            self.round_trips.entry(pair).or_default().add(rtt, now);
            affected.push((to.to_owned(), from.to_owned()));
        }
        affected
            .into_iter()
            .filter_map(|(from, to)| self.tell(from, to, now))
            .collect()
    }

    /// Everything known at `now`.
    pub(super) fn matrix(&self, now: Duration) -> LinkMatrix {
        let mut by_from: BTreeMap<String, BTreeMap<String, LinkEstimate>> = BTreeMap::new();
        for (from, to) in self.directions.keys() {
            for (from, to) in [(from, to), (to, from)] {
                if let Some(estimate) = self.estimate(from, to, now) {
                    by_from
                        .entry(from.clone())
                        .or_default()
                        .insert(to.clone(), estimate);
                }
            }
        }
        LinkMatrix::new(by_from)
    }

    fn estimate(&self, from: &str, to: &str, now: Duration) -> Option<LinkEstimate> {
        let direction = self.directions.get(&(from.to_owned(), to.to_owned()));
        let bandwidth = direction.and_then(|d| d.bandwidth.as_ref());
        let round_trip = self.round_trips.get(&unordered(from, to));
        let failures = direction.map_or(0, |d| d.failures);
        let is_known = bandwidth.is_some() || round_trip.is_some();
        if !is_known && failures < FAILURES {
            return None;
        }
        Some(LinkEstimate {
            rtt_seconds: round_trip.and_then(RoundTrip::median),
            bytes_per_second: bandwidth.map(|b| b.log.exp()),
            confidence: bandwidth.map_or(0.0, |b| b.confidence(now)),
            noise: bandwidth.map_or(0.0, |b| b.noise.exp_m1()),
            bandwidth_age: bandwidth.map(|b| now.saturating_sub(b.at)),
            reachable: failures < FAILURES,
        })
    }

    /// The event that is due, if the estimate moved away from what was told.
    fn tell(&mut self, from: String, to: String, now: Duration) -> Option<WorldEvent> {
        let after = self.estimate(&from, &to, now)?;
        let key = (from, to);
        let direction = self.directions.entry(key.clone()).or_default();
        let before = direction.told;
        if before.is_some_and(|before| !differs(&before, &after)) {
            return None;
        }
        direction.told = Some(after);
        let (from, to) = key;
        Some(match before {
            Some(before) => WorldEvent::LinkChanged {
                from,
                to,
                before,
                after,
            },
            None => WorldEvent::LinkMeasured {
                from,
                to,
                estimate: after,
            },
        })
    }
}

impl Bandwidth {
    const fn first(log: f64, weight: f64, now: Duration) -> Self {
        Self {
            log,
            noise: FIRST_NOISE,
            evidence: weight,
            at: now,
            odd: Vec::new(),
        }
    }

    fn add(&mut self, log: f64, weight: f64, now: Duration) {
        self.evidence = self.evidence_at(now);
        self.at = now;
        let difference = log - self.log;
        let gate = ODD.max(3.0 * self.noise);
        if self.evidence < LITTLE_EVIDENCE || difference.abs() <= gate {
            self.odd.clear();
            self.evidence = (self.evidence + weight).min(MAX_EVIDENCE);
            let share = weight / self.evidence;
            self.log += share * difference;
            self.learn_noise(difference.abs().min(gate), share);
        } else {
            self.add_odd(log, weight, gate);
        }
    }

    /// Two odd samples that agree, or three on the same side, are a change.
    fn add_odd(&mut self, log: f64, weight: f64, gate: f64) {
        let side = (log - self.log).signum();
        self.odd.retain(|o| (o - self.log).signum() == side);
        let confirmed = self.odd.last().is_some_and(|o| (o - log).abs() <= gate);
        self.odd.push(log);
        if confirmed || self.odd.len() >= 3 {
            self.log = median(self.odd.split_off(self.odd.len().saturating_sub(3)));
            self.evidence = 2.0 * weight;
            self.odd.clear();
        }
    }

    fn learn_noise(&mut self, deviation: f64, share: f64) {
        // 1.25 turns a mean deviation into a standard one.
        let noise = self.noise + share * (1.25 * deviation - self.noise);
        self.noise = noise.clamp(NOISE_BOUNDS.0, NOISE_BOUNDS.1);
    }

    fn evidence_at(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        self.evidence * (-age / EVIDENCE_HALF_LIFE.as_secs_f64()).exp2()
    }

    fn confidence(&self, now: Duration) -> f64 {
        1.0 - (-self.evidence_at(now)).exp()
    }
}

impl RoundTrip {
    fn add(&mut self, rtt: f64, now: Duration) {
        if self.samples.len() == RTT_WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back(rtt);
        self.at = now;
    }

    fn median(&self) -> Option<f64> {
        (!self.samples.is_empty()).then(|| median(self.samples.iter().copied().collect()))
    }
}

/// Whether `after` differs from what was told by more than noise.
fn differs(before: &LinkEstimate, after: &LinkEstimate) -> bool {
    let bandwidth = match (before.bytes_per_second, after.bytes_per_second) {
        (Some(a), Some(b)) => (b / a).ln().abs() > TELL.max(3.0 * after.noise.ln_1p()),
        (a, b) => a.is_some() != b.is_some(),
    };
    let round_trip = match (before.rtt_seconds, after.rtt_seconds) {
        (Some(a), Some(b)) => (b / a).ln().abs() > TELL && (b - a).abs() > TELL_RTT_SECONDS,
        (a, b) => a.is_some() != b.is_some(),
    };
    bandwidth || round_trip || before.reachable != after.reachable
}

fn weight(bytes: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // a weight needs few digits
    let bytes = bytes as f64;
    (bytes / (bytes + HALF_WEIGHT_BYTES)).max(0.02)
}

fn positive(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite() && *v > 0.0)
}

fn unordered(a: &str, b: &str) -> (String, String) {
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    (a.to_owned(), b.to_owned())
}

/// Median of at least one value; of two the lower.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn speed(bytes_per_second: f64) -> Sample {
        Sample {
            bytes_per_second: Some(bytes_per_second),
            bytes: 1 << 20,
            ..Sample::default()
        }
    }

    fn rate(links: &Links, second: u64) -> f64 {
        let matrix = links.matrix(at(second));
        matrix.get("a", "b").unwrap().bytes_per_second.unwrap()
    }

    /// Ten samples of about 1 MB/s.
    fn settled() -> Links {
        let mut links = Links::default();
        for i in 0..10 {
            let wobble = if i % 2 == 0 { 1.05 } else { 0.95 };
            links.add("a", "b", speed(1e6 * wobble), at(i));
        }
        links
    }

    #[test]
    fn one_odd_sample_changes_nothing_and_a_second_one_does() {
        let mut links = settled();
        assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
        assert_eq!(links.add("a", "b", speed(1e5), at(10)), []);
        assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
        let told = links.add("a", "b", speed(1.1e5), at(11));
        assert!(rate(&links, 11) < 1.3e5, "{}", rate(&links, 11));
        assert!(matches!(&told[..], [WorldEvent::LinkChanged { before, .. }]
            if before.bytes_per_second.unwrap() > 9e5));
    }

    #[test]
    fn odd_samples_that_contradict_each_other_change_nothing() {
        let mut links = settled();
        for (i, odd) in [1e5, 1e7, 1e5, 1e7].into_iter().enumerate() {
            links.add("a", "b", speed(odd), at(10 + i as u64));
        }
        assert!((rate(&links, 14) / 1e6 - 1.0).abs() < 0.1);
    }

    #[test]
    fn small_transfers_say_little() {
        let mut links = settled();
        let small = Sample {
            bytes: 100,
            ..speed(0.7e6)
        };
        links.add("a", "b", small, at(10));
        assert!((rate(&links, 10) / 1e6 - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_round_trip_is_shared_by_both_directions_and_forgets_outliers() {
        let mut links = Links::default();
        for (i, rtt) in [0.010, 0.011, 0.300, 0.010, 0.012].into_iter().enumerate() {
            let sample = Sample {
                rtt_seconds: Some(rtt),
                ..Sample::default()
            };
            links.add("a", "b", sample, at(i as u64));
        }
        let matrix = links.matrix(at(5));
        assert_eq!(matrix.get("b", "a").unwrap().rtt_seconds, Some(0.011));
        assert_eq!(matrix.get("a", "c"), None);
    }

    #[test]
    fn three_failures_make_a_peer_unreachable_until_it_answers() {
        let mut links = settled();
        let failed = Sample {
            failed: true,
            ..Sample::default()
        };
        let mut told = Vec::new();
        for second in 10..13 {
            told = links.add("a", "b", failed, at(second));
        }
        assert!(matches!(&told[..], [WorldEvent::LinkChanged { after, .. }] if !after.reachable));
        let estimate = links.matrix(at(13)).get("a", "b").unwrap();
        assert!(estimate.bytes_per_second.is_some(), "the figures stay");
        links.add("a", "b", speed(1e6), at(13));
        assert!(links.matrix(at(13)).get("a", "b").unwrap().reachable);
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut links = Links::default();
        for odd in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let sample = Sample {
                rtt_seconds: Some(odd),
                ..speed(odd)
            };
            assert_eq!(links.add("a", "b", sample, at(0)), []);
        }
        assert_eq!(links.matrix(at(0)).get("a", "b"), None);
    }

    #[test]
    fn confidence_grows_with_samples_and_fades() {
        let mut links = Links::default();
        links.add("a", "b", speed(1e6), at(0));
        let confidence = |links: &Links, s| links.matrix(at(s)).get("a", "b").unwrap().confidence;
        let one = confidence(&links, 0);
        links.add("a", "b", speed(1e6), at(1));
        assert!(confidence(&links, 1) > one);
        assert!(confidence(&links, 600) < 0.1);
    }
}
