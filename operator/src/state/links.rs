//! Links as decisions see them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Sender and receiver.
pub(crate) type Pair = (String, String);

/// One direction between two hosts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LinkView {
    /// Round trip of an empty message in seconds, where known.
    pub rtt_seconds: Option<f64>,
    /// Bytes per second, where known.
    pub bytes_per_second: Option<f64>,
    /// Relative noise of the bandwidth samples: 0.2 is ±20 %.
    pub noise: f64,
    /// Seconds since the bandwidth was last measured; infinite before.
    pub bandwidth_age_seconds: f64,
    /// The receiver answers; the figures are of before where it does not.
    pub reachable: bool,
    /// Nobody measured it: the figures come from network coordinates.
    pub estimated: bool,
}

impl LinkView {
    /// Round trip and bytes per second, where the link works and both are known.
    pub(crate) fn figures(&self) -> Option<(f64, f64)> {
        if !self.reachable {
            return None;
        }
        let (rtt, rate) = (self.rtt_seconds?, self.bytes_per_second?);
        (rtt >= 0.0 && rate > 0.0).then_some((rtt, rate))
    }
}

/// The links at one moment. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Links {
    measured: Arc<BTreeMap<Pair, LinkView>>,
}

impl Links {
    /// The measured link from `from` to `to`.
    pub(crate) fn get(&self, from: &str, to: &str) -> Option<LinkView> {
        self.measured
            .get(&(from.to_owned(), to.to_owned()))
            .copied()
    }

    /// The measured link, else what coordinates say of it.
    pub(crate) fn or_estimated(&self, from: &str, to: &str) -> Option<LinkView> {
        self.get(from, to)
    }

    /// Every measured link.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, LinkView)> {
        let all = self.measured.iter();
        all.map(|((from, to), view)| (from.as_str(), to.as_str(), *view))
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.measured.is_empty()
    }
}

impl FromIterator<(Pair, LinkView)> for Links {
    fn from_iter<T: IntoIterator<Item = (Pair, LinkView)>>(all: T) -> Self {
        Self {
            measured: Arc::new(all.into_iter().collect()),
        }
    }
}

#[cfg(test)]
impl Links {
    /// Changes links in place.
    pub(crate) fn each(&mut self, mut change: impl FnMut(&Pair, &mut LinkView)) {
        for (pair, view) in Arc::make_mut(&mut self.measured) {
            change(pair, view);
        }
    }
}
