//! Links, as decisions use them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Plausible round trips and bandwidths, in seconds and bytes per second: other values are ignored.
const RTT_SECONDS: RangeInclusive<f64> = 0.0..=3600.0;
const RATE: RangeInclusive<f64> = 1e-3..=1e15;

/// Sender and receiver.
pub(crate) type Pair = (String, String);

/// One direction between two hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkView {
    /// Round trip of an empty message in seconds, if known.
    pub rtt_seconds: Option<f64>,
    /// Bytes per second, if known.
    pub bytes_per_second: Option<f64>,
    /// Relative noise of the bandwidth samples: 0.2 is ±20 %.
    pub noise: f64,
    /// Seconds since the bandwidth was last measured; infinite if never.
    pub bandwidth_age_seconds: f64,
    /// The receiver answers; if not, the figures are old.
    pub reachable: bool,
    /// Not measured, or only in part: the rest is estimated from network coordinates and the hosts'
    /// other links.
    pub estimated: bool,
}

impl LinkView {
    /// Whether both figures were measured.
    pub(crate) const fn is_measured(&self) -> bool {
        !self.estimated && self.rtt_seconds.is_some() && self.bytes_per_second.is_some()
    }

    /// Round trip and bytes per second, if the link works and both are known.
    pub(crate) fn figures(&self) -> Option<(f64, f64)> {
        if !self.reachable {
            return None;
        }
        let (rtt, rate) = (self.rtt_seconds?, self.bytes_per_second?);
        let is_possible = RTT_SECONDS.contains(&rtt) && RATE.contains(&rate);
        is_possible.then_some((rtt, rate))
    }
}

/// A link whose estimate moved by more than its noise.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LinkChange {
    /// Sender and receiver.
    pub pair: Pair,
    /// As it was told before.
    pub before: LinkView,
    /// As it is now.
    pub after: LinkView,
}

/// A lookup of links.
pub(crate) trait Source: std::fmt::Debug + Send + Sync {
    /// The measured link from `from` to `to`.
    fn get(&self, from: &str, to: &str) -> Option<LinkView>;

    /// The same, with estimates for what was not measured.
    fn or_estimated(&self, from: &str, to: &str) -> Option<LinkView>;

    /// Every measured link.
    fn each(&self, see: &mut dyn FnMut(&str, &str, LinkView));
}

/// The links at one moment. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Links(Arc<dyn Source>);

impl Links {
    /// Links of `source`.
    pub(crate) fn new(source: impl Source + 'static) -> Self {
        Self(Arc::new(source))
    }

    /// The measured link from `from` to `to`.
    pub(crate) fn get(&self, from: &str, to: &str) -> Option<LinkView> {
        self.0.get(from, to)
    }

    /// The link as measured; the rest is estimated from coordinates and the hosts' other links.
    pub(crate) fn or_estimated(&self, from: &str, to: &str) -> Option<LinkView> {
        self.0.or_estimated(from, to)
    }

    /// Calls `see` for every measured link.
    pub(crate) fn each(&self, mut see: impl FnMut(&str, &str, LinkView)) {
        self.0.each(&mut see);
    }
}

/// Links by the names of sender and receiver.
#[derive(Debug, Clone, Default)]
struct Few(BTreeMap<Pair, LinkView>);

impl Source for Few {
    fn get(&self, from: &str, to: &str) -> Option<LinkView> {
        self.0.get(&(from.to_owned(), to.to_owned())).copied()
    }

    fn or_estimated(&self, from: &str, to: &str) -> Option<LinkView> {
        self.get(from, to)
    }

    fn each(&self, see: &mut dyn FnMut(&str, &str, LinkView)) {
        for ((from, to), view) in &self.0 {
            see(from, to, *view);
        }
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::new(Few::default())
    }
}

impl FromIterator<(Pair, LinkView)> for Links {
    fn from_iter<T: IntoIterator<Item = (Pair, LinkView)>>(all: T) -> Self {
        Self::new(Few(all.into_iter().collect()))
    }
}
