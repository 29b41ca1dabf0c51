//! Hosts and links of one look, dense and shared: all questions of the look borrow them, and the
//! load of others is summed up once.

use super::ids::{self, PlacementKey};
use super::links::Links;
use super::memory::Memory;
use super::plans;
use super::snapshot::{NodeView, RunTimes, Snapshot};
use lamina_crds::conditions::{BENCHMARKED, is_true};
use lamina_crds::placement::{Plan, Segment};
use lamina_crds::{ComputeNode, Placement};
use lamina_model::Manifest;
use lamina_placement::Tier;
use lamina_profile::{memory_bytes, time_factor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Highest expected share of others on a host: an overestimated load must leave something to try.
pub(crate) const LARGEST_SHARE: f64 = 0.95;
/// Highest share of a host or link that all models of one namespace reserve by declaring rates that
/// nobody measured: otherwise one of them could lock out all others.
const LARGEST_RESERVE: f64 = 0.25;
/// Highest rate that is counted.
const MOST_A_SECOND: f64 = 100_000.0;
/// Plausible speeds of a host, in GFLOP/s: anything beyond is an error or a lie.
const SPEEDS: RangeInclusive<f64> = 1e-3..=1e6;
/// Highest speed of one processor in the reference benchmark, in GFLOP/s: above two units of 512
/// bits at 6 GHz.
const MOST_OF_A_PROCESSOR: f64 = 512.0;
/// Plausible times of a segment, in seconds.
const SEGMENT_SECONDS: RangeInclusive<f64> = 1e-7..=3600.0;

/// The hosts and links of one look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    /// Hosts in order of their names.
    pub hosts: Vec<Host>,
    /// Links between them.
    pub links: Links,
    /// Names of the hosts that could compute. Looks with the same set share one allocation, so the
    /// address shows that nothing changed.
    pub fit: Arc<BTreeSet<String>>,
    by_name: HashMap<String, usize>,
    /// Bytes per second that Placements send, by ordinals of sender and receiver.
    traffic: HashMap<(usize, usize), Taken>,
    /// What each Placement adds, by its UID: subtracted in its own question.
    own: HashMap<String, Own>,
}

/// One host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Host {
    /// Its name.
    pub name: String,
    /// Its tier. A host without a tier label is neither a sensor nor a data centre.
    pub tier: Tier,
    /// Memory that it may still take.
    pub memory_free_bytes: u64,
    /// Memory that the models of one namespace may hold there.
    memory_of_namespace: u64,
    /// Memory that Placements hold, by namespace.
    held: BTreeMap<Arc<str>, u64>,
    /// Its benchmarked speed.
    pub gflops: Option<f64>,
    /// Requests that it computes at the same time without slowing each other.
    pub concurrency: u32,
    /// Why it cannot compute now, in the kube-scheduler's terms.
    pub unfit: Option<&'static str>,
    /// Why it is to be emptied, if it is: nothing new goes there, and blocks there move off.
    pub emptied: Option<&'static str>,
    /// Encodings of values that its agent supports.
    pub encodings: Vec<String>,
    /// Share of it that Placements use.
    taken: Taken,
}

/// The load of a Placement on a host or a link.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Load {
    /// As measured.
    measured: f64,
    /// What its declared rate adds.
    declared: f64,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.measured += other.measured;
        self.declared += other.declared;
    }

    fn sum(self) -> f64 {
        self.measured + self.declared
    }

    /// The load of requests that each take `each`.
    fn times(self, each: f64) -> Self {
        Self {
            measured: self.measured * each,
            declared: self.declared * each,
        }
    }
}

/// The load of all Placements on a host or a link.
#[derive(Debug, Clone, Default, PartialEq)]
struct Taken {
    measured: f64,
    /// Declared load beyond that, by namespace.
    declared: BTreeMap<Arc<str>, f64>,
}

impl Taken {
    fn add(&mut self, namespace: &Arc<str>, load: Load) {
        self.measured += load.measured;
        if load.declared > 0.0 {
            let declared = self.declared.entry(Arc::clone(namespace)).or_default();
            *declared += load.declared;
        }
    }

    /// The load of all but one Placement; declared load counts up to `reserve` for each namespace.
    fn by_others(&self, own: Option<(&str, Load)>, reserve: f64) -> f64 {
        let (namespace, own) = own.unwrap_or_default();
        let declared = self.declared.iter().map(|(of, all)| {
            let own = if **of == *namespace {
                own.declared
            } else {
                0.0
            };
            (all - own).clamp(0.0, reserve)
        });
        (self.measured - own.measured).max(0.0) + declared.sum::<f64>()
    }
}

