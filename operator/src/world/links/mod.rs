//! Estimates of each directed link from noisy samples ([`bandwidth`], [`round_trip`]), kept in a
//! table that listeners share ([`table`]). A sample changes two cells; nothing is ever rebuilt.

mod bandwidth;
mod round_trip;
mod table;

pub use table::LinkTable;

use super::coordinates::Tracked;
use super::types::{LinkEstimate, WorldEvent};
use bandwidth::{Bandwidth, RateSample};
use round_trip::RoundTrip;
use std::collections::BTreeMap;
use std::time::Duration;
use table::{Cell, Ordinal};

/// Plausible round trips: others are an error or a lie.
const RTT_BOUNDS_SECONDS: (f64, f64) = (1e-6, 60.0);
const RATE_BOUNDS: (f64, f64) = (1.0, 1e12);
const LARGEST_TRANSFER_BYTES: u64 = 1 << 40;
/// A bandwidth is published again after it changed by more than this (a factor of 1.5) and by more
/// than three times its noise.
const TELL: f64 = 0.405;
/// A round trip is published again after it changed by a factor of 1.5 and by this.
const TELL_RTT_SECONDS: f64 = 0.002;
/// A peer is unreachable after this many failures in a row, or after fewer (but at least two) that
/// are this far apart.
const FAILURES: u32 = 3;
const FAILED_FOR: Duration = Duration::from_secs(2);
/// Most links kept of one host; a new one replaces the one not measured for longest. Probing uses
/// far fewer.
const MOST_LINKS_OF_HOST: usize = 512;

/// A host's report about its link to another one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Sample {
    /// The other one sent and the reporting host received.
    pub(super) inbound: bool,
    /// Round trip in seconds.
    pub(super) rtt_seconds: Option<f64>,
    /// Bytes per second.
    pub(super) bytes_per_second: Option<f64>,
    /// Size of the measured transfer.
    pub(super) bytes: u64,
    /// The peer did not answer.
    pub(super) failed: bool,
    /// The host was busy with other transfers, or was denied processor time.
    pub(super) contended: bool,
}

/// Estimates of all measured links.
#[derive(Debug, Default)]
pub(super) struct Links {
    table: LinkTable,
    directions: BTreeMap<(Ordinal, Ordinal), Direction>,
    round_trips: BTreeMap<(Ordinal, Ordinal), RoundTrip>,
    coordinates: BTreeMap<Ordinal, Tracked>,
}

#[derive(Debug, Default)]
struct Direction {
    bandwidth: Option<Bandwidth>,
    failures: Failures,
    told: Option<LinkEstimate>,
}

/// Unanswered probes in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Failures {
    count: u32,
    first: Duration,
    is_dead: bool,
}

impl Links {
    /// Adds a report of `host` on its link to `peer`.
    pub(super) fn add(
        &mut self,
        host: &str,
        peer: &str,
        sample: Sample,
        now: Duration,
    ) -> Vec<WorldEvent> {
        let rtt = within(sample.rtt_seconds, RTT_BOUNDS_SECONDS);
        let rate = within(sample.bytes_per_second, RATE_BOUNDS);
        if rtt.is_none() && rate.is_none() && !sample.failed {
            return Vec::new();
        }
        let (own, other) = (self.table.intern(host), self.table.intern(peer));
        if own == other {
            return Vec::new();
        }
        self.make_room(own, other);
        let (from, to) = if sample.inbound {
            (other, own)
        } else {
            (own, other)
        };
        let direction = self.directions.entry((from, to)).or_default();
        direction.failures.add(sample.failed, now);
        if let Some(bytes_per_second) = rate {
            direction.rate(
                RateSample {
                    bytes_per_second,
                    bytes: sample.bytes.min(LARGEST_TRANSFER_BYTES),
                    contended: sample.contended,
                },
                now,
            );
        }
        if let Some(rtt) = rtt {
            self.round_trip(own, other, rtt, sample.contended);
        }
        self.publish((from, to), now);
        let affected = [Some((from, to)), rtt.map(|_| (to, from))];
        let affected = affected.into_iter().flatten();
        affected.filter_map(|pair| self.tell(pair, now)).collect()
    }

    /// The table at `now`.
    pub(super) fn table(&self, now: Duration) -> LinkTable {
        self.table.at(now)
    }

