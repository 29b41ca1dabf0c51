//! Which of the waiting models are prepared now, and where: one per host, spread over the
//! hosts that are fast enough, the neediest first, taking turns between namespaces.

use crate::state::cluster::speed;
use crate::state::decision::{Decisions, StartPrepare, WaitingPrepare};
use crate::state::snapshot::{PrepareView, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// A host with less free memory prepares only if no other can …
const MEMORY_BYTES: u64 = 512 << 20;
/// … and with less than this never: its agent refuses (four fifths of it, for libtorch and a
/// small model).
const LEAST_MEMORY_BYTES: u64 = 320 << 20;
/// A model waits for a faster host rather than use one with less than this share of its speed.
const SLOWEST: f64 = 0.25;
/// Most models of one namespace that are prepared at once: this many, or half the number of hosts
/// if that is more.
const OF_NAMESPACE: usize = 4;

/// A host that can prepare.
struct Able<'a> {
    name: &'a str,
    gflops: f64,
    has_memory: bool,
}

/// Whether any host can prepare, now or later.
pub(crate) fn is_any_able(snapshot: &Snapshot) -> bool {
    able(snapshot).next().is_some()
}

/// The most free memory of any connected host, if that is too little to prepare.
pub(crate) fn lacks_memory(snapshot: &Snapshot) -> Option<u64> {
    let live = snapshot.live.values().filter(|live| live.alive);
    let most = live.map(|live| live.memory_free_bytes).max()?;
    (most < LEAST_MEMORY_BYTES).then_some(most)
}

/// Assigns free hosts to waiting models.
pub(crate) fn assign(snapshot: &Snapshot, out: &mut Decisions) {
    let mut waiting = std::mem::take(&mut out.waiting);
    if waiting.is_empty() {
        return;
    }
    let hosts: Vec<Able<'_>> = able(snapshot).collect();
    let most = OF_NAMESPACE.max(hosts.len() / 2);
    let mut busy = busy(snapshot);
    let mut running = running(snapshot);
    in_turn(&mut waiting, &running);
    for one in waiting {
        if busy.len() >= hosts.len() {
            return;
        }
        let of_namespace = running.entry(one.namespace.clone()).or_default();
        if *of_namespace >= most {
            continue;
        }
        if let Some(node) = preparer(&hosts, &one.tried, &busy) {
            *of_namespace += 1;
            busy.insert(node.to_owned());
            out.prepares.push(StartPrepare {
                node: node.to_owned(),
                ..one.job
            });
        }
    }
}

fn able(snapshot: &Snapshot) -> impl Iterator<Item = Able<'_>> {
    // Credentials and whole models stay on hosts of the cluster.
    let nodes = snapshot.compute_nodes.iter();
    let nodes = nodes.filter(|(name, _)| snapshot.is_node(name));
    nodes.filter_map(|(name, node)| {
        let live = snapshot.live.get(name).filter(|l| l.alive)?;
        let is_enough = live.memory_free_bytes >= LEAST_MEMORY_BYTES;
        is_enough.then_some(())?;
        Some(Able {
            name,
            gflops: speed(snapshot, name, node)?,
            has_memory: live.memory_free_bytes >= MEMORY_BYTES,
        })
    })
}

/// Hosts that are preparing a model.
fn busy(snapshot: &Snapshot) -> BTreeSet<String> {
    let views = snapshot.prepares.values();
    let nodes = views.filter_map(|view| match view {
        PrepareView::Running { node, .. } if snapshot.is_alive(node) => Some(node.clone()),
        _ => None,
    });
    nodes.collect()
}

/// How many models of each namespace are being prepared.
fn running(snapshot: &Snapshot) -> BTreeMap<String, usize> {
    let models = snapshot.models.iter();
    let namespaces: BTreeMap<&str, &str> = models
        .filter_map(|m| {
            let meta = &m.metadata;
            Some((meta.uid.as_deref()?, meta.namespace.as_deref()?))
        })
        .collect();
    let mut running = BTreeMap::new();
    for (job, view) in &snapshot.prepares {
        if let (PrepareView::Running { .. }, Some(namespace)) =
            (view, namespaces.get(job.model_uid.as_str()))
        {
            *running.entry((*namespace).to_owned()).or_default() += 1;
        }
    }
    running
}

