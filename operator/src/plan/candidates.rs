//! Which hosts a question covers. Up to [`CANDIDATES`] all of them; beyond that, those that can be
//! part of a good answer: near the entry, or fast for their distance, of each tier. This keeps the
//! cost of a question constant in the number of hosts.

use crate::state::cluster::{Cluster, Host};
use crate::state::decision::Question;
use crate::state::plans;
use lamina_placement::Tier;
use std::collections::BTreeSet;

/// Most hosts of one question, besides those that must be included.
pub(crate) const CANDIDATES: usize = 64;
/// How many hosts of each tier are taken by response time …
const SOONEST: usize = 12;
/// … and how many by distance.
const NEAREST: usize = 6;

/// The hosts of `question`, in the cluster's order.
pub(crate) fn of<'a>(question: &'a Question, cluster: &'a Cluster) -> Vec<&'a Host> {
    let all = &cluster.hosts;
    if all.len() <= CANDIDATES {
        return all.iter().collect();
    }
    let mut chosen: BTreeSet<&str> = needed(question);
    for tier in [Tier::Device, Tier::Edge, Tier::Cloud] {
        let able = all.iter().filter(|h| h.tier == tier && is_able(h));
        let mut ranked: Vec<(f64, f64, &str)> = able
            .filter_map(|h| {
                let rtt = rtt(cluster, &question.entry, &h.name)?;
                Some((rtt + work_seconds(question, h), rtt, h.name.as_str()))
            })
            .collect();
        take(&mut ranked, SOONEST, |r| r.0, &mut chosen);
        take(&mut ranked, NEAREST, |r| r.1, &mut chosen);
    }
    let is_chosen = |h: &&Host| chosen.contains(h.name.as_str());
    all.iter().filter(is_chosen).collect()
}

/// Hosts that no question can leave out.
fn needed(question: &Question) -> BTreeSet<&str> {
    let plans = question.current.iter().chain(&question.serving);
    let pinned = question.wish.pins.iter().map(|p| p.node.as_str());
    plans
        .flat_map(plans::hosts)
        .chain(pinned)
        .chain([question.entry.as_str()])
        .collect()
}

fn is_able(host: &Host) -> bool {
    host.unfit.is_none() && host.emptied.is_none()
}

/// Round trip between the entry and a host, measured or estimated.
fn rtt(cluster: &Cluster, entry: &str, host: &str) -> Option<f64> {
    if entry == host {
        return Some(0.0);
    }
    let link = cluster.links.or_estimated(entry, host)?;
    link.rtt_seconds.filter(|_| link.reachable)
}

/// Seconds that the whole model would take on `host`, roughly.
fn work_seconds(question: &Question, host: &Host) -> f64 {
    let manifest = &question.manifest;
    let prepared: f64 = manifest.blocks.iter().map(|b| b.time.p50).sum();
    let factor = lamina_profile::time_factor(manifest, host.gflops.unwrap_or(0.0));
    let free = 1.0 - question.host_share_of_others(&host.name);
    prepared * factor / free
}

fn take<'a>(
    ranked: &mut [(f64, f64, &'a str)],
    count: usize,
    by: impl Fn(&(f64, f64, &str)) -> f64,
    chosen: &mut BTreeSet<&'a str>,
) {
    // Names decide between equals, so that an unchanged world gives the same hosts.
    let order =
        |a: &(f64, f64, &str), b: &(f64, f64, &str)| by(a).total_cmp(&by(b)).then(a.2.cmp(b.2));
    if ranked.len() > count {
        ranked.select_nth_unstable_by(count, order);
    }
    chosen.extend(ranked.iter().take(count).map(|r| r.2));
}
