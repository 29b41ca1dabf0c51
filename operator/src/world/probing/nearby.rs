//! Selects hosts: near ones by coordinate, others by a hash of their names.

use crate::world::coordinates::Coordinate;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Neighbours considered on each side of each axis. The nearest host is nearly always among them,
/// and considering all would be quadratic.
const WINDOW: usize = 8;
/// Hosts with the lowest heights, which are near to all others.
const LOW: usize = 8;
/// Hosts returned, nearest first.
const GIVEN: usize = 16;
const AXES: usize = 3;

/// Hosts on a circle, by a hash of their names. Adding or removing one changes few picks.
pub(super) struct Ring(Vec<(u64, usize)>);

impl Ring {
    pub(super) fn new<'a>(hosts: impl Iterator<Item = (usize, &'a str)>) -> Self {
        let mut points: Vec<_> = hosts.map(|(i, name)| (hash(name, 0), i)).collect();
        points.sort_unstable();
        Self(points)
    }

    /// Pick number `n` of the host `name`.
    pub(super) fn pick(&self, name: &str, n: usize) -> Option<usize> {
        let wanted = hash(name, n + 1);
        let at = self.0.partition_point(|(point, _)| *point < wanted);
        let point = self.0.get(at).or_else(|| self.0.first());
        point.map(|(_, host)| *host)
    }
}

/// Hosts of one tier, for finding near ones.
pub(super) struct Nearby {
    placed: Vec<(usize, Coordinate)>,
    /// Along each axis, indices into `placed`.
    axes: [Vec<(f64, usize)>; AXES],
    /// The lowest ones, as indices into `placed`.
    low: Vec<usize>,
    ring: Ring,
}

impl Nearby {
    pub(super) fn new(members: Vec<(usize, &str, Option<Coordinate>)>) -> Self {
        let ring = Ring::new(members.iter().map(|(i, name, _)| (*i, *name)));
        let placed: Vec<_> = members
            .iter()
            .filter_map(|(i, _, coordinate)| Some((*i, (*coordinate)?)))
            .collect();
        let axes = std::array::from_fn(|axis| {
            let all = placed.iter().enumerate();
            let mut along: Vec<_> = all.map(|(n, (_, c))| (c.axis(axis), n)).collect();
            along.sort_by(|a, b| a.0.total_cmp(&b.0));
            along
        });
        let mut low: Vec<_> = (0..placed.len()).collect();
        low.sort_by(|a, b| placed[*a].1.height().total_cmp(&placed[*b].1.height()));
        low.truncate(LOW);
        Self {
            placed,
            axes,
            low,
            ring,
        }
    }

    /// Hosts near `name`, nearest first, then some by hash: a host without a coordinate gets one by
    /// being measured.
    pub(super) fn nearest(
        &self,
        name: &str,
        own: Option<&Coordinate>,
    ) -> impl Iterator<Item = usize> {
        let near = own.map_or_else(Vec::new, |own| self.near(own));
        let others = (0..GIVEN).filter_map(move |n| self.ring.pick(name, n));
        near.into_iter().chain(others)
    }

    fn near(&self, own: &Coordinate) -> Vec<usize> {
        let mut seen = self.low.clone();
        for (axis, along) in self.axes.iter().enumerate() {
            let at = along.partition_point(|(place, _)| *place < own.axis(axis));
            let window = at.saturating_sub(WINDOW)..(at + WINDOW).min(along.len());
            seen.extend(along[window].iter().map(|(_, n)| *n));
        }
        seen.sort_unstable();
        seen.dedup();
        let mut found: Vec<(f64, usize)> = seen
            .into_iter()
            .map(|n| (own.distance(&self.placed[n].1), self.placed[n].0))
            .collect();
        found.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        found
            .into_iter()
            .take(GIVEN)
            .map(|(_, host)| host)
            .collect()
    }
}

/// The same in every process of one release.
fn hash(name: &str, salt: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, salt).hash(&mut hasher);
    hasher.finish()
}
