//! Who measures the link to whom, and how often. Pure.
//!
//! Up to [`ALL_PAIRS`] hosts measure every pair. Beyond that, wishes are granted in order of
//! importance, within bounds that hold at any size: links of paths, ways back on them,
//! pairs that a planner wants to know, a few nearby gateways of each tier, and some random
//! hosts to hold the network coordinates together. An unchanged world gives the same answer.

mod nearby;

use super::coordinates::Coordinate;
use super::links::LinkTable;
use super::types::{LinkEstimate, ProbePeer};
use lamina_placement::Tier;
use nearby::{Nearby, Ring};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Up to this many hosts every pair is measured.
pub(super) const ALL_PAIRS: usize = 12;
/// Most peers of one host.
pub(super) const MOST_PEERS: usize = 32;
/// Most round trips per second that one host asks for.
pub(super) const MOST_PROBES_A_SECOND: f64 = 20.0;
/// Most hosts that measure links to one host, besides those that use that link for requests: these
/// ask every second at any size.
pub(super) const MOST_INBOUND: usize = 64;

/// A dead link of a path is detected within three seconds.
const PATH_MS: u32 = 1000;
/// For unknown or outdated links.
const UNKNOWN_MS: u32 = 2000;
/// For gateways of an entry, and of other hosts.
const ENTRY_GATEWAY_MS: u32 = 10_000;
const GATEWAY_MS: u32 = 20_000;
/// For links that are only kept fresh.
const SLOW_MS: u32 = 30_000;
/// Peers and probes per second that paths leave to the rest, if they can.
const OTHERS_PEERS: usize = 8;
const OTHERS_PROBES: f64 = 2.0;
/// Hosts that one host probes back each second. Others are only measured in turn: they probe this
/// host anyway.
const MOST_BACK: usize = 10;
/// Gateways of each tier, for an entry and for other hosts.
const ENTRY_GATEWAYS: usize = 4;
const GATEWAYS: usize = 2;
/// Random hosts that each host measures, for the coordinates.
const ANYWHERE: usize = 4;
/// An older bandwidth is measured again before it is relied on.
const STALE: Duration = Duration::from_secs(600);
/// The same for a link that a planner is about to move onto: the move waits for it, and a link
/// of the same host may just have changed.
const STALE_FOR_A_MOVE: Duration = Duration::from_secs(2);

/// A host that may measure and be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeHost {
    /// Its name.
    pub(super) name: String,
    /// Where its agent listens, `10.0.0.7:8001`.
    pub(super) address: String,
    /// Its tier.
    pub(super) tier: Tier,
    /// Its agent is connected.
    pub(super) alive: bool,
}

/// The input of the plan.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// Every host.
    pub(super) hosts: &'a [ProbeHost],
    /// Neighbours on paths, `(from, to)` as requests travel; answers travel back.
    pub(super) paths: &'a BTreeSet<(String, String)>,
    /// Entries.
    pub(super) entries: &'a BTreeSet<String>,
    /// Links `(from, to)` that a planner wants to know.
    pub(super) candidates: &'a BTreeSet<(String, String)>,
    /// The link estimates.
    pub(super) links: &'a LinkTable,
}

/// The peers of every host that is alive, ordered by name.
pub(super) fn plan(situation: &Situation<'_>) -> BTreeMap<String, Vec<ProbePeer>> {
    let hosts = Hosts::new(situation);
    let mut grants = Grants::new(hosts.all.len());
    let paths = hosts.pairs(situation.paths);
    on_paths(&hosts, &paths, &mut grants);
    if hosts.all.len() <= ALL_PAIRS {
        all_pairs(hosts.all.len(), &mut grants);
    } else {
        let back: Vec<_> = paths.iter().map(|&(a, b)| (b, a)).collect();
        let wished = hosts.pairs(situation.candidates);
        unknown(&hosts, &back, STALE, &mut grants);
        unknown(&hosts, &wished, STALE_FOR_A_MOVE, &mut grants);
        gateways(&hosts, situation.entries, &mut grants);
        for (from, to) in back.into_iter().chain(wished) {
            grants.grant(from, to, SLOW_MS, &Bounds::FULL);
        }
    }
    grants.into_peers(&hosts)
}

