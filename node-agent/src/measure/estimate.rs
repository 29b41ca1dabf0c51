//! From what was seen of a link to what is told of it. Pure: times come in.

use crate::shared::Transfer;
use lamina_proto::control::LinkSample;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A transfer below this says nothing about bandwidth.
const LEAST_BYTES: u64 = 8 * 1024;
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

/// What is known of the link to one peer.
#[derive(Debug, Clone, Default)]
pub struct LinkMemory {
    round_trips: VecDeque<f64>,
    bytes_per_second: Option<f64>,
    seen_bandwidth_at: Option<Duration>,
    probed_at: Option<Duration>,
    probe_seconds: f64,
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
        let transfer = seconds - self.rtt().unwrap_or(0.0);
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
        if self.seen_bandwidth_at.is_some_and(|at| now < at + FRESH) && self.probed_at.is_none() {
            return None;
        }
        let pause =
            Duration::from_secs_f64(self.probe_seconds / PROBE_SHARE).clamp(FRESH, LONGEST_PAUSE);
        let seen = self.seen_bandwidth_at.max(self.probed_at);
        if seen.is_some_and(|at| now < at + pause) {
            return None;
        }
        let wanted = self.bytes_per_second.unwrap_or(0.0) * PROBE_SECONDS;
        Some((wanted as u64).clamp(SMALLEST_PROBE, LARGEST_PROBE))
    }

    /// Notes that a probe was sent and took the link `seconds`.
    pub fn probed(&mut self, seconds: f64, now: Duration) {
        self.probed_at = Some(now);
        self.probe_seconds = seconds;
    }
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
    best.into_iter()
        .map(|(peer, (rate, bytes))| LinkSample {
            peer: peer.to_owned(),
            bytes_per_second: rate,
            bytes,
            passive: true,
            ..LinkSample::default()
        })
        .collect()
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
