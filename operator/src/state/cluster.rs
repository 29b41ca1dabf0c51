//! Hosts and links as one look found them, dense and shared: every question of the
//! look borrows it, and what others load is summed up once.

use super::ids;
use super::links::Links;
use super::plans;
use super::snapshot::{NodeView, Snapshot};
use lamina_crds::conditions::{BENCHMARKED, is_true};
use lamina_crds::placement::Plan;
use lamina_crds::{ComputeNode, Placement};
use lamina_model::Manifest;
use lamina_placement::Tier;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// No host is planned beyond this share by what others are expected to take: a load
/// that was overestimated must leave something to try.
const LARGEST_SHARE: f64 = 0.95;
/// Of a host or a link, what all models of one namespace reserve at most by declaring a
/// rate that nobody measured: else one of them could keep all others out.
const LARGEST_RESERVE: f64 = 0.25;
/// The highest rate that counts.
const MOST_A_SECOND: f64 = 100_000.0;
/// Speeds that a host can have, in GFLOP/s: what lies beyond is an error, or a lie.
const SPEEDS: RangeInclusive<f64> = 1e-3..=1e6;
/// Times that a segment can take, in seconds.
const SEGMENT_SECONDS: RangeInclusive<f64> = 1e-7..=3600.0;

/// The hosts and links of one look.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    /// Hosts in order of their names.
    pub hosts: Vec<Host>,
    /// Links between them.
    pub links: Links,
    /// Names of the hosts that could compute. Looks that find the same share one set:
    /// whoever remembers it sees by its address that nothing changed.
    pub fit: Arc<BTreeSet<String>>,
    by_name: HashMap<String, usize>,
    /// Bytes per second that Placements send, by ordinals of sender and receiver.
    traffic: HashMap<(usize, usize), Taken>,
    /// What each Placement adds, by its UID: taken off again where its own question
    /// is built.
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
    /// Its benchmarked speed.
    pub gflops: Option<f64>,
    /// Requests that it computes at the same time without slowing each other.
    pub concurrency: u32,
    /// Why it can compute for nobody now, as the kube-scheduler words it.
    pub unfit: Option<&'static str>,
    /// Why it is to be emptied, if it is: nothing new goes there, and what is there moves
    /// off.
    pub emptied: Option<&'static str>,
    /// In how few bits its agent sends and takes values.
    pub encodings: Vec<String>,
    /// Share of it that Placements take.
    taken: Taken,
}

/// What a Placement takes of a host or a link.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Load {
    /// As measured.
    measured: f64,
    /// What its declared rate adds to that.
    declared: f64,
}

impl Load {
    fn add(&mut self, other: Self) {
        self.measured += other.measured;
        self.declared += other.declared;
    }

    /// The load of requests that take `each` of something.
    fn times(self, each: f64) -> Self {
        Self {
            measured: self.measured * each,
            declared: self.declared * each,
        }
    }
}

/// What all Placements take of a host or a link.
#[derive(Debug, Clone, Default, PartialEq)]
struct Taken {
    measured: f64,
    /// Declared beyond that, by namespace.
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

    /// What others than one Placement take; by declaring alone, those of a namespace take
    /// at most `reserve`.
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

/// What one Placement takes.
#[derive(Debug, Clone)]
struct Own {
    namespace: Arc<str>,
    shares: HashMap<usize, Load>,
    traffic: HashMap<(usize, usize), Load>,
}

impl Cluster {
    /// The cluster of `snapshot`. `fit` is the set of an earlier look, and becomes that
    /// of this one.
    pub(crate) fn of(snapshot: &Snapshot, fit: &mut Arc<BTreeSet<String>>) -> Self {
        let hosts: Vec<Host> = snapshot
            .compute_nodes
            .iter()
            .map(|(name, node)| host(snapshot, name, node))
            .collect();
        let fit_now = hosts.iter().filter(|h| h.unfit.is_none()).map(|h| &h.name);
        // Both are in the order of their names.
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
            cluster.add(snapshot, &rates, placement);
        }
        cluster
    }

    /// The host of that name.
    pub(crate) fn host(&self, name: &str) -> Option<&Host> {
        self.by_name.get(name).map(|i| &self.hosts[*i])
    }

    /// Share of `host` that Placements other than `placement_uid` take.
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

    /// Share of the link from `from` to `to`, of so many bytes a second, that Placements
    /// other than `placement_uid` take.
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