/// Each host probes the next one on its paths. Within bounds, the next one probes back: a link may
/// fail in one direction only.
fn on_paths(hosts: &Hosts<'_>, paths: &[(usize, usize)], grants: &mut Grants) {
    let mut nexts = vec![0_u32; hosts.all.len()];
    for (from, _) in paths {
        nexts[*from] += 1;
    }
    for &(from, to) in paths {
        // With more next hosts than probes, each is probed less often.
        let most = (MOST_PROBES_A_SECOND - OTHERS_PROBES) as u32;
        let asked = nexts[from].min(MOST_PEERS as u32).max(most);
        grants.grant(from, to, (PATH_MS * asked).div_ceil(most), &Bounds::PATH);
    }
    for &(from, to) in paths {
        grants.grant(to, from, PATH_MS, &Bounds::BACK);
    }
}

fn all_pairs(hosts: usize, grants: &mut Grants) {
    for from in 0..hosts {
        for to in (0..hosts).filter(|to| *to != from) {
            grants.grant(from, to, UNKNOWN_MS, &Bounds::FULL);
        }
    }
}

/// Pairs never measured, or not for long, are measured soon.
fn unknown(hosts: &Hosts<'_>, pairs: &[(usize, usize)], stale: Duration, grants: &mut Grants) {
    for &(from, to) in pairs {
        if !hosts
            .link(from, to)
            .is_some_and(|link| is_fresh(&link, stale))
        {
            grants.grant(from, to, UNKNOWN_MS, &Bounds::UNKNOWN);
        }
    }
}

fn is_fresh(link: &LinkEstimate, stale: Duration) -> bool {
    link.rtt_seconds.is_some() && link.bandwidth_age.is_some_and(|age| age < stale)
}

/// A few nearby hosts of each tier, and some random ones.
fn gateways(hosts: &Hosts<'_>, entries: &BTreeSet<String>, grants: &mut Grants) {
    let ring = Ring::new(hosts.all.iter().map(|h| h.name.as_str()).enumerate());
    let tiers = [Tier::Cloud, Tier::Edge, Tier::Device].map(|tier| {
        let members = hosts.all.iter().enumerate();
        let members = members.filter(|(_, host)| host.tier == tier);
        let members = members.map(|(i, host)| (i, host.name.as_str(), hosts.coordinates[i]));
        Nearby::new(members.collect())
    });
    for (own, host) in hosts.all.iter().enumerate() {
        let (wanted, every) = if entries.contains(&host.name) {
            (ENTRY_GATEWAYS, ENTRY_GATEWAY_MS)
        } else {
            (GATEWAYS, GATEWAY_MS)
        };
        for tier in &tiers {
            let near = tier.nearest(&host.name, hosts.coordinates[own].as_ref());
            grants.grant_some(own, near, wanted, every);
        }
    }
    for (own, host) in hosts.all.iter().enumerate() {
        let anywhere = (0..4 * ANYWHERE).filter_map(|n| ring.pick(&host.name, n));
        grants.grant_some(own, anywhere, ANYWHERE, SLOW_MS);
    }
}

/// Hosts that are connected, by index.
struct Hosts<'a> {
    all: Vec<&'a ProbeHost>,
    places: BTreeMap<&'a str, usize>,
    coordinates: Vec<Option<Coordinate>>,
    links: &'a LinkTable,
}

impl<'a> Hosts<'a> {
    fn new(situation: &Situation<'a>) -> Self {
        let usable = |host: &&ProbeHost| host.alive && !host.address.is_empty();
        let by_name: BTreeMap<&str, &ProbeHost> = situation
            .hosts
            .iter()
            .filter(usable)
            .map(|host| (host.name.as_str(), host))
            .collect();
        let all: Vec<_> = by_name.into_values().collect();
        let places = all.iter().enumerate().map(|(i, h)| (h.name.as_str(), i));
        let at = |host: &&ProbeHost| situation.links.coordinate(&host.name);
        Self {
            places: places.collect(),
            coordinates: all.iter().map(at).collect(),
            links: situation.links,
            all,
        }
    }

