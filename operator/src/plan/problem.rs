//! Builds the problem that a strategy solves: the manifest, on hosts and links as measured.

use super::{candidates, crossings, thresholds};
use crate::state::cluster::{Cluster, Host};
use crate::state::decision::{Question, Supposed};
use crate::state::links::LinkView;
use lamina_crds::dnn_model::Goal;
use lamina_crds::placement::{Plan, Segment};
use lamina_model::{Exit, Manifest};
use lamina_placement as solver;
use lamina_placement::{BlockOnNode, Problem, Tier};
use lamina_profile::{memory_bytes, time_factor};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the one workload in our problems.
pub(crate) const WORKLOAD: &str = "model";
/// Cost of a crossing beyond its round trip and its bytes: a message is encoded, sent, woken up for
/// and decoded on either end. Measured as 2 to 3 ms per hop.
const CROSSING_SECONDS: f64 = 0.002;
/// Share of a link that all Placements may use together.
const LINK_SHARE: f64 = 0.8;
/// Least share of a link that others leave over: their load is only expected.
const LEAST_LINK_SHARE: f64 = 0.05;
/// Bounds of a host's speed relative to the host that prepared the model.
const FACTORS: (f64, f64) = (1e-6, 1e6);
/// When requests wait for blocks, the transfer is charged over this time …
const URGENT_SECONDS: f64 = 30.0;
/// … and when a plan only looks for a better place, over this one: whether the move pays is weighed
/// afterwards, so this only decides between nearly equal plans.
const CALM_SECONDS: f64 = 20_000.0;

/// The problem of one model at one entry.
pub(crate) fn build(question: &Question) -> Problem {
    let cluster = &*question.cluster;
    let hosts = candidates::of(question, cluster);
    let mut problem = Problem {
        nodes: hosts.iter().map(|h| node(question, h)).collect(),
        objective: match question.wish.goal {
            Goal::Latency => solver::Objective::Latency,
            Goal::Throughput => solver::Objective::Throughput,
        },
        // Each revision merges its own blocks: those that stay are loaded twice.
        transition: solver::Transition::Separate,
        ..Problem::default()
    };
    let constraints = constraints(question, &mut problem.nodes);
    problem
        .workloads
        .push(workload(question, &hosts, constraints));
    add_links(question, cluster, &hosts, &mut problem);
    problem
}

fn add_links(question: &Question, cluster: &Cluster, hosts: &[&Host], problem: &mut Problem) {
    for from in hosts {
        for to in hosts.iter().filter(|to| to.name != from.name) {
            let view = cluster.links.or_estimated(&from.name, &to.name);
            let view = view.map(|v| doubted(question, &from.name, &to.name, v));
            let view = view.map(|v| supposed(question, &from.name, &to.name, v));
            if let Some(mut link) = view.as_ref().and_then(link) {
                let pair = (from.name.as_str(), to.name.as_str());
                let others = question.link_share_of_others(pair, link.bytes_per_second);
                link.share = (LINK_SHARE - others).clamp(LEAST_LINK_SHARE, LINK_SHARE);
                problem.set_link(&from.name, &to.name, link);
            }
        }
    }
}

/// The link as it is taken to be while another link of its hosts became slower.
fn doubted(question: &Question, from: &str, to: &str, view: LinkView) -> LinkView {
    match &question.doubt {
        Some(doubt) if doubt.is_about(from, to, Some(&view)) => LinkView {
            bytes_per_second: view.bytes_per_second.map(|rate| rate * doubt.ratio),
            ..view
        },
        _ => view,
    }
}

/// The link as a question ahead assumes it.
fn supposed(question: &Question, from: &str, to: &str, view: LinkView) -> LinkView {
    let slower = question.supposed.iter().filter_map(|case| match case {
        Supposed::Slow { host, times } if host == from || host == to => Some(f64::from(*times)),
        _ => None,
    });
    let slower = slower.fold(1.0, f64::max);
    LinkView {
        bytes_per_second: view.bytes_per_second.map(|rate| rate / slower),
        ..view
    }
}

/// A working link with known latency and bandwidth.
pub(crate) fn link(view: &LinkView) -> Option<solver::Link> {
    let (rtt, rate) = view.figures()?;
    Some(solver::Link::new((rtt + CROSSING_SECONDS) / 2.0, rate))
}