/// The load of one Placement.
#[derive(Debug, Clone)]
struct Own {
    namespace: Arc<str>,
    shares: HashMap<usize, Load>,
    traffic: HashMap<(usize, usize), Load>,
    held: BTreeMap<String, u64>,
}

impl Cluster {
    /// The cluster of `snapshot`. `memory` has the set of fit hosts of an earlier look, which is
    /// updated, and plans that are not written yet.
    pub(crate) fn of(snapshot: &Snapshot, memory: &mut Memory) -> Self {
        let fit = &mut memory.fit;
        let hosts: Vec<Host> = snapshot
            .compute_nodes
            .iter()
            .map(|(name, node)| host(snapshot, name, node))
            .collect();
        let fit_now = hosts.iter().filter(|h| h.unfit.is_none()).map(|h| &h.name);
        // Both are sorted by name.
        if !fit_now.clone().eq(fit.iter()) {
            *fit = Arc::new(fit_now.cloned().collect());
        }
        let by_name = hosts.iter().enumerate().map(|(i, h)| (h.name.clone(), i));
        let mut cluster = Self {
            by_name: by_name.collect(),
            hosts,
            links: snapshot.links.clone(),
            fit: Arc::clone(fit),
            traffic: HashMap::new(),
            own: HashMap::new(),
        };
        let rates = rates(snapshot);
        for placement in &snapshot.placements {
            let unwritten = unwritten(memory, placement);
            cluster.add(snapshot, &rates, placement, unwritten);
        }
        cluster
    }

    /// The host of that name.
    pub(crate) fn host(&self, name: &str) -> Option<&Host> {
        self.by_name.get(name).map(|i| &self.hosts[*i])
    }

    /// Memory that a Placement of `namespace` may hold on `host` besides the others of its
    /// namespace.
    pub(crate) fn memory_left(&self, host: &Host, namespace: &str, placement_uid: &str) -> u64 {
        let all = host.held.get(namespace).copied().unwrap_or(0);
        let own = self.own.get(placement_uid);
        let own = own.and_then(|own| own.held.get(&host.name)).copied();
        let others = all.saturating_sub(own.unwrap_or(0));
        host.memory_of_namespace.saturating_sub(others)
    }

    /// Share of `host` that Placements other than `placement_uid` use.
    pub(crate) fn share_of_others(&self, host: &str, placement_uid: &str) -> f64 {
        let Some(&index) = self.by_name.get(host) else {
            return 0.0;
        };
        let own = self.own.get(placement_uid);
        let own = own.map(|o| (&*o.namespace, o.shares.get(&index).copied()));
        let own = own.map(|(namespace, load)| (namespace, load.unwrap_or_default()));
        let taken = self.hosts[index].taken.by_others(own, LARGEST_RESERVE);
        taken.clamp(0.0, LARGEST_SHARE)
    }

    /// Share of the link from `from` to `to`, with this many bytes per second, that Placements
    /// other than `placement_uid` use.
    pub(crate) fn link_share_of_others(
        &self,
        (from, to): (&str, &str),
        bytes_per_second: f64,
        placement_uid: &str,
    ) -> f64 {
        let (Some(&from), Some(&to)) = (self.by_name.get(from), self.by_name.get(to)) else {
            return 0.0;
        };
        let Some(taken) = self.traffic.get(&(from, to)) else {
            return 0.0;
        };
        let own = self.own.get(placement_uid);
        let own = own.map(|o| (&*o.namespace, o.traffic.get(&(from, to)).copied()));
        let own = own.map(|(namespace, load)| (namespace, load.unwrap_or_default()));
        let reserve = LARGEST_RESERVE * bytes_per_second;
        taken.by_others(own, reserve) / bytes_per_second
    }

    /// Share of each host that the Placement uses.
    pub(crate) fn shares_of(&self, placement_uid: &str) -> impl Iterator<Item = (&str, f64)> {
        let shares = self.own.get(placement_uid).into_iter();
        let shares = shares.flat_map(|own| &own.shares);
        shares.map(|(host, load)| (self.hosts[*host].name.as_str(), load.sum()))
    }

