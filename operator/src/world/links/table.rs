//! The table for listeners: hosts by ordinal and a row of links for each, all behind pointers. A
//! clone copies two of them; later changes copy one row at a time.

use super::bandwidth::evidence_at;
use super::median;
use crate::world::coordinates::Coordinate;
use crate::world::types::LinkEstimate;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Place of a host in the table.
pub(super) type Ordinal = u32;

/// Quantile of a host's measured rates that shows what the host itself can do: slower ones are
/// limited by the other end, and the fastest might be a lie.
const TYPICAL: f64 = 0.75;
/// Confidence of an estimate for a pair that was never measured.
const ESTIMATED_CONFIDENCE: f64 = 0.1;
/// Its noise: it may be off by this factor less one.
const ESTIMATED_NOISE: f64 = 1.0;

/// Every link at one moment. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct LinkTable {
    at: Duration,
    hosts: Arc<Hosts>,
    rows: Arc<Vec<Arc<Row>>>,
}

/// Names of hosts by ordinal, and back.
#[derive(Debug, Clone, Default)]
struct Hosts {
    names: Vec<Option<Arc<str>>>,
    ordinals: BTreeMap<Arc<str>, Ordinal>,
}

/// The links of one host. A pair is in both hosts' rows, or in neither.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    /// Links to others, ordered by ordinal.
    cells: Vec<(Ordinal, Cell)>,
    /// Typical rates to and from this host, in bytes per second: computed on first use after a
    /// change, since samples are many and queries few.
    sends: OnceLock<Option<f64>>,
    gets: OnceLock<Option<f64>>,
    coordinate: Option<Coordinate>,
}

/// One direction of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Cell {
    /// Round trip of the pair, in seconds.
    pub(super) rtt_seconds: Option<f64>,
    pub(super) rate: Option<Rate>,
    /// The receiving host left several probes in a row unanswered.
    pub(super) is_dead: bool,
    /// Time of the pair's newest sample.
    pub(super) seen: Duration,
}

/// A bandwidth and the time of its measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    pub(super) bytes_per_second: f64,
    pub(super) noise: f64,
    pub(super) evidence: f64,
    pub(super) at: Duration,
}

impl LinkTable {
    /// The link from host `from` to host `to`; `None` if nothing was measured.
    pub fn get(&self, from: &str, to: &str) -> Option<LinkEstimate> {
        let (from, to) = (self.hosts.ordinal(from)?, self.hosts.ordinal(to)?);
        self.row(from)?.cell(to)?.estimate(self.at)
    }

    /// The link from `from` to `to` as measured, or else estimated from coordinates and the hosts'
    /// other links; `None` if there is no basis for an estimate. `estimated` is set unless
    /// everything was measured.
    pub fn estimated(&self, from: &str, to: &str) -> Option<LinkEstimate> {
        let known = self.get(from, to);
        let (from, to) = (self.hosts.ordinal(from)?, self.hosts.ordinal(to)?);
        let rtt = || {
            let (from, to) = (self.row(from)?.coordinate?, self.row(to)?.coordinate?);
            Some(from.distance(&to))
        };
        // If nobody has measured a host's inbound rate, it is assumed equal to its outbound one.
        let rate = || {
            let sends = self.sends(from).or_else(|| self.gets(from))?;
            Some(sends.min(self.gets(to).or_else(|| self.sends(to))?))
        };
        let mut link = known.unwrap_or(LinkEstimate {
            rtt_seconds: None,
            bytes_per_second: None,
            confidence: ESTIMATED_CONFIDENCE,
            noise: ESTIMATED_NOISE,
            bandwidth_age: None,
            reachable: true,
            estimated: true,
        });
        if link.rtt_seconds.is_none() {
            link.rtt_seconds = rtt();
            link.estimated = true;
        }
        if link.bytes_per_second.is_none() {
            link.bytes_per_second = rate();
            link.confidence = ESTIMATED_CONFIDENCE;
            link.noise = ESTIMATED_NOISE;
            link.estimated = true;
        }
        let says_something = link.rtt_seconds.is_some() || link.bytes_per_second.is_some();
        (says_something || known.is_some()).then_some(link)
    }

    /// The measured links from `node`, as `(to, estimate)`, in no order.
    pub fn outbound(&self, node: &str) -> impl Iterator<Item = (&str, LinkEstimate)> {
        let peers = self.peers(node);
        peers.filter_map(|(_, _, name, cell)| Some((name, cell.estimate(self.at)?)))
    }

    /// The measured links to `node`, as `(from, estimate)`, in no order.
    pub fn inbound(&self, node: &str) -> impl Iterator<Item = (&str, LinkEstimate)> {
        self.peers(node).filter_map(|(own, other, name, _)| {
            let estimate = self.row(other)?.cell(own)?.estimate(self.at)?;
            Some((name, estimate))
        })
    }

