//! From what was seen of a link to what is told of it. Pure: times come in.

use crate::shared::Transfer;
use lamina_proto::control::LinkSample;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A transfer below this says nothing about bandwidth.
const LEAST_BYTES: u64 = 8 * 1024;
/// Of a transfer this large a time that is too short to tell still says that the
/// link is at least this fast.
const ENOUGH_BYTES: u64 = 1024 * 1024;
/// A time below this is scheduling, not transfer.
const LEAST_SECONDS: f64 = 1.5e-3;
/// Round trips remembered; the smallest of them counts, since waiting only adds.
const ROUND_TRIPS: usize = 12;
/// A passive sample younger than this makes a probe unnecessary.
const FRESH: Duration = Duration::from_secs(10);
/// Share of a link's time that probes may take.
const PROBE_SHARE: f64 = 0.01;
/// Even a link that was just probed is probed again after this long, whatever the
/// share: links change.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Sizes of probes.
const SMALLEST_PROBE: u64 = 16 * 1024;
const LARGEST_PROBE: u64 = 128 * 1024;
/// How long a probe should take.
const PROBE_SECONDS: f64 = 0.07;
/// A rate that differs from the last by this factor is news, not noise.
const CHANGE: f64 = 1.6;
/// News of one link leads to probes of the others no more often than this.
const DISTRUST_PAUSE: Duration = Duration::from_secs(10);

/// What is known of the link to one peer.
#[derive(Debug, Clone, Default)]
pub struct LinkMemory {
    round_trips: VecDeque<f64>,
    bytes_per_second: Option<f64>,
    seen_bandwidth_at: Option<Duration>,
    probed_at: Option<Duration>,
    probe_seconds: f64,
    /// The rate of the last sample.
    told: Option<f64>,
    /// Another link of this host changed: this one may have, too.
    is_distrusted: bool,
}

impl LinkMemory {
    /// Smallest recent round trip in seconds.
    pub fn rtt(&self) -> Option<f64> {
        self.round_trips.iter().copied().reduce(f64::min)
    }