    /// Bytes per second that the Placement sends, by sender and receiver.
    pub(crate) fn traffic_of(
        &self,
        placement_uid: &str,
    ) -> impl Iterator<Item = (&str, &str, f64)> {
        let traffic = self.own.get(placement_uid).into_iter();
        let traffic = traffic.flat_map(|own| &own.traffic);
        let name = |host: usize| self.hosts[host].name.as_str();
        traffic.map(move |((from, to), load)| (name(*from), name(*to), load.sum()))
    }

    fn add(
        &mut self,
        snapshot: &Snapshot,
        rates: &HashMap<(&str, &str), f64>,
        placement: &Placement,
        unwritten: Option<&Plan>,
    ) {
        let namespace = placement.metadata.namespace.as_deref().unwrap_or_default();
        let rate = rates.get(&(namespace, placement.spec.model.as_str()));
        let uid = ids::uid(&placement.metadata);
        let rate = load(snapshot, uid, rate.copied().unwrap_or(0.0));
        let rows = snapshot.requests.get(uid).map_or(1.0, |r| r.rows);
        let mut own = Own {
            namespace: namespace.into(),
            shares: HashMap::new(),
            traffic: HashMap::new(),
            held: held(snapshot, placement),
        };
        for (name, bytes) in &own.held {
            if let Some(&host) = self.by_name.get(name) {
                let all = self.hosts[host].held.entry(Arc::clone(&own.namespace));
                let all = all.or_default();
                *all = all.saturating_add(*bytes);
            }
        }
        // A Placement being deployed already occupies its new hosts, and its old ones are free
        // soon: plan for that state.
        let newest = unwritten.or_else(|| plans::target(placement));
        if let Some(plan) = newest.or_else(|| plans::active(placement)) {
            own.shares = self.shares(snapshot, uid, plan, rate);
            let entry = &placement.spec.entry;
            own.traffic = self.traffic(snapshot, entry, plan, rate.times(rows));
            for (host, load) in &own.shares {
                self.hosts[*host].taken.add(&own.namespace, *load);
            }
            for (pair, load) in &own.traffic {
                let taken = self.traffic.entry(*pair).or_default();
                taken.add(&own.namespace, *load);
            }
        }
        self.own.insert(uid.to_owned(), own);
    }

    /// The load of requests of `plan` on each host.
    fn shares(
        &self,
        snapshot: &Snapshot,
        uid: &str,
        plan: &Plan,
        rate: Load,
    ) -> HashMap<usize, Load> {
        let mut shares: HashMap<usize, Load> = HashMap::new();
        let manifest = snapshot.manifests.get(&plan.manifest);
        for (index, segment) in plan.segments.iter().enumerate() {
            let Some(&host) = self.by_name.get(&segment.host.node) else {
                continue;
            };
            let expected = || Some(self.expected_seconds(host, segment, manifest?));
            let seconds = request_seconds(snapshot, uid, plan, index).or_else(expected);
            let lanes = f64::from(self.hosts[host].concurrency);
            let load = rate.times(seconds.unwrap_or(0.0) / lanes);
            shares.entry(host).or_default().add(load);
        }
        shares
    }

    /// Seconds of a segment that has not been timed on its host yet.
    fn expected_seconds(&self, host: usize, segment: &Segment, manifest: &Manifest) -> f64 {
        let blocks = segment.blocks.iter();
        let blocks = blocks.filter_map(|b| manifest.blocks.get(usize::try_from(*b).ok()?));
        let prepared: f64 = blocks.map(|b| b.time.p50).sum();
        let gflops = self.hosts[host].gflops.unwrap_or(0.0);
        let seconds = prepared * time_factor(manifest, gflops);
        if seconds.is_finite() {
            seconds.clamp(0.0, *SEGMENT_SECONDS.end())
        } else {
            0.0
        }
    }

    /// The traffic of requests of `plan` between hosts.
    fn traffic(
        &self,
        snapshot: &Snapshot,
        entry: &str,
        plan: &Plan,
        rate: Load,
    ) -> HashMap<(usize, usize), Load> {
        let mut traffic: HashMap<(usize, usize), Load> = HashMap::new();
        let Some(manifest) = snapshot.manifests.get(&plan.manifest) else {
            return traffic;
        };
        for (from, to, bytes) in crossings(entry, plan, manifest) {
            if let (Some(&from), Some(&to)) = (self.by_name.get(from), self.by_name.get(to)) {
                let load = rate.times(bytes as f64);
                traffic.entry((from, to)).or_default().add(load);
            }
        }
        traffic
    }
}

