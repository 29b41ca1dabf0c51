//! From what was seen of a link to what is told of it. Pure: times come in.

use crate::telemetry::Transfer;
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
/// Requests that are slower than the link was probed to be by less than this
/// factor say little: a host that is short of processor time sends late, too.
const SLOWER: f64 = 1.25;
/// Requests that are slower than it was probed to be by this factor ask for a probe
/// at once.
const MUCH_SLOWER: f64 = 3.0;
/// What asks for a probe does so no more often than this.
const DISTRUST_PAUSE: Duration = Duration::from_secs(5);
/// Repetitions of a probe whose answer matters. The fastest counts.
const REPETITIONS: u32 = 3;

/// What is known of the link to one peer.
#[derive(Debug, Clone, Default)]
pub struct LinkMemory {
    round_trips: VecDeque<f64>,
    bytes_per_second: Option<f64>,
    seen_bandwidth_at: Option<Duration>,
    probed_at: Option<Duration>,
    probe_seconds: f64,
    /// The rate of the last probe.
    probed_rate: Option<f64>,
    /// This link may have changed: it is worth a probe.
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
    pub fn bandwidth(&self, bytes: u64, seconds: f64) -> Option<f64> {
        let mut transfer = seconds - self.rtt().unwrap_or(0.0);
        if bytes >= ENOUGH_BYTES {
            transfer = transfer.max(LEAST_SECONDS);
        }
        if bytes < LEAST_BYTES || transfer < LEAST_SECONDS {
            return None;
        }
        Some(bytes as f64 / transfer)
    }

    /// Whether requests that saw `rate` tell the link's bandwidth. Where they are
    /// much slower than it was probed to be, a probe is due.
    fn believes(&mut self, rate: f64, now: Duration) -> bool {
        let slower = self.probed_rate.map_or(0.0, |probed| probed / rate);
        self.is_distrusted |= slower > MUCH_SLOWER && self.may_distrust(now);
        slower <= SLOWER
    }

    fn may_distrust(&self, now: Duration) -> bool {
        self.probed_at.is_none_or(|at| now >= at + DISTRUST_PAUSE)
    }

    fn note(&mut self, rate: f64, now: Duration) {
        self.bytes_per_second = Some(rate);
        self.seen_bandwidth_at = Some(now);
    }

    /// How often the probe that is due is repeated.
    pub const fn repetitions(&self) -> u32 {
        if self.is_distrusted || self.probed_rate.is_none() {
            REPETITIONS
        } else {
            1
        }
    }

    /// Size of the probe that is due at `now`; `None` where none is.
    pub fn probe_due(&self, now: Duration) -> Option<u64> {
        let pause =
            Duration::from_secs_f64(self.probe_seconds / PROBE_SHARE).clamp(FRESH, LONGEST_PAUSE);
        let seen = self.seen_bandwidth_at.max(self.probed_at);
        if !self.is_distrusted && seen.is_some_and(|at| now < at + pause) {
            return None;
        }
        if self.is_distrusted {
            // It may be much slower than it was; probes grow where it is not.
            return Some(SMALLEST_PROBE);
        }
        Some(fitting(self.bytes_per_second.unwrap_or(0.0)))
    }

    /// Size of the probe that should follow one of `bytes`, which told `rate`;
    /// `None` where that one was large enough.
    pub fn larger_probe(bytes: u64, rate: Option<f64>) -> Option<u64> {
        match rate {
            Some(rate) => Some(fitting(rate)).filter(|fitting| *fitting >= bytes * 2),
            None => (bytes < ENOUGH_BYTES).then(|| (bytes * 4).min(ENOUGH_BYTES)),
        }
    }

    /// Notes that a probe was sent and took the link `seconds`.
    pub fn probed(&mut self, seconds: f64, now: Duration) {
        self.probed_at = Some(now);
        self.probe_seconds = seconds;
        self.is_distrusted = false;
    }
}

/// Bytes of a probe that fits a link of `rate`.
pub fn fitting(rate: f64) -> u64 {
    ((rate * PROBE_SECONDS) as u64).clamp(SMALLEST_PROBE, LARGEST_PROBE)
}

/// Takes note that a probe of the link to `peer` told `rate`, and whether that is
/// news. Links of one host often share what makes them slow, so news of one makes
/// the others worth a probe.
pub fn probe_told(
    memory: &mut BTreeMap<String, LinkMemory>,
    peer: &str,
    rate: f64,
    now: Duration,
) -> bool {
    let link = memory.entry(peer.to_owned()).or_default();
    link.note(rate, now);
    let before = link.probed_rate.replace(rate);
    let is_news = before.is_some_and(|old| rate >= old * CHANGE || rate <= old / CHANGE);
    if is_news {
        for (_, other) in memory.iter_mut().filter(|(name, _)| *name != peer) {
            other.is_distrusted |= other.may_distrust(now);
        }
    }
    is_news
}

