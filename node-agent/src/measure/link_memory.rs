//! Observations of the link to one peer, and the reports made from them. Pure: the current
//! time is passed in.

use super::budget::Budget;
use crate::telemetry::Transfer;
use lamina_proto::control::LinkSample;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A transfer below this says nothing about bandwidth.
const LEAST_BYTES: u64 = 8 * 1024;
/// For a transfer of this size, a time too short to measure still gives a lower bound of the link's
/// rate.
const ENOUGH_BYTES: u64 = 1024 * 1024;
/// A time below this is scheduling, not transfer.
const LEAST_SECONDS: f64 = 1.5e-3;
/// Round trips remembered; the smallest counts, since waiting only adds.
const ROUND_TRIPS: usize = 5;
/// A passive sample younger than this makes a probe unnecessary.
const FRESH: Duration = Duration::from_secs(10);
/// Sizes of probes.
const SMALLEST_PROBE: u64 = 16 * 1024;
const LARGEST_PROBE: u64 = 128 * 1024;
/// Target duration of a probe: many times the scheduling overhead.
const PROBE_SECONDS: f64 = 0.03;
/// A rate that differs from the last by this factor is news, not noise.
const CHANGE: f64 = 1.6;
/// Requests that are slower than the probed rate by less than this factor say little: a host short
/// of processor time sends late too.
const SLOWER: f64 = 1.25;
/// Requests that are slower than the probed rate by this factor trigger a probe.
const MUCH_SLOWER: f64 = 3.0;
/// Least time between such triggers.
const DISTRUST_PAUSE: Duration = Duration::from_secs(5);
/// Repetitions of a probe whose result matters. The fastest counts.
const REPETITIONS: u32 = 3;
/// A measurement with more lost time than this factor is only a bound.
const LOST: f64 = 1.25;

/// The link to one peer.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkMemory {
    round_trips: VecDeque<f64>,
    bytes_per_second: Option<f64>,
    seen_bandwidth_at: Option<Duration>,
    probed_at: Option<Duration>,
    budget: Budget,
    /// The rate of the last probe.
    probed_rate: Option<f64>,
    /// This link may have changed and needs a probe.
    is_distrusted: bool,
}

impl LinkMemory {
    /// Smallest recent round trip in seconds.
    pub(super) fn rtt(&self) -> Option<f64> {
        self.round_trips.iter().copied().reduce(f64::min)
    }

    /// Adds an empty round trip; returns the value to report. If it may include lost time, it
    /// counts only if it is shorter than the known one.
    pub(super) fn round_trip(&mut self, seen: Seen) -> Told {
        let known = self.rtt();
        let least = seen.seconds - seen.lost_seconds;
        let (seconds, contended) = match known {
            _ if !seen.is_doubtful() => (seen.seconds, false),
            Some(known) if !seen.is_shared && least > known => (least, false),
            Some(known) => (seen.seconds, seen.seconds > known),
            None => (seen.seconds, true),
        };
        if !contended || known.is_none() {
            self.note_round_trip(seconds);
        }
        Told {
            value: self.rtt().unwrap_or(seconds),
            contended,
        }
    }