/// A plan of `placement` that was decided but is not in the object yet.
fn unwritten<'m>(memory: &'m Memory, placement: &Placement) -> Option<&'m Plan> {
    let key = PlacementKey::new(plans::owner_uid(placement)?, &placement.spec.entry);
    let plan = memory.placements.get(&key)?.unwritten.as_ref()?;
    let newest = placement.spec.plan.as_ref();
    let is_written = newest.is_some_and(|newest| newest.revision >= plan.revision);
    (!is_written).then_some(plan)
}

/// Requests per second of a Placement: the measured ones, and what its declared rate adds.
fn load(snapshot: &Snapshot, placement_uid: &str, declared: f64) -> Load {
    let measured = snapshot.requests.get(placement_uid);
    let bounded = |rate: f64| {
        if rate.is_finite() {
            rate.clamp(0.0, MOST_A_SECOND)
        } else {
            0.0
        }
    };
    let measured = bounded(measured.map_or(0.0, |r| r.answered_per_second));
    Load {
        measured,
        declared: (bounded(declared) - measured).max(0.0),
    }
}

/// Requests per second to plan a Placement for.
pub(crate) fn rate_to_plan_for(snapshot: &Snapshot, placement_uid: &str, declared: f64) -> f64 {
    load(snapshot, placement_uid, declared).sum()
}