    /// Notes an empty round trip.
    pub fn round_trip(&mut self, seconds: f64) {
        if self.round_trips.len() == ROUND_TRIPS {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(seconds);
    }

    /// Bandwidth of a transfer of `bytes` that took `seconds` beyond the round
    /// trip's share; `None` where it says nothing.
    pub fn bandwidth(&mut self, bytes: u64, seconds: f64, now: Duration) -> Option<f64> {
        let mut transfer = seconds - self.rtt().unwrap_or(0.0);
        if bytes >= ENOUGH_BYTES {
            transfer = transfer.max(LEAST_SECONDS);
        }
        if bytes < LEAST_BYTES || transfer < LEAST_SECONDS {
            return None;
        }
        let rate = bytes as f64 / transfer;
        self.bytes_per_second = Some(rate);
        self.seen_bandwidth_at = Some(now);
        Some(rate)
    }

    /// Size of the probe that is due at `now`; `None` where none is.
    pub fn probe_due(&self, now: Duration) -> Option<u64> {
        let pause =
            Duration::from_secs_f64(self.probe_seconds / PROBE_SHARE).clamp(FRESH, LONGEST_PAUSE);
        let seen = self.seen_bandwidth_at.max(self.probed_at);
        if !self.is_distrusted && seen.is_some_and(|at| now < at + pause) {
            return None;
        }
        Some(self.probe_size())
    }

    /// Bytes of a probe that fits what is known.
    pub fn probe_size(&self) -> u64 {
        let wanted = self.bytes_per_second.unwrap_or(0.0) * PROBE_SECONDS;
        (wanted as u64).clamp(SMALLEST_PROBE, LARGEST_PROBE)
    }

    /// Size of the probe that should follow one of `bytes`; `None` where that
    /// one was large enough to tell. `is_measured` says whether it told anything.
    pub fn larger_probe(&self, bytes: u64, is_measured: bool) -> Option<u64> {
        if is_measured {
            let fitting = self.probe_size();
            return (fitting >= bytes * 2).then_some(fitting);
        }
        (bytes < ENOUGH_BYTES).then(|| (bytes * 4).min(ENOUGH_BYTES))
    }

    /// Notes that a probe was sent and took the link `seconds`.
    pub fn probed(&mut self, seconds: f64, now: Duration) {
        self.probed_at = Some(now);
        self.probe_seconds = seconds;
        self.is_distrusted = false;
    }
}

/// Takes note that `rate` is told of the link to `peer`, and whether that is news.
/// Links of one host often share what makes them slow, so news of one makes the
/// others worth a probe.
pub fn told(
    memory: &mut BTreeMap<String, LinkMemory>,
    peer: &str,
    rate: f64,
    now: Duration,
) -> bool {
    let before = memory.get_mut(peer).and_then(|m| m.told.replace(rate));
    let is_news = before.is_some_and(|old| rate >= old * CHANGE || rate <= old / CHANGE);
    if is_news {
        for (_, other) in memory.iter_mut().filter(|(name, _)| *name != peer) {
            let is_fresh = other.probed_at.is_some_and(|at| now < at + DISTRUST_PAUSE);
            other.is_distrusted |= !is_fresh;
        }
    }
    is_news
}

/// One sample for each peer out of the transfers of a window. Requests that share
/// the link only make each other slower, so the fastest transfer counts.
pub fn passive_samples(
    transfers: &[Transfer],
    memory: &mut BTreeMap<String, LinkMemory>,
    now: Duration,
) -> Vec<LinkSample> {
    let mut best: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
    for transfer in transfers {
        let link = memory.entry(transfer.peer.clone()).or_default();
        let bytes = transfer.bytes_out + transfer.bytes_in;
        let Some(rate) = link.bandwidth(bytes, transfer.seconds, now) else {
            continue;
        };
        let held = best.entry(&transfer.peer).or_insert((rate, bytes));
        if rate > held.0 {
            *held = (rate, bytes);
        }
    }
    let samples: Vec<LinkSample> = best
        .into_iter()
        .map(|(peer, (rate, bytes))| LinkSample {
            peer: peer.to_owned(),
            bytes_per_second: rate,
            bytes,
            passive: true,
            ..LinkSample::default()
        })
        .collect();
    for sample in &samples {
        told(memory, &sample.peer, sample.bytes_per_second, now);
    }
    samples
}

/// Median of `values`, which it sorts; 0 of nothing.
pub fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// Percentile `p` (0 to 1) of `values`, which it sorts; 0 of nothing.
pub fn percentile(values: &mut [f64], p: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values
        .get((last as f64 * p).round() as usize)
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn transfer(bytes_out: u64, seconds: f64) -> Transfer {
        Transfer {
            peer: "edge-1".into(),
            bytes_out,
            bytes_in: 0,
            seconds,
        }
    }

    #[test]
    fn bandwidth_is_bytes_over_time_beyond_the_round_trip() {
        let mut memory = BTreeMap::new();
        memory
            .entry("edge-1".to_owned())
            .or_insert_with(LinkMemory::default)
            .round_trip(0.02);
        let samples = passive_samples(&[transfer(100_000, 0.18)], &mut memory, at(1));
        assert_eq!(samples.len(), 1);
        assert!((samples[0].bytes_per_second - 625_000.0).abs() < 1.0);
        assert!(samples[0].passive);
    }

    #[test]
    fn of_transfers_that_share_the_link_the_fastest_counts() {
        let mut memory = BTreeMap::new();
        let all = [
            transfer(100_000, 0.4),
            transfer(100_000, 0.1),
            transfer(100_000, 0.3),
        ];
        let samples = passive_samples(&all, &mut memory, at(1));
        assert!((samples[0].bytes_per_second - 1e6).abs() < 1.0);
    }

    #[test]
    fn small_or_instant_transfers_say_nothing() {
        let mut memory = BTreeMap::new();
        let all = [transfer(100, 0.1), transfer(100_000, 0.001)];
        assert!(passive_samples(&all, &mut memory, at(1)).is_empty());
    }

    #[test]
    fn the_smallest_round_trip_counts_and_old_ones_are_forgotten() {
        let mut link = LinkMemory::default();
        link.round_trip(0.03);
        link.round_trip(0.02);
        assert_eq!(link.rtt(), Some(0.02));
        for _ in 0..ROUND_TRIPS {
            link.round_trip(0.05);
        }
        assert_eq!(link.rtt(), Some(0.05));
    }

    #[test]
    fn a_silent_link_is_probed_at_once_and_then_rarely() {
        let mut link = LinkMemory::default();
        assert_eq!(link.probe_due(at(0)), Some(SMALLEST_PROBE));
        link.bandwidth(SMALLEST_PROBE, 0.0262, at(0));
        link.probed(0.0262, at(0));
        assert_eq!(link.probe_due(at(9)), None);
        let due = link.probe_due(at(11)).unwrap();
        assert!((43_000..45_000).contains(&due), "{due}");
    }

    #[test]
    fn probes_grow_until_they_tell() {
        let mut link = LinkMemory::default();
        // 50 Mbit/s: the smallest probe told little.
        assert!(link.bandwidth(SMALLEST_PROBE, 0.0055, at(0)).is_some());
        assert_eq!(link.larger_probe(SMALLEST_PROBE, true), Some(LARGEST_PROBE));
        link.bandwidth(LARGEST_PROBE, 0.021, at(0));
        assert_eq!(link.larger_probe(LARGEST_PROBE, true), None);
        // A link within one machine.
        let mut link = LinkMemory::default();
        assert_eq!(link.bandwidth(SMALLEST_PROBE, 0.0001, at(0)), None);
        assert_eq!(
            link.larger_probe(SMALLEST_PROBE, false),
            Some(4 * SMALLEST_PROBE)
        );
        assert_eq!(link.larger_probe(ENOUGH_BYTES, false), None);
        let floor = link.bandwidth(ENOUGH_BYTES, 0.0004, at(0)).unwrap();
        assert!((floor - ENOUGH_BYTES as f64 / LEAST_SECONDS).abs() < 1.0);
    }

    #[test]
    fn news_of_one_link_makes_the_others_worth_a_probe() {
        let mut memory: BTreeMap<String, LinkMemory> = ["edge-1", "edge-2", "cloud-1"]
            .into_iter()
            .map(|peer| {
                let mut link = LinkMemory::default();
                link.bandwidth(100_000, 0.1, at(0));
                link.probed(0.2, at(0));
                (peer.to_owned(), link)
            })
            .collect();
        let due = |memory: &BTreeMap<String, LinkMemory>, now| -> Vec<String> {
            let all = memory.iter();
            all.filter(|(_, m)| m.probe_due(now).is_some())
                .map(|(peer, _)| peer.clone())
                .collect()
        };
        told(&mut memory, "edge-1", 1e6, at(10));
        told(&mut memory, "edge-1", 1.2e6, at(11));
        assert_eq!(due(&memory, at(12)), [""; 0]);
        told(&mut memory, "edge-1", 1e5, at(12));
        assert_eq!(due(&memory, at(12)), ["cloud-1", "edge-2"]);
        for peer in ["cloud-1", "edge-2"] {
            memory.get_mut(peer).unwrap().probed(0.2, at(13));
        }
        // What was probed just now is trusted.
        told(&mut memory, "edge-1", 1e6, at(14));
        assert_eq!(due(&memory, at(14)), [""; 0]);
    }

    #[test]
    fn real_traffic_makes_probes_unnecessary() {
        let mut link = LinkMemory::default();
        link.bandwidth(100_000, 0.1, at(5));
        assert_eq!(link.probe_due(at(6)), None);
        assert!(link.probe_due(at(20)).is_some());
    }

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(percentile(&mut [1.0, 2.0, 3.0, 4.0, 5.0], 0.95), 5.0);
    }
}