    /// The pairs of which both hosts are connected.
    fn pairs(&self, names: &BTreeSet<(String, String)>) -> Vec<(usize, usize)> {
        let place = |name: &String| self.places.get(name.as_str()).copied();
        let pairs = names
            .iter()
            .filter_map(|(a, b)| Some((place(a)?, place(b)?)));
        pairs.filter(|(a, b)| a != b).collect()
    }

    fn link(&self, from: usize, to: usize) -> Option<LinkEstimate> {
        self.links.get(&self.all[from].name, &self.all[to].name)
    }
}

/// Bounds of a kind of wish.
struct Bounds {
    peers: usize,
    probes: f64,
    inbound: usize,
}

impl Bounds {
    /// A link used by requests is probed however many others probe the same host.
    const PATH: Self = Self {
        peers: MOST_PEERS,
        probes: MOST_PROBES_A_SECOND - OTHERS_PROBES,
        inbound: usize::MAX,
    };
    const BACK: Self = Self {
        peers: MOST_BACK,
        probes: MOST_BACK as f64,
        inbound: MOST_INBOUND,
    };
    const UNKNOWN: Self = Self {
        peers: MOST_PEERS - OTHERS_PEERS,
        probes: MOST_PROBES_A_SECOND - OTHERS_PROBES,
        inbound: MOST_INBOUND,
    };
    const FULL: Self = Self {
        peers: MOST_PEERS,
        probes: MOST_PROBES_A_SECOND,
        inbound: MOST_INBOUND,
    };
}

/// Granted wishes.
struct Grants {
    peers: Vec<BTreeMap<usize, u32>>,
    probes: Vec<f64>,
    inbound: Vec<usize>,
}

impl Grants {
    fn new(hosts: usize) -> Self {
        Self {
            peers: vec![BTreeMap::new(); hosts],
            probes: vec![0.0; hosts],
            inbound: vec![0; hosts],
        }
    }

    /// Grants a wish within its bounds; returns whether `from` now measures `to`.
    fn grant(&mut self, from: usize, to: usize, every_ms: u32, bounds: &Bounds) -> bool {
        if self.peers[from].contains_key(&to) {
            // Wishes come in order of urgency.
            return true;
        }
        let probes = self.probes[from] + 1000.0 / f64::from(every_ms);
        let is_within = self.peers[from].len() < bounds.peers
            && probes <= bounds.probes + 1e-9
            && self.inbound[to] < bounds.inbound;
        if is_within {
            self.peers[from].insert(to, every_ms);
            self.probes[from] = probes;
            self.inbound[to] += 1;
        }
        is_within
    }

    /// Grants `wanted` of the wishes for `peers`, in order.
    fn grant_some(
        &mut self,
        from: usize,
        peers: impl IntoIterator<Item = usize>,
        wanted: usize,
        every_ms: u32,
    ) {
        let mut seen = BTreeSet::from([from]);
        let others = peers.into_iter().filter(|to| seen.insert(*to));
        let granted = others.filter(|to| self.grant(from, *to, every_ms, &Bounds::FULL));
        // Taking them grants them.
        let _ = granted.take(wanted).count();
    }

    fn into_peers(self, hosts: &Hosts<'_>) -> BTreeMap<String, Vec<ProbePeer>> {
        let lists = hosts.all.iter().zip(self.peers);
        let list = |peers: BTreeMap<usize, u32>| {
            let peers = peers.into_iter().map(|(to, every_ms)| ProbePeer {
                node: hosts.all[to].name.clone(),
                address: hosts.all[to].address.clone(),
                every_ms,
            });
            peers.collect()
        };
        lists
            .map(|(host, peers)| (host.name.clone(), list(peers)))
            .collect()
    }
}

#[cfg(test)]
mod tests;