/// Puts the most urgent first, and alternates namespaces among equals: those with fewer models in
/// preparation come first.
fn in_turn(waiting: &mut Vec<WaitingPrepare>, running: &BTreeMap<String, usize>) {
    waiting.sort_by(|a, b| {
        (&a.namespace, a.need, &a.job.job.model_uid).cmp(&(
            &b.namespace,
            b.need,
            &b.job.job.model_uid,
        ))
    });
    let mut place = running.clone();
    let mut placed: Vec<(usize, WaitingPrepare)> = std::mem::take(waiting)
        .into_iter()
        .map(|one| {
            let turn = place.entry(one.namespace.clone()).or_default();
            *turn += 1;
            (*turn, one)
        })
        .collect();
    placed.sort_by_key(|(turn, one)| (one.need, *turn));
    waiting.extend(placed.into_iter().map(|(_, one)| one));
}

/// The fastest free host with enough memory that has not tried yet; once all of these have, the
/// fastest of them. Those with less memory only where no other is.
/// `None` if a busy one is worth waiting for.
fn preparer<'a>(
    hosts: &[Able<'a>],
    tried: &BTreeSet<String>,
    busy: &BTreeSet<String>,
) -> Option<&'a str> {
    let class = |h: &Able<'_>| (h.has_memory, !tried.contains(h.name));
    let best = hosts.iter().map(class).max()?;
    let of_class: Vec<&Able<'_>> = hosts.iter().filter(|h| class(h) == best).collect();
    let fastest = of_class.iter().map(|h| h.gflops).fold(0.0, f64::max);
    of_class
        .into_iter()
        .filter(|h| h.gflops >= fastest * SLOWEST && !busy.contains(h.name))
        .max_by(|a, b| a.gflops.total_cmp(&b.gflops).then(b.name.cmp(a.name)))
        .map(|h| h.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::decision::PrepareNeed;
    use crate::state::ids::JobId;
    use crate::testing::{model, world};
    use std::sync::Arc;

    fn waiting(namespace: &str, uid: &str, need: PrepareNeed) -> WaitingPrepare {
        WaitingPrepare {
            need,
            namespace: namespace.into(),
            tried: BTreeSet::new(),
            job: StartPrepare {
                node: String::new(),
                job: JobId {
                    model_uid: uid.into(),
                    source: "hash".into(),
                },
                uri: "http://files/model.pt".into(),
                sha256: String::new(),
                inputs_json: "[]".into(),
                secret: None,
                samples: None,
            },
        }
    }

    /// Hosts of equal speed, all able to prepare.
    fn hosts(count: usize) -> Snapshot {
        let mut snapshot = world();
        let (node, live) = (
            &snapshot.compute_nodes["cloud-1"],
            &snapshot.live["cloud-1"],
        );
        let names = || (0..count).map(|i| format!("host-{i:03}"));
        let nodes = names().map(|name| (name, Arc::clone(node))).collect();
        let lives = names().map(|name| (name, live.clone())).collect();
        (snapshot.compute_nodes, snapshot.live) = (nodes, lives);
        snapshot
    }

    /// Model and host of each started job; the jobs are marked as running.
    fn assigned(snapshot: &mut Snapshot, waiting: &[WaitingPrepare]) -> Vec<(String, String)> {
        let mut out = Decisions {
            waiting: waiting.to_vec(),
            ..Decisions::default()
        };
        assign(snapshot, &mut out);
        for start in &out.prepares {
            let view = PrepareView::Running {
                node: start.node.clone(),
                step: String::new(),
                done: 0,
                total: 0,
                bytes: false,
            };
            snapshot.prepares.insert(start.job.clone(), view);
        }
        let started = out.prepares.into_iter();
        started.map(|s| (s.job.model_uid, s.node)).collect()
    }

    #[test]
    fn twelve_models_are_prepared_one_on_a_host_and_none_on_a_slow_one() {
        let mut snapshot = world();
        let all: Vec<WaitingPrepare> = (0..12)
            .map(|n| waiting("default", &format!("m{n:02}"), PrepareNeed::First))
            .collect();
        let first = assigned(&mut snapshot, &all);
        let pair = |uid: &str, node: &str| (uid.to_owned(), node.to_owned());
        // The camera has a tenth of the cloud's speed.
        assert_eq!(first, [pair("m00", "cloud-1"), pair("m01", "edge-1")]);
        assert_eq!(assigned(&mut snapshot, &all[2..]), [], "all are busy");
        let done = snapshot.prepares.keys().next().cloned().unwrap();
        snapshot.prepares.remove(&done);
        assert_eq!(assigned(&mut snapshot, &all[2..]), [pair("m02", "cloud-1")]);
    }

    #[test]
    fn a_host_with_memory_tries_again_before_one_without() {
        let mut snapshot = hosts(2);
        let mut one = waiting("default", "m", PrepareNeed::First);
        let mut free = |host: &str, mib: u64| {
            snapshot.live.get_mut(host).unwrap().memory_free_bytes = mib << 20;
        };
        free("host-000", 400);
        free("host-001", 4096);
        one.tried.insert("host-001".into());
        let all = [one];
        let mut large_only = snapshot.clone();
        let pair = |node: &str| [("m".to_owned(), node.to_owned())];
        assert_eq!(assigned(&mut large_only, &all), pair("host-001"));
        snapshot.live.get_mut("host-001").unwrap().alive = false;
        assert_eq!(assigned(&mut snapshot, &all), pair("host-000"));
    }

    #[test]
    fn a_host_that_has_too_little_memory_prepares_nothing() {
        let mut snapshot = hosts(2);
        for live in snapshot.live.values_mut() {
            live.memory_free_bytes = 200 << 20;
        }
        let one = [waiting("default", "m", PrepareNeed::First)];
        assert!(!is_any_able(&snapshot));
        assert_eq!(assigned(&mut snapshot, &one), []);
        assert_eq!(lacks_memory(&snapshot), Some(200 << 20));
    }

    #[test]
    fn a_host_that_is_no_node_prepares_nothing() {
        let mut snapshot = world();
        snapshot.joins.insert("cloud-1".into());
        let one = [waiting("default", "m", PrepareNeed::First)];
        let assigned = assigned(&mut snapshot, &one);
        assert_eq!(assigned, [("m".to_owned(), "edge-1".to_owned())]);
    }

    #[test]
    fn the_neediest_come_first_and_namespaces_in_turn() {
        let mut snapshot = hosts(8);
        let mut all = vec![
            waiting("a", "update", PrepareNeed::Update),
            waiting("z", "lost", PrepareNeed::Lost),
            waiting("b", "b0", PrepareNeed::First),
        ];
        all.extend((0..9).map(|n| waiting("a", &format!("a{n}"), PrepareNeed::First)));
        let uids: Vec<String> = assigned(&mut snapshot, &all)
            .into_iter()
            .map(|(uid, _)| uid)
            .collect();
        // Four of `a`, although two more hosts were free.
        assert_eq!(uids, ["lost", "a0", "b0", "a1", "a2", "a3"]);
    }

    #[test]
    fn one_namespace_leaves_hosts_to_others() {
        let mut snapshot = hosts(20);
        snapshot.models = (0..30)
            .map(|n| {
                let mut model = model();
                model.metadata.uid = Some(format!("a{n:02}"));
                Arc::new(model)
            })
            .collect();
        let all: Vec<WaitingPrepare> = (0..30)
            .map(|n| waiting("default", &format!("a{n:02}"), PrepareNeed::First))
            .collect();
        assert_eq!(assigned(&mut snapshot, &all).len(), 10);
        assert_eq!(assigned(&mut snapshot, &all[10..]).len(), 0, "still");
        let other = [waiting("other", "b", PrepareNeed::First)];
        assert_eq!(assigned(&mut snapshot, &other).len(), 1);
    }
}