    /// Every measured link as `(from, to, estimate)`, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, LinkEstimate)> {
        let rows = self.rows.iter().zip(&self.hosts.names);
        rows.flat_map(move |(row, from)| {
            row.cells.iter().filter_map(move |(to, cell)| {
                let (from, to) = (from.as_deref()?, self.hosts.name(*to)?);
                Some((from, to, cell.estimate(self.at)?))
            })
        })
    }

    /// Number of measured links, counting each direction.
    pub fn len(&self) -> usize {
        let cells = self.rows.iter().flat_map(|row| &row.cells);
        cells.filter(|(_, cell)| cell.is_known()).count()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Median relative error of the round trips that coordinates predict, over the measured pairs;
    /// `None` if there are none.
    pub fn coordinates_error(&self) -> Option<f64> {
        let mut errors = Vec::new();
        for row in self.rows.iter() {
            for (other, cell) in &row.cells {
                let other = self.row(*other).and_then(|row| row.coordinate);
                if let (Some(a), Some(b), Some(rtt)) = (row.coordinate, other, cell.rtt_seconds) {
                    errors.push((a.distance(&b) - rtt).abs() / rtt);
                }
            }
        }
        median(errors)
    }

    /// The position of a host in the network, once known.
    pub(in crate::world) fn coordinate(&self, host: &str) -> Option<Coordinate> {
        self.row(self.hosts.ordinal(host)?)?.coordinate
    }

    /// The table as of `now`.
    pub(super) fn at(&self, now: Duration) -> Self {
        Self {
            at: now,
            ..self.clone()
        }
    }

    /// Whether both hold the very same row of `host`.
    #[cfg(test)]
    pub(super) fn shares_row(&self, other: &Self, host: &str) -> bool {
        let row = |table: &Self| {
            let ordinal = table.hosts.ordinal(host)?;
            table.rows.get(ordinal as usize).cloned()
        };
        row(self)
            .zip(row(other))
            .is_some_and(|(a, b)| Arc::ptr_eq(&a, &b))
    }

    /// Every host in the table.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &Arc<str>> {
        self.hosts.ordinals.keys()
    }

    pub(super) fn ordinal(&self, host: &str) -> Option<Ordinal> {
        self.hosts.ordinal(host)
    }

    pub(super) fn name(&self, host: Ordinal) -> Option<&str> {
        self.hosts.name(host)
    }

    pub(super) fn cell(&self, from: Ordinal, to: Ordinal) -> Option<Cell> {
        self.row(from)?.cell(to).copied()
    }

    /// Hosts that share a pair with `host`.
    pub(super) fn neighbours(&self, host: Ordinal) -> Vec<Ordinal> {
        let cells = self.row(host).map(|row| row.cells.as_slice());
        let cells = cells.unwrap_or_default();
        cells.iter().map(|(other, _)| *other).collect()
    }

    /// The neighbour not measured for longest, if `host` has `limit` or more.
    pub(super) fn oldest_over(&self, host: Ordinal, limit: usize) -> Option<Ordinal> {
        let cells = &self.row(host)?.cells;
        let oldest = cells.iter().min_by_key(|(_, cell)| cell.seen);
        oldest
            .filter(|_| cells.len() >= limit)
            .map(|(other, _)| *other)
    }

    /// The ordinal of `host`, created if needed.
    pub(super) fn intern(&mut self, host: &str) -> Ordinal {
        if let Some(ordinal) = self.hosts.ordinal(host) {
            return ordinal;
        }
        let hosts = Arc::make_mut(&mut self.hosts);
        let name: Arc<str> = host.into();
        let free = hosts.names.iter().position(Option::is_none);
        let place = free.unwrap_or(hosts.names.len());
        if free.is_none() {
            hosts.names.push(None);
            Arc::make_mut(&mut self.rows).push(Arc::default());
        }
        hosts.names[place] = Some(Arc::clone(&name));
        let ordinal = Ordinal::try_from(place).unwrap_or(Ordinal::MAX);
        hosts.ordinals.insert(name, ordinal);
        ordinal
    }

    /// Removes a host without pairs; its ordinal is reused.
    pub(super) fn remove_host(&mut self, host: Ordinal) {
        let hosts = Arc::make_mut(&mut self.hosts);
        if let Some(name) = hosts.names.get_mut(host as usize).and_then(Option::take) {
            hosts.ordinals.remove(&name);
        }
        self.change(host, |row| *row = Row::default());
    }

    /// Sets both directions of a pair.
    pub(super) fn set(&mut self, (a, b): (Ordinal, Ordinal), there: Cell, back: Cell) {
        let rate = |from, to| self.cell(from, to).and_then(|cell| cell.rate);
        let is_other_rate = rate(a, b) != there.rate || rate(b, a) != back.rate;
        for (from, to, cell) in [(a, b, there), (b, a, back)] {
            self.change(from, |row| {
                row.set(to, cell);
                if is_other_rate {
                    row.rates_changed();
                }
            });
        }
    }

    /// Drops both directions of a pair.
    pub(super) fn remove(&mut self, (a, b): (Ordinal, Ordinal)) {
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, |row| {
                row.cells.retain(|(other, _)| *other != to);
                row.rates_changed();
            });
        }
    }

    pub(super) fn set_coordinate(&mut self, host: Ordinal, coordinate: Coordinate) {
        self.change(host, |row| row.coordinate = Some(coordinate));
    }

    /// Typical outbound rate of `host`.
    fn sends(&self, host: Ordinal) -> Option<f64> {
        let row = self.row(host)?;
        *row.sends.get_or_init(|| {
            let rates = row.cells.iter().filter_map(|(_, cell)| cell.rate);
            upper(rates.map(|r| r.bytes_per_second).collect())
        })
    }

    /// Typical inbound rate of `host`.
    fn gets(&self, host: Ordinal) -> Option<f64> {
        let row = self.row(host)?;
        *row.gets.get_or_init(|| {
            let others = row.cells.iter().filter_map(|(other, _)| self.row(*other));
            let rates = others.filter_map(|other| other.cell(host)?.rate);
            upper(rates.map(|r| r.bytes_per_second).collect())
        })
    }

    fn change(&mut self, host: Ordinal, change: impl FnOnce(&mut Row)) {
        if let Some(row) = Arc::make_mut(&mut self.rows).get_mut(host as usize) {
            change(Arc::make_mut(row));
        }
    }

    fn row(&self, host: Ordinal) -> Option<&Row> {
        self.rows.get(host as usize).map(AsRef::as_ref)
    }

    /// The cells of `node`'s row with its ordinal, the other's and the other's name.
    fn peers(&self, node: &str) -> impl Iterator<Item = (Ordinal, Ordinal, &str, &Cell)> {
        let own = self.hosts.ordinal(node);
        let row = own.and_then(|own| Some((own, self.row(own)?)));
        row.into_iter().flat_map(move |(own, row)| {
            let cells = row.cells.iter();
            cells.filter_map(move |(to, cell)| Some((own, *to, self.hosts.name(*to)?, cell)))
        })
    }
}