fn node(question: &Question, host: &Host) -> solver::Node {
    let held: u64 = question
        .serving
        .as_ref()
        .filter(|plan| plan.manifest == question.digest)
        .map_or(0, |plan| held_bytes(plan, &question.manifest, &host.name));
    let (uid, namespace) = (&question.placement_uid, &question.namespace);
    let of_namespace = question.cluster.memory_left(host, namespace, uid);
    solver::Node {
        load_share: question.host_share_of_others(&host.name),
        concurrency: host.concurrency,
        excluded: exclusion(question, host),
        ..solver::Node::new(
            &host.name,
            host.tier,
            host.memory_free_bytes
                .saturating_add(held)
                .min(of_namespace),
        )
    }
}

/// Memory of the plan's blocks on `node`, which its heartbeat counts as taken although this
/// workload may use it.
fn held_bytes(plan: &Plan, manifest: &Manifest, node: &str) -> u64 {
    plan.segments
        .iter()
        .filter(|s| s.host.node == node)
        .flat_map(|s| block_indices(s, manifest))
        .map(|b| memory_bytes(&manifest.blocks[b]))
        .fold(0, u64::saturating_add)
}

/// The blocks of `segment` that `manifest` has.
pub(crate) fn block_indices<'a>(
    segment: &'a Segment,
    manifest: &'a Manifest,
) -> impl Iterator<Item = usize> + 'a {
    segment
        .blocks
        .iter()
        .filter_map(|b| usize::try_from(*b).ok())
        .filter(|b| *b < manifest.blocks.len())
}

/// Why `host` must not compute for this model now, in the kube-scheduler's terms.
fn exclusion(question: &Question, host: &Host) -> Option<String> {
    if let Some(why) = host.unfit {
        return Some(why.to_owned());
    }
    let is_lost = |case: &Supposed| matches!(case, Supposed::Lost(lost) if *lost == host.name);
    if question.supposed.iter().any(is_lost) {
        return Some("supposed to be lost".to_owned());
    }
    // The entry must compute the blocks that stay on it.
    if let Some(why) = host.emptied
        && host.name != question.entry
    {
        return Some(why.to_owned());
    }
    let failed = (host.name.clone(), question.digest.clone());
    question
        .learned
        .load_failures
        .contains_key(&failed)
        .then(|| "failed to load this model recently".to_owned())
}

fn workload(
    question: &Question,
    hosts: &[&Host],
    constraints: solver::Constraints,
) -> solver::Workload {
    let manifest = &question.manifest;
    let factors: BTreeMap<String, f64> = hosts
        .iter()
        .filter_map(|host| {
            let key = (host.name.clone(), question.digest.clone());
            let correction = question.learned.corrections.get(&key).copied();
            let (least, most) = FACTORS;
            let benchmark = time_factor(manifest, host.gflops?).clamp(least, most);
            Some((host.name.clone(), correction.unwrap_or(1.0) * benchmark))
        })
        .collect();
    let serving = question.serving.as_ref();
    let mut general = lamina_profile::workload(manifest, WORKLOAD, &question.entry, &factors);
    if let Some(asked) = &question.wish.activations {
        let crossings = crossings::for_question(manifest, asked, hosts);
        lamina_profile::encode(&mut general, manifest, &crossings);
    }
    let least = question.wish.min_accuracy();
    let least = least.filter(|_| !question.exit_shares.is_empty());
    let choices = least.and_then(|_| {
        let in_force = |exit: &Exit| thresholds::in_force(question, exit);
        lamina_profile::choices(manifest, &question.exit_shares, in_force)
    });
    let constraints = solver::Constraints {
        min_accuracy: least.filter(|_| choices.is_some()),
        ..constraints
    };
    let (exits, final_accuracy) = match choices {
        Some(choices) => (choices.exits, Some(choices.final_accuracy)),
        None => (lamina_profile::exits(manifest, &question.exit_shares), None),
    };
    let answer = manifest
        .exits
        .last()
        .filter(|_| !question.exit_shares.is_empty());
    solver::Workload {
        rate_per_second: question.rate_per_second,
        exits,
        final_accuracy,
        // One answer comes back, that of the exit where the request left.
        outputs: answer.map_or(general.outputs, |exit| vec![exit.output.clone()]),
        constraints,
        previous: serving
            .filter(|plan| plan.manifest == question.digest)
            .map(|plan| solver::Previous {
                segments: segments(plan),
                on_disk: on_disk(question, hosts),
                move_seconds_per_byte: move_seconds_per_byte(question),
            }),
        ..general
    }
}