    fn add(
        &mut self,
        snapshot: &Snapshot,
        rates: &HashMap<(&str, &str), f64>,
        placement: &Placement,
    ) {
        let Some(plan) = plans::active(placement) else {
            return;
        };
        let namespace = placement.metadata.namespace.as_deref().unwrap_or_default();
        let rate = rates.get(&(namespace, placement.spec.model.as_str()));
        let uid = ids::uid(&placement.metadata);
        let rate = load(snapshot, uid, rate.copied().unwrap_or(0.0));
        let mut own = Own {
            namespace: namespace.into(),
            shares: HashMap::new(),
            traffic: HashMap::new(),
        };
        for (index, segment) in plan.segments.iter().enumerate() {
            let seconds = segment_seconds(snapshot, uid, plan, index).unwrap_or(0.0);
            if let Some(&host) = self.by_name.get(&segment.host.node) {
                let lanes = f64::from(self.hosts[host].concurrency);
                let load = rate.times(seconds / lanes);
                self.hosts[host].taken.add(&own.namespace, load);
                own.shares.entry(host).or_default().add(load);
            }
        }
        if let Some(manifest) = snapshot.manifests.get(&plan.manifest) {
            for (from, to, bytes) in crossings(&placement.spec.entry, plan, manifest) {
                if let (Some(&from), Some(&to)) = (self.by_name.get(from), self.by_name.get(to)) {
                    let (pair, load) = ((from, to), rate.times(bytes as f64));
                    self.traffic
                        .entry(pair)
                        .or_default()
                        .add(&own.namespace, load);
                    own.traffic.entry(pair).or_default().add(load);
                }
            }
        }
        self.own.insert(uid.to_owned(), own);
    }
}

/// Requests a second of a Placement: those that were measured, and what its declared
/// rate adds.
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

fn host(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Host {
    let status = node.status.as_ref();
    let is_benchmarked = status.is_some_and(|s| is_true(&s.conditions, BENCHMARKED));
    let unfit = if !snapshot.is_alive(name) {
        Some("not connected")
    } else if impossible_speed(node).is_some() {
        Some("reports an impossible speed")
    } else if !is_benchmarked || speed(node).is_none() {
        Some("not benchmarked yet")
    } else {
        None
    };
    let live = snapshot.live.get(name);
    Host {
        name: name.to_owned(),
        tier: tier(&node.spec.tier).unwrap_or(Tier::Edge),
        memory_free_bytes: live.map_or(0, |l| l.memory_free_bytes),
        gflops: speed(node),
        concurrency: concurrency(node),
        unfit,
        emptied: emptied(snapshot, name),
        encodings: status.map_or_else(Vec::new, |s| s.encodings.clone()),
        taken: Taken::default(),
    }
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

/// The speed that a host reports, in GFLOP/s, where a host can have it.
pub(crate) fn speed(node: &ComputeNode) -> Option<f64> {
    reported_speed(node).filter(|gflops| SPEEDS.contains(gflops))
}

/// The speed that a host reports, where none can have it.
pub(crate) fn impossible_speed(node: &ComputeNode) -> Option<f64> {
    reported_speed(node).filter(|gflops| !SPEEDS.contains(gflops))
}

fn reported_speed(node: &ComputeNode) -> Option<f64> {
    let status = node.status.as_ref()?;
    let is_measured = is_true(&status.conditions, BENCHMARKED);
    status.capacity.filter(|_| is_measured).map(|c| c.gflops)
}

/// Forwards at the same time that a host is believed to compute.
const MOST_CONCURRENCY: u32 = 1024;

/// Requests that a host computes at the same time without slowing each other; one where its
/// agent does not say.
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

/// Measured seconds of segment `index`: of live requests, else of the warm-up.
pub(crate) fn segment_seconds(
    snapshot: &Snapshot,
    placement_uid: &str,
    plan: &Plan,
    index: usize,
) -> Option<f64> {
    let segment = u32::try_from(index).ok()?;
    let live = snapshot
        .timings
        .get(&(placement_uid.to_owned(), plan.revision, segment))
        .copied();
    let warm = || {
        let node = &plan.segments.get(index)?.host.node;
        let status = snapshot.slice_status(node, placement_uid, plan.revision, index)?;
        Some(status.run_ms? / 1e3)
    };
    let told = live.or_else(warm).filter(|s| s.is_finite() && *s > 0.0);
    told.map(|s| s.clamp(*SEGMENT_SECONDS.start(), *SEGMENT_SECONDS.end()))
}

/// What a request of `plan` sends: from, to and bytes, there and back.
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
