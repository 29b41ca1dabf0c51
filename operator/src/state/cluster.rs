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
use std::sync::Arc;

/// No host is planned beyond this share by what others are expected to take: a load
/// that was overestimated must leave something to try.
const LARGEST_SHARE: f64 = 0.95;

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
    traffic: HashMap<(usize, usize), f64>,
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
    /// Why it can compute for nobody now, as the kube-scheduler words it.
    pub unfit: Option<&'static str>,
    /// It is to be emptied: nothing new goes there, and what is there moves off.
    pub is_cordoned: bool,
    /// Share of it that all Placements take at their expected rates.
    share: f64,
}

/// What one Placement takes.
#[derive(Debug, Clone, Default)]
struct Own {
    shares: Vec<(usize, f64)>,
    traffic: Vec<((usize, usize), f64)>,
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
        let own = own.into_iter().flat_map(|o| &o.shares);
        let own: f64 = own.filter(|(i, _)| *i == index).map(|(_, s)| s).sum();
        (self.hosts[index].share - own).clamp(0.0, LARGEST_SHARE)
    }

    /// Bytes per second that Placements other than `placement_uid` send from `from`
    /// to `to`.
    pub(crate) fn traffic_of_others(&self, from: &str, to: &str, placement_uid: &str) -> f64 {
        let (Some(&from), Some(&to)) = (self.by_name.get(from), self.by_name.get(to)) else {
            return 0.0;
        };
        let all = self.traffic.get(&(from, to)).copied().unwrap_or(0.0);
        let own = self.own.get(placement_uid);
        let own = own.into_iter().flat_map(|o| &o.traffic);
        let own: f64 = own.filter(|(p, _)| *p == (from, to)).map(|(_, b)| b).sum();
        (all - own).max(0.0)
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
        let rate = rate.copied().unwrap_or(0.0);
        let uid = ids::uid(&placement.metadata);
        let mut own = Own::default();
        for (index, segment) in plan.segments.iter().enumerate() {
            let seconds = segment_seconds(snapshot, uid, plan, index).unwrap_or(0.0);
            if let Some(&host) = self.by_name.get(&segment.host.node) {
                self.hosts[host].share += rate * seconds;
                own.shares.push((host, rate * seconds));
            }
        }
        if let Some(manifest) = snapshot.manifests.get(&plan.manifest) {
            for (from, to, bytes) in crossings(&placement.spec.entry, plan, manifest) {
                if let (Some(&from), Some(&to)) = (self.by_name.get(from), self.by_name.get(to)) {
                    let bytes = rate * bytes as f64;
                    *self.traffic.entry((from, to)).or_default() += bytes;
                    own.traffic.push(((from, to), bytes));
                }
            }
        }
        self.own.insert(uid.to_owned(), own);
    }
}

fn host(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Host {
    let status = node.status.as_ref();
    let speed = status.and_then(|s| s.capacity).map(|c| c.gflops);
    let gflops = speed.filter(|g| g.is_normal() && *g > 0.0);
    let is_benchmarked = status.is_some_and(|s| is_true(&s.conditions, BENCHMARKED));
    let unfit = if !snapshot.is_alive(name) {
        Some("not connected")
    } else if !is_benchmarked || gflops.is_none() {
        Some("not benchmarked yet")
    } else {
        None
    };
    let live = snapshot.live.get(name);
    Host {
        name: name.to_owned(),
        tier: tier(&node.spec.tier).unwrap_or(Tier::Edge),
        memory_free_bytes: live.map_or(0, |l| l.memory_free_bytes),
        gflops,
        unfit,
        is_cordoned: snapshot.nodes.get(name).is_some_and(NodeView::is_cordoned),
        share: 0.0,
    }
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
    live.or_else(warm).filter(|s| s.is_finite() && *s > 0.0)
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
        .sum();
    let mut at = entry;
    let mut sent: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for segment in &plan.segments {
        let host = segment.host.node.as_str();
        if host != at {
            let first = segment
                .blocks
                .first()
                .and_then(|b| usize::try_from(*b).ok());
            let first = first.filter(|b| *b < manifest.blocks.len());
            *sent.entry((at, host)).or_default() += first.map_or(0, |b| manifest.live_bytes(b));
            *sent.entry((host, at)).or_default() += reply;
        }
        at = host;
    }
    sent.into_iter()
        .map(|((a, b), bytes)| (a, b, bytes))
        .collect()
}