/// Blocks in the caches of `hosts`, which need no fetching.
fn on_disk(question: &Question, hosts: &[&Host]) -> Vec<solver::Segment> {
    let blocks = &question.manifest.blocks;
    let on = |host: &&Host| {
        let held = question.held.of(&host.name)?;
        let is_held = |at: &usize| held.contains(&blocks[*at].digest);
        let blocks: Vec<usize> = (0..blocks.len()).filter(is_held).collect();
        let node = host.name.clone();
        (!blocks.is_empty()).then_some(solver::Segment { node, blocks })
    };
    hosts.iter().filter_map(on).collect()
}

/// The charge for each moved byte: its time on the slowest link of the path, spread over the
/// duration that the move is for. If requests wait, a plan that reuses cached blocks serves sooner.
fn move_seconds_per_byte(question: &Question) -> f64 {
    let cluster = &question.cluster;
    let plans = question.serving.iter().chain(&question.current);
    let hosts: BTreeSet<&str> = plans
        .flat_map(crate::state::plans::hosts)
        .chain([question.entry.as_str()])
        .collect();
    let rates = hosts.iter().flat_map(|to| {
        let from = hosts.iter().filter(move |from| *from != to);
        from.filter_map(|from| cluster.links.get(from, to)?.figures())
    });
    let slowest = rates.map(|(_, rate)| rate).fold(f64::INFINITY, f64::min);
    let seconds = if question.is_urgent {
        URGENT_SECONDS
    } else {
        CALM_SECONDS
    };
    1.0 / (slowest * seconds)
}

/// The plan's segments in the solver's types.
pub(crate) fn segments(plan: &Plan) -> Vec<solver::Segment> {
    plan.segments.iter().map(segment).collect()
}

/// A segment in the solver's types.
pub(crate) fn segment(s: &Segment) -> solver::Segment {
    solver::Segment {
        node: s.host.node.clone(),
        blocks: s
            .blocks
            .iter()
            .filter_map(|b| usize::try_from(*b).ok())
            .collect(),
    }
}

/// The wish's constraints. Removes hosts of tiers that may not compute from `nodes`.
fn constraints(question: &Question, nodes: &mut [solver::Node]) -> solver::Constraints {
    let wish = &*question.wish;
    let blocks = question.manifest.blocks.len();
    let keep = wish.keep_on_entry.min(blocks);
    let mut forbidden = Vec::new();
    let mut allowed = wish.tiers.clone();
    let entry_tier = nodes
        .iter()
        .find(|n| n.name == question.entry)
        .map(|n| n.tier);
    if let (Some(tiers), Some(entry_tier)) = (&mut allowed, entry_tier)
        && keep > 0
        && !tiers.contains(&entry_tier)
    {
        // The entry may compute the blocks that must stay on it, and no others.
        let others: BTreeSet<Tier> = tiers.clone();
        tiers.insert(entry_tier);
        for node in nodes.iter_mut().filter(|n| !others.contains(&n.tier)) {
            if node.name != question.entry {
                let reason = format!("tier={} excluded", node.tier);
                node.excluded.get_or_insert(reason);
            }
        }
        forbidden.extend((keep..blocks).map(|block| BlockOnNode {
            block,
            node: question.entry.clone(),
        }));
    }
    let pins = wish.pins.iter().flat_map(|p| {
        // Clipped to the model's blocks, whatever the spec says.
        let last = p.last.min(blocks.saturating_sub(1));
        (p.first..=last).map(|block| BlockOnNode {
            block,
            node: p.node.clone(),
        })
    });
    solver::Constraints {
        pins: pins.collect(),
        forbidden,
        keep_first_on_entry: keep,
        allowed_tiers: allowed,
        tier_slice_limit_bytes: wish.slice_limits.clone(),
        latency_limit_seconds: wish.latency_limit_seconds,
        ..solver::Constraints::default()
    }
}

#[cfg(test)]
mod tests;