    fn note_round_trip(&mut self, seconds: f64) {
        if self.round_trips.len() == ROUND_TRIPS {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(seconds);
    }

    /// Bandwidth of a transfer of `bytes` that took `seconds` beyond the round trip; `None` if it
    /// says nothing.
    pub(super) fn bandwidth(&self, bytes: u64, seconds: f64) -> Option<f64> {
        let mut transfer = seconds - self.rtt().unwrap_or(0.0);
        if bytes >= ENOUGH_BYTES {
            transfer = transfer.max(LEAST_SECONDS);
        }
        if bytes < LEAST_BYTES || transfer < LEAST_SECONDS {
            return None;
        }
        Some(bytes as f64 / transfer)
    }

    /// The rate of a probe of `bytes`; `None` if it says nothing. If it may be too low it is only a
    /// bound, unless even its highest estimate is below the known rate.
    pub(super) fn rate(&self, bytes: u64, seen: Seen) -> Option<Told> {
        let low = self.bandwidth(bytes, seen.seconds)?;
        let value = |value, contended| Some(Told { value, contended });
        if !seen.is_doubtful() {
            return value(low, false);
        }
        let high = self.bandwidth(bytes, seen.seconds - seen.lost_seconds);
        let high = high.filter(|_| !seen.is_shared);
        match (high, self.probed_rate) {
            (Some(high), Some(known)) if high * LOST < known => value(high, false),
            _ => value(low, true),
        }
    }

    /// Whether requests that saw `rate` show the link's bandwidth. If they are much slower than the
    /// probed rate, a probe becomes due.
    fn believes(&mut self, rate: f64, now: Duration) -> bool {
        let slower = self.probed_rate.map_or(0.0, |probed| probed / rate);
        self.is_distrusted |= slower > MUCH_SLOWER && self.may_distrust(now);
        slower <= SLOWER
    }

    /// Whether it needs a probe at once.
    pub(super) const fn is_distrusted(&self) -> bool {
        self.is_distrusted
    }

    fn may_distrust(&self, now: Duration) -> bool {
        self.probed_at.is_none_or(|at| now >= at + DISTRUST_PAUSE)
    }

    fn note(&mut self, rate: f64, now: Duration) {
        self.bytes_per_second = Some(rate);
        self.seen_bandwidth_at = Some(now);
    }

    /// How often the due probe is repeated.
    pub(super) const fn repetitions(&self) -> u32 {
        if self.is_distrusted || self.probed_rate.is_none() {
            REPETITIONS
        } else {
            1
        }
    }

    /// Size of the probe due at `now`, if this link's `host` has the budget too; `None` if none is
    /// due. While `is_shared`, blobs are in flight: then only an unknown link is worth a probe.
    pub(super) fn probe_due(
        &self,
        host: &HostBudget,
        is_shared: bool,
        now: Duration,
    ) -> Option<u64> {
        let is_unknown = self.bytes_per_second.is_none();
        let pause = if self.is_distrusted {
            DISTRUST_PAUSE
        } else {
            FRESH
        };
        let since = if self.is_distrusted {
            self.probed_at
        } else {
            self.seen_bandwidth_at.max(self.probed_at)
        };
        if since.is_some_and(|at| now < at + pause) || (is_shared && !is_unknown) {
            return None;
        }
        let bytes = if self.is_distrusted {
            // It may have become much slower; otherwise probes grow again.
            SMALLEST_PROBE
        } else {
            fitting(self.bytes_per_second.unwrap_or(0.0))
        };
        let all = bytes * u64::from(self.repetitions() + 1);
        let seconds = self.bytes_per_second.map_or(0.0, |rate| all as f64 / rate);
        let is_urgent = self.is_distrusted || is_unknown;
        let fits = self.budget.allows(seconds, is_urgent, now)
            && host.budget.allows(host.seconds(all), is_urgent, now);
        fits.then_some(bytes)
    }

    /// Size of the probe to follow one of `bytes` with result `rate`; `None` if that one was large
    /// enough.
    pub(super) fn larger_probe(bytes: u64, rate: Option<f64>) -> Option<u64> {
        match rate {
            Some(rate) => Some(fitting(rate)).filter(|fitting| *fitting >= bytes * 2),
            None => (bytes < ENOUGH_BYTES).then(|| (bytes * 4).min(ENOUGH_BYTES)),
        }
    }

    /// Notes that a probe took the link `seconds`.
    pub(super) fn spend(&mut self, seconds: f64, now: Duration) {
        self.budget.spend(seconds.max(0.0), now);
    }

    /// Notes the end of a measurement, and whether it found the link's rate.
    pub(super) fn probed(&mut self, has_told: bool, now: Duration) {
        self.probed_at = Some(now);
        self.is_distrusted &= !has_told;
    }

    /// Time of the newest bandwidth sample.
    pub(super) fn seen_at(&self) -> Option<Duration> {
        self.seen_bandwidth_at
    }
}

/// One measured time, and how much of it may not be due to the link.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Seen {
    /// From sending to the answer.
    pub(super) seconds: f64,
    /// Upper bound of the time that this thread waited for a processor.
    pub(super) lost_seconds: f64,
    /// Other traffic was in flight to or from this host meanwhile.
    pub(super) is_shared: bool,
}

/// Result of a measurement: seconds, or bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Told {
    /// The value.
    pub(super) value: f64,
    /// The link may be better than this.
    pub(super) contended: bool,
}

impl Seen {
    fn is_doubtful(&self) -> bool {
        self.is_shared || self.seconds > LOST * (self.seconds - self.lost_seconds)
    }
}

/// Budget of the probes of all links on this host's own link. Its rate is assumed to be that of the
/// fastest link.
#[derive(Debug, Clone, Default)]
pub(super) struct HostBudget {
    budget: Budget,
    fastest: Option<f64>,
}

impl HostBudget {
    /// Updates the rates of this host's links.
    pub(super) fn rates(&mut self, links: &BTreeMap<String, LinkMemory>) {
        let rates = links.values().filter_map(|link| link.bytes_per_second);
        self.fastest = rates.reduce(f64::max);
    }

    /// Notes that probes sent `bytes`.
    pub(super) fn spend(&mut self, bytes: u64, now: Duration) {
        let seconds = self.seconds(bytes);
        self.budget.spend(seconds, now);
    }

    fn seconds(&self, bytes: u64) -> f64 {
        self.fastest.map_or(0.0, |rate| bytes as f64 / rate)
    }
}

/// Size of a probe that fits a link of `rate`.
pub(super) fn fitting(rate: f64) -> u64 {
    ((rate * PROBE_SECONDS) as u64).clamp(SMALLEST_PROBE, LARGEST_PROBE)
}

/// Notes that a probe of the link to `peer` found `rate`, and whether that is news. Links of one
/// host often share a bottleneck, so news about one triggers probes of the others.
pub(super) fn probe_told(
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

/// One sample for each peer from the transfers of a window. Requests that share the link only slow
/// each other down, so the fastest transfer counts, unless it is slower than the probed rate.
/// `contended` if blobs were in flight, or this process was denied processor time.
pub(super) fn passive_samples(
    transfers: &[Transfer],
    memory: &mut BTreeMap<String, LinkMemory>,
    contended: bool,
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
            if !contended {
                link.note(rate, now);
            }
            samples.push(LinkSample {
                peer: peer.to_owned(),
                bytes_per_second: rate,
                bytes,
                passive: true,
                contended,
                ..LinkSample::default()
            });
        }
    }
    samples
}

#[cfg(test)]
mod tests;