/// One sample for each peer out of the transfers of a window. Requests that share
/// the link only make each other slower, so the fastest transfer counts; one that
/// is slower than the link was probed to be does not.
pub fn passive_samples(
    transfers: &[Transfer],
    memory: &mut BTreeMap<String, LinkMemory>,
    now: Duration,
) -> Vec<LinkSample> {
    let mut best: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
    for transfer in transfers {
        let link = memory.entry(transfer.peer.clone()).or_default();
        let bytes = transfer.bytes_out + transfer.bytes_in;
        let Some(rate) = link.bandwidth(bytes, transfer.seconds) else {
            continue;
        };
        let held = best.entry(&transfer.peer).or_insert((rate, bytes));
        if rate > held.0 {
            *held = (rate, bytes);
        }
    }
    let mut samples = Vec::new();
    for (peer, (rate, bytes)) in best {
        let link = memory.entry(peer.to_owned()).or_default();
        if link.believes(rate, now) {
            link.note(rate, now);
            samples.push(LinkSample {
                peer: peer.to_owned(),
                bytes_per_second: rate,
                bytes,
                passive: true,
                ..LinkSample::default()
            });
        }
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
        let rate = link.bandwidth(SMALLEST_PROBE, 0.0262).unwrap();
        link.note(rate, at(0));
        link.probed(0.0262, at(0));
        assert_eq!(link.probe_due(at(9)), None);
        let due = link.probe_due(at(11)).unwrap();
        assert!((43_000..45_000).contains(&due), "{due}");
    }

    #[test]
    fn probes_grow_until_they_tell() {
        let link = LinkMemory::default();
        // 50 Mbit/s: the smallest probe told little.
        let rate = link.bandwidth(SMALLEST_PROBE, 0.0055);
        assert_eq!(
            LinkMemory::larger_probe(SMALLEST_PROBE, rate),
            Some(LARGEST_PROBE)
        );
        let rate = link.bandwidth(LARGEST_PROBE, 0.021);
        assert_eq!(LinkMemory::larger_probe(LARGEST_PROBE, rate), None);
        // A link within one machine.
        assert_eq!(link.bandwidth(SMALLEST_PROBE, 0.0001), None);
        assert_eq!(
            LinkMemory::larger_probe(SMALLEST_PROBE, None),
            Some(4 * SMALLEST_PROBE)
        );
        assert_eq!(LinkMemory::larger_probe(ENOUGH_BYTES, None), None);
        let floor = link.bandwidth(ENOUGH_BYTES, 0.0004).unwrap();
        assert!((floor - ENOUGH_BYTES as f64 / LEAST_SECONDS).abs() < 1.0);
    }

    fn probed(peers: &[&str], rate: f64) -> BTreeMap<String, LinkMemory> {
        let mut memory = BTreeMap::new();
        for peer in peers {
            probe_told(&mut memory, peer, rate, at(0));
            memory.get_mut(*peer).unwrap().probed(0.01, at(0));
        }
        memory
    }

    fn due(memory: &BTreeMap<String, LinkMemory>, now: Duration) -> Vec<&str> {
        let all = memory.iter();
        all.filter(|(_, m)| m.probe_due(now).is_some())
            .map(|(peer, _)| peer.as_str())
            .collect()
    }

    #[test]
    fn news_of_one_link_makes_the_others_worth_a_probe() {
        let mut memory = probed(&["cloud-1", "edge-1", "edge-2"], 1e6);
        assert!(!probe_told(&mut memory, "edge-1", 1.2e6, at(6)));
        assert_eq!(due(&memory, at(6)), [""; 0]);
        assert!(probe_told(&mut memory, "edge-1", 1e5, at(7)));
        assert_eq!(due(&memory, at(7)), ["cloud-1", "edge-2"]);
        assert_eq!(memory["edge-2"].repetitions(), REPETITIONS);
        for peer in ["cloud-1", "edge-2"] {
            memory.get_mut(peer).unwrap().probed(0.01, at(8));
        }
        // What was probed just now is trusted.
        probe_told(&mut memory, "edge-1", 1e6, at(9));
        assert_eq!(due(&memory, at(9)), [""; 0]);
    }

    #[test]
    fn requests_slower_than_the_probe_are_not_believed_but_ask_for_another() {
        let mut memory = probed(&["edge-1"], 1e6);
        let mut samples = |seconds, now| {
            let found = passive_samples(&[transfer(100_000, seconds)], &mut memory, now);
            (found.len(), due(&memory, now).len())
        };
        assert_eq!(samples(0.1, at(6)), (1, 0));
        assert_eq!(samples(0.2, at(7)), (0, 0));
        assert_eq!(samples(1.0, at(8)), (0, 1));
        // Faster than the probe is a better measurement.
        assert_eq!(samples(0.05, at(9)).0, 1);
    }

    #[test]
    fn real_traffic_makes_probes_unnecessary() {
        let mut link = LinkMemory::default();
        link.note(1e6, at(5));
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