impl Hosts {
    fn ordinal(&self, name: &str) -> Option<Ordinal> {
        self.ordinals.get(name).copied()
    }

    fn name(&self, ordinal: Ordinal) -> Option<&str> {
        self.names.get(ordinal as usize)?.as_deref()
    }
}

impl Row {
    fn cell(&self, to: Ordinal) -> Option<&Cell> {
        let at = self.cells.binary_search_by_key(&to, |(other, _)| *other);
        at.ok().map(|at| &self.cells[at].1)
    }

    /// Rates from or to this host have changed.
    fn rates_changed(&mut self) {
        (self.sends, self.gets) = (OnceLock::new(), OnceLock::new());
    }

    fn set(&mut self, to: Ordinal, cell: Cell) {
        match self.cells.binary_search_by_key(&to, |(other, _)| *other) {
            Ok(at) => self.cells[at].1 = cell,
            Err(at) => self.cells.insert(at, (to, cell)),
        }
    }
}

impl Cell {
    const fn is_known(&self) -> bool {
        self.rtt_seconds.is_some() || self.rate.is_some() || self.is_dead
    }

    /// The estimate at `now`; `None` if nothing is known.
    pub(super) fn estimate(&self, now: Duration) -> Option<LinkEstimate> {
        let confidence = |r: Rate| 1.0 - (-evidence_at(r.evidence, r.at, now)).exp();
        self.is_known().then(|| LinkEstimate {
            rtt_seconds: self.rtt_seconds,
            bytes_per_second: self.rate.map(|r| r.bytes_per_second),
            confidence: self.rate.map_or(0.0, confidence),
            noise: self.rate.map_or(0.0, |r| r.noise),
            bandwidth_age: self.rate.map(|r| now.saturating_sub(r.at)),
            reachable: !self.is_dead,
            estimated: false,
        })
    }
}

/// The rate that a host can reach, from the measured ones.
fn upper(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_by(f64::total_cmp);
    let last = rates.len().checked_sub(1)?;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let at = (last as f64 * TYPICAL) as usize; // an index of the list
    rates.get(at).copied()
}