    /// Every host that has links.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.table.hosts().map(AsRef::as_ref)
    }

    /// Drops all links of `host`.
    pub(super) fn forget(&mut self, host: &str) {
        let Some(ordinal) = self.table.ordinal(host) else {
            return;
        };
        for other in self.table.neighbours(ordinal) {
            self.drop_pair(ordinal, other);
        }
        self.coordinates.remove(&ordinal);
        self.table.remove_host(ordinal);
    }

    /// Bounds the links of either end.
    fn make_room(&mut self, own: Ordinal, other: Ordinal) {
        if self.table.cell(own, other).is_some() {
            return;
        }
        for host in [own, other] {
            if let Some(oldest) = self.table.oldest_over(host, MOST_LINKS_OF_HOST) {
                self.drop_pair(host, oldest);
            }
        }
    }

    fn drop_pair(&mut self, a: Ordinal, b: Ordinal) {
        self.directions.remove(&(a, b));
        self.directions.remove(&(b, a));
        self.round_trips.remove(&unordered(a, b));
        self.table.remove((a, b));
    }

    /// A round trip belongs to the pair; the host that measured it moves.
    fn round_trip(&mut self, own: Ordinal, other: Ordinal, rtt: f64, contended: bool) {
        let pair = self.round_trips.entry(unordered(own, other)).or_default();
        if !pair.add(rtt, contended) || contended {
            return;
        }
        let (Some(rtt), Some(mut host), Some(mut peer)) =
            (pair.median(), self.tracked(own), self.tracked(other))
        else {
            return;
        };
        let told = host.measured(&mut peer, rtt);
        self.coordinates.insert(own, host);
        self.coordinates.insert(other, peer);
        if let Some(coordinate) = told {
            self.table.set_coordinate(own, coordinate);
        }
    }

    fn tracked(&self, host: Ordinal) -> Option<Tracked> {
        let known = self.coordinates.get(&host).copied();
        known.or_else(|| self.table.name(host).map(Tracked::new))
    }

    /// Puts both directions of a pair into the table.
    fn publish(&mut self, (from, to): (Ordinal, Ordinal), now: Duration) {
        let round_trip = self.round_trips.get(&unordered(from, to));
        let rtt_seconds = round_trip.and_then(RoundTrip::median);
        let cell = |pair| {
            let direction: Option<&Direction> = self.directions.get(&pair);
            Cell {
                rtt_seconds,
                rate: direction.and_then(|d| d.bandwidth.as_ref().map(Bandwidth::rate)),
                is_dead: direction.is_some_and(|d| d.failures.is_dead),
                seen: now,
            }
        };
        let (there, back) = (cell((from, to)), cell((to, from)));
        self.table.set((from, to), there, back);
    }

    /// The event, if the estimate moved away from the published one.
    fn tell(&mut self, pair: (Ordinal, Ordinal), now: Duration) -> Option<WorldEvent> {
        let after = self.table.cell(pair.0, pair.1)?.estimate(now)?;
        let direction = self.directions.entry(pair).or_default();
        let before = direction.told;
        if before.is_some_and(|before| !differs(&before, &after)) {
            return None;
        }
        direction.told = Some(after);
        let from = self.table.name(pair.0)?.to_owned();
        let to = self.table.name(pair.1)?.to_owned();
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

impl Direction {
    fn rate(&mut self, sample: RateSample, now: Duration) {
        match &mut self.bandwidth {
            Some(known) => known.add(sample, now),
            none => *none = Some(Bandwidth::first(sample, now)),
        }
    }
}

impl Failures {
    fn add(&mut self, failed: bool, now: Duration) {
        if !failed {
            *self = Self::default();
            return;
        }
        if self.count == 0 {
            self.first = now;
        }
        self.count = self.count.saturating_add(1);
        let for_long = self.count > 1 && now.saturating_sub(self.first) >= FAILED_FOR;
        self.is_dead = self.count >= FAILURES || for_long;
    }
}

/// Whether `after` differs from the published value by more than noise.
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

fn within(value: Option<f64>, (least, most): (f64, f64)) -> Option<f64> {
    value.filter(|v| (least..=most).contains(v))
}

fn unordered(a: Ordinal, b: Ordinal) -> (Ordinal, Ordinal) {
    (a.min(b), a.max(b))
}

/// The median (the lower one of an even number); `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests;