fn host(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Host {
    let status = node.status.as_ref();
    let is_benchmarked = status.is_some_and(|s| is_true(&s.conditions, BENCHMARKED));
    let unfit = if !snapshot.is_alive(name) {
        Some("not connected")
    } else if impossible_speed(snapshot, name, node).is_some() {
        Some("reports an impossible speed")
    } else if !is_benchmarked || speed(snapshot, name, node).is_none() {
        Some("not benchmarked yet")
    } else {
        None
    };
    let live = snapshot.live.get(name);
    Host {
        name: name.to_owned(),
        tier: tier(&node.spec.tier).unwrap_or(Tier::Edge),
        memory_free_bytes: live.map_or(0, |l| l.memory_free_bytes),
        memory_of_namespace: memory_of_namespace(snapshot, node),
        held: BTreeMap::new(),
        gflops: speed(snapshot, name, node),
        concurrency: concurrency(node),
        unfit,
        emptied: emptied(snapshot, name),
        encodings: status.map_or_else(Vec::new, |s| s.encodings.clone()),
        taken: Taken::default(),
    }
}

/// Memory that the models of one namespace may hold on `node`; no limit if they may have all.
fn memory_of_namespace(snapshot: &Snapshot, node: &ComputeNode) -> u64 {
    let capacity = node.status.as_ref().and_then(|s| s.capacity);
    match capacity {
        Some(capacity) if snapshot.memory_share < 1.0 => {
            (capacity.memory_bytes as f64 * snapshot.memory_share) as u64
        }
        _ => u64::MAX,
    }
}

/// Memory that `placement` holds or will hold, by host, if that is limited.
fn held(snapshot: &Snapshot, placement: &Placement) -> BTreeMap<String, u64> {
    let mut held = BTreeMap::new();
    if snapshot.memory_share >= 1.0 {
        // There is no limit.
        return held;
    }
    let plans = plans::active(placement).into_iter();
    for plan in plans.chain(plans::target(placement)) {
        let Some(manifest) = snapshot.manifests.get(&plan.manifest) else {
            continue;
        };
        for segment in &plan.segments {
            let blocks = segment.blocks.iter();
            let blocks = blocks.filter_map(|b| manifest.blocks.get(usize::try_from(*b).ok()?));
            let bytes = blocks.map(memory_bytes).fold(0, u64::saturating_add);
            let sum: &mut u64 = held.entry(segment.host.node.clone()).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    held
}

fn emptied(snapshot: &Snapshot, name: &str) -> Option<&'static str> {
    if snapshot.nodes.get(name).is_some_and(NodeView::is_cordoned) {
        Some("cordoned")
    } else if snapshot.is_ending(name) {
        Some("about to end")
    } else {
        None
    }
}

/// The reported speed of a host, in GFLOP/s, if it is plausible.
pub(crate) fn speed(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Option<f64> {
    reported_speed(node).filter(|gflops| is_possible(snapshot, name, *gflops))
}

/// The reported speed of a host, if it is not plausible.
pub(crate) fn impossible_speed(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Option<f64> {
    reported_speed(node).filter(|gflops| !is_possible(snapshot, name, *gflops))
}

/// Whether the processors reported by the host's kubelet can be that fast.
fn is_possible(snapshot: &Snapshot, name: &str, gflops: f64) -> bool {
    let processors = snapshot.nodes.get(name).and_then(NodeView::processors);
    let most = processors.map_or(f64::INFINITY, |all| all * MOST_OF_A_PROCESSOR);
    SPEEDS.contains(&gflops) && gflops <= most
}

fn reported_speed(node: &ComputeNode) -> Option<f64> {
    let status = node.status.as_ref()?;
    let is_measured = is_true(&status.conditions, BENCHMARKED);
    status.capacity.filter(|_| is_measured).map(|c| c.gflops)
}

/// Highest number of concurrent forwards that a host is believed to compute.
const MOST_CONCURRENCY: u32 = 1024;

/// Requests that a host computes at the same time without slowing each other; one if its agent does
/// not say.
fn concurrency(node: &ComputeNode) -> u32 {
    let capacity = node.status.as_ref().and_then(|status| status.capacity);
    capacity.map_or(1, |capacity| {
        capacity.concurrency.clamp(1, MOST_CONCURRENCY)
    })
}

/// The tier of that name.
pub(crate) fn tier(name: &str) -> Option<Tier> {
    match name {
        "device" => Some(Tier::Device),
        "edge" => Some(Tier::Edge),
        "cloud" => Some(Tier::Cloud),
        _ => None,
    }
}

/// Requests per second by namespace and name of a model.
fn rates(snapshot: &Snapshot) -> HashMap<(&str, &str), f64> {
    let models = snapshot.models.iter();
    models
        .map(|m| {
            let namespace = m.metadata.namespace.as_deref().unwrap_or_default();
            let name = m.metadata.name.as_deref().unwrap_or_default();
            ((namespace, name), m.spec.objective.requests_per_second)
        })
        .collect()
}

/// Measured seconds per row of segment `index`: of live requests, else of the warm-up. Comparable
/// with a profile, which is for one row.
pub(crate) fn row_seconds(
    snapshot: &Snapshot,
    placement_uid: &str,
    plan: &Plan,
    index: usize,
) -> Option<f64> {
    measured_seconds(snapshot, placement_uid, plan, index, |t| t.row_seconds)
}

/// As [`row_seconds`], but per request as clients send them.
fn request_seconds(
    snapshot: &Snapshot,
    placement_uid: &str,
    plan: &Plan,
    index: usize,
) -> Option<f64> {
    measured_seconds(snapshot, placement_uid, plan, index, |t| t.request_seconds)
}

fn measured_seconds(
    snapshot: &Snapshot,
    placement_uid: &str,
    plan: &Plan,
    index: usize,
    of: fn(&RunTimes) -> f64,
) -> Option<f64> {
    let segment = u32::try_from(index).ok()?;
    let live = snapshot
        .timings
        .get(&(placement_uid.to_owned(), plan.revision, segment))
        .map(of);
    let warm = || {
        let node = &plan.segments.get(index)?.host.node;
        let status = snapshot.slice_status(node, placement_uid, plan.revision, index)?;
        Some(status.run_ms? / 1e3)
    };
    let told = live.or_else(warm).filter(|s| s.is_finite() && *s > 0.0);
    told.map(|s| s.clamp(*SEGMENT_SECONDS.start(), *SEGMENT_SECONDS.end()))
}

/// The crossings of a request of `plan`: from, to and bytes, there and back.
fn crossings<'a>(
    entry: &'a str,
    plan: &'a Plan,
    manifest: &Manifest,
) -> Vec<(&'a str, &'a str, u64)> {
    let reply: u64 = manifest
        .outputs
        .iter()
        .map(|v| v.bytes(1).unwrap_or(0))
        .fold(0, u64::saturating_add);
    let mut at = entry;
    let mut sent: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (index, segment) in plan.segments.iter().enumerate() {
        let host = segment.host.node.as_str();
        if host != at {
            let first = segment
                .blocks
                .first()
                .and_then(|b| usize::try_from(*b).ok());
            let first = first.filter(|b| *b < manifest.blocks.len());
            let encoded = plans::crossing_into(plan, index).map(|c| c.bytes);
            let bytes = encoded.or(first.map(|b| manifest.live_bytes(b)));
            let bytes = bytes.unwrap_or(0);
            for (pair, bytes) in [((at, host), bytes), ((host, at), reply)] {
                let sum = sent.entry(pair).or_default();
                *sum = sum.saturating_add(bytes);
            }
        }
        at = host;
    }
    sent.into_iter()
        .map(|((a, b), bytes)| (a, b, bytes))
        .collect()
}
