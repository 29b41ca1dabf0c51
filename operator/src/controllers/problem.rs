//! The question that a strategy is asked: what the manifest says, on hosts and
//! links as they were measured.

use super::memory::Memory;
use super::snapshot::{LinkView, Snapshot};
use super::{deploy, spec};
use k8s_openapi::jiff::SignedDuration;
use lamina_crds::conditions::{BENCHMARKED, is_true};
use lamina_crds::dnn_model::Goal;
use lamina_crds::placement::{Plan, Segment};
use lamina_crds::{ComputeNode, DnnModelSpec, Placement};
use lamina_model::Manifest;
use lamina_placement as solver;
use lamina_placement::{BlockOnNode, Problem, Tier};
use lamina_profile::{memory_bytes, time_factor};
use std::collections::{BTreeMap, BTreeSet};

/// Name of the one workload in our problems.
pub(crate) const WORKLOAD: &str = "model";
/// A host that failed to load a model's blocks is not asked again for so long.
const LOAD_RETRY_MINUTES: i64 = 5;
/// A live time may correct a prepared one by this factor, up or down.
const CORRECTION_LIMIT: f64 = 8.0;

/// What is placed, and where it is now.
pub(crate) struct Question<'a> {
    /// The wishes.
    pub spec: &'a DnnModelSpec,
    /// The prepared model.
    pub manifest: &'a Manifest,
    /// Its digest.
    pub digest: &'a str,
    /// The node where requests arise.
    pub entry: &'a str,
    /// The Placement, once there is one.
    pub placement: Option<&'a Placement>,
}

impl Question<'_> {
    /// The plan that serves, if it is of this manifest.
    fn serving(&self) -> Option<&Plan> {
        deploy::active(self.placement?).filter(|p| p.manifest == self.digest)
    }
}

/// The problem of one model at one entry.
///
/// # Errors
/// A spec that cannot be followed.
pub(crate) fn build(
    snapshot: &Snapshot,
    memory: &Memory,
    question: &Question<'_>,
) -> Result<Problem, spec::SpecError> {
    let mut problem = Problem {
        nodes: snapshot
            .compute_nodes
            .iter()
            .map(|(name, node)| host(snapshot, memory, question, name, node))
            .collect(),
        objective: match question.spec.objective.goal {
            Goal::Latency => solver::Objective::Latency,
            Goal::Throughput => solver::Objective::Throughput,
        },
        // Each revision merges blocks of its own: what stays is loaded twice.
        transition: solver::Transition::Separate,
        ..Problem::default()
    };
    let constraints = constraints(question, &mut problem.nodes)?;
    problem
        .workloads
        .push(workload(snapshot, memory, question, constraints));
    let known = |name: &String| snapshot.compute_nodes.contains_key(name);
    for ((from, to), view) in &snapshot.links {
        if let Some(link) = link(view).filter(|_| known(from) && known(to) && from != to) {
            problem.set_link(from, to, link);
        }
    }
    Ok(problem)
}

/// A link that works and whose latency and bandwidth are both known.
pub(crate) fn link(view: &LinkView) -> Option<solver::Link> {
    if !view.reachable {
        return None;
    }
    let (rtt, rate) = (view.rtt_seconds?, view.bytes_per_second?);
    (rtt >= 0.0 && rate > 0.0).then(|| solver::Link::new(rtt / 2.0, rate))
}

fn host(
    snapshot: &Snapshot,
    memory: &Memory,
    question: &Question<'_>,
    name: &str,
    node: &ComputeNode,
) -> solver::Node {
    // A host without a tier label is neither a sensor nor a data centre.
    let tier = spec::tier(&node.spec.tier).unwrap_or(Tier::Edge);
    let free = snapshot.live.get(name).map_or(0, |l| l.memory_free_bytes);
    let held: u64 = question
        .serving()
        .map_or(0, |plan| held_bytes(plan, question.manifest, name));
    solver::Node {
        load_share: load_of_others(snapshot, question, name),
        excluded: exclusion(snapshot, memory, question, name, node),
        ..solver::Node::new(name, tier, free.saturating_add(held))
    }
}

/// Memory that the plan's blocks take on `node`, which its heartbeat counts as
/// taken though this workload may use it.
fn held_bytes(plan: &Plan, manifest: &Manifest, node: &str) -> u64 {
    plan.segments
        .iter()
        .filter(|s| s.host.node == node)
        .flat_map(|s| block_indices(s, manifest))
        .map(|b| memory_bytes(&manifest.blocks[b]))
        .sum()
}

fn block_indices<'a>(
    segment: &'a Segment,
    manifest: &'a Manifest,
) -> impl Iterator<Item = usize> + 'a {
    segment
        .blocks
        .iter()
        .filter_map(|b| usize::try_from(*b).ok())
        .filter(|b| *b < manifest.blocks.len())
}

/// Why `name` must not compute for this model now, as the kube-scheduler words it.
fn exclusion(
    snapshot: &Snapshot,
    memory: &Memory,
    question: &Question<'_>,
    name: &str,
    node: &ComputeNode,
) -> Option<String> {
    if !snapshot.is_alive(name) {
        return Some("not connected".to_owned());
    }
    let status = node.status.as_ref()?;
    let fast = status.capacity.is_some_and(|c| c.gflops > 0.0);
    if !is_true(&status.conditions, BENCHMARKED) || !fast {
        return Some("not benchmarked yet".to_owned());
    }
    let serves = question
        .serving()
        .is_some_and(|p| deploy::hosts(p).any(|h| h == name));
    let cordoned = snapshot.nodes.get(name).is_some_and(|n| n.unschedulable);
    if cordoned && !serves && name != question.entry {
        return Some("cordoned".to_owned());
    }
    let failed = memory
        .load_failures
        .get(&(name.to_owned(), question.digest.to_owned()))
        .is_some_and(|t| {
            snapshot.now.duration_since(*t) < SignedDuration::from_mins(LOAD_RETRY_MINUTES)
        });
    failed.then(|| "failed to load this model recently".to_owned())
}

/// Share of `node` that other Placements take at their expected rates.
fn load_of_others(snapshot: &Snapshot, question: &Question<'_>, node: &str) -> f64 {
    let own = question.placement.and_then(|p| p.metadata.uid.as_deref());
    let mut share = 0.0;
    for placement in &snapshot.placements {
        let uid = placement.metadata.uid.as_deref().unwrap_or_default();
        let Some(plan) = deploy::active(placement).filter(|_| Some(uid) != own) else {
            continue;
        };
        let rate = snapshot
            .models
            .iter()
            .find(|m| {
                m.metadata.namespace == placement.metadata.namespace
                    && m.metadata.name.as_deref() == Some(placement.spec.model.as_str())
            })
            .map_or(0.0, |m| m.spec.objective.requests_per_second);
        for (index, segment) in plan.segments.iter().enumerate() {
            if segment.host.node == node {
                share += rate * measured(snapshot, uid, plan, index).unwrap_or(0.0);
            }
        }
    }
    share.min(0.95)
}

/// Measured seconds of segment `index`: of live requests, else of the warm-up.
fn measured(snapshot: &Snapshot, uid: &str, plan: &Plan, index: usize) -> Option<f64> {
    let segment = u32::try_from(index).ok()?;
    let live = snapshot
        .timings
        .get(&(uid.to_owned(), plan.revision, segment))
        .copied();
    let warm = || {
        let node = &plan.segments.get(index)?.host.node;
        let status = deploy::slice_status(snapshot, node, uid, plan.revision, index)?;
        Some(status.run_ms? / 1e3)
    };
    live.or_else(warm).filter(|s| s.is_finite() && *s > 0.0)
}

fn gflops(snapshot: &Snapshot, node: &str) -> Option<f64> {
    let status = snapshot.compute_nodes.get(node)?.status.as_ref()?;
    status.capacity.map(|c| c.gflops).filter(|g| *g > 0.0)
}

/// Learns how much slower or faster each host runs a manifest's blocks than its
/// benchmark said, from everything that is loaded and timed now.
pub(crate) fn learn(snapshot: &Snapshot, memory: &mut Memory) {
    let mut sums: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for placement in &snapshot.placements {
        let uid = placement.metadata.uid.as_deref().unwrap_or_default();
        for plan in deploy::active(placement)
            .into_iter()
            .chain(deploy::target(placement))
        {
            let Some(manifest) = snapshot.manifests.get(&plan.manifest) else {
                continue;
            };
            for (index, segment) in plan.segments.iter().enumerate() {
                let node = &segment.host.node;
                let (Some(took), Some(gflops)) =
                    (measured(snapshot, uid, plan, index), gflops(snapshot, node))
                else {
                    continue;
                };
                let is_cut = index + 1 < plan.segments.len();
                let expected = expected(segment, manifest, is_cut) * time_factor(manifest, gflops);
                if expected > 0.0 {
                    let key = (node.clone(), plan.manifest.clone());
                    let sum = sums.entry(key).or_default();
                    *sum = (sum.0 + took, sum.1 + expected);
                }
            }
        }
    }
    for (key, (took, expected)) in sums {
        let factor = (took / expected).clamp(1.0 / CORRECTION_LIMIT, CORRECTION_LIMIT);
        memory.corrections.insert(key, factor);
    }
}

/// Seconds of a segment on the host that prepared the model.
fn expected(segment: &Segment, manifest: &Manifest, is_cut: bool) -> f64 {
    let sum: f64 = block_indices(segment, manifest)
        .map(|b| manifest.blocks[b].time.p50)
        .sum();
    let penalty = block_indices(segment, manifest)
        .last()
        .filter(|_| is_cut)
        .map_or(0.0, |b| manifest.blocks[b].cut_penalty_seconds);
    sum + penalty
}

fn workload(
    snapshot: &Snapshot,
    memory: &Memory,
    question: &Question<'_>,
    constraints: solver::Constraints,
) -> solver::Workload {
    let manifest = question.manifest;
    let factors: BTreeMap<String, f64> = snapshot
        .compute_nodes
        .keys()
        .filter_map(|name| {
            let key = (name.clone(), question.digest.to_owned());
            let correction = memory.corrections.get(&key).copied().unwrap_or(1.0);
            let benchmark = time_factor(manifest, gflops(snapshot, name)?);
            Some((name.clone(), correction * benchmark))
        })
        .collect();
    solver::Workload {
        rate_per_second: question.spec.objective.requests_per_second,
        constraints,
        previous: question.serving().map(|plan| solver::Previous {
            segments: segments(plan),
            move_seconds_per_byte: 0.0,
        }),
        ..lamina_profile::workload(manifest, WORKLOAD, question.entry, &factors)
    }
}

/// The plan's segments as the solver has them.
pub(crate) fn segments(plan: &Plan) -> Vec<solver::Segment> {
    plan.segments
        .iter()
        .map(|s| solver::Segment {
            node: s.host.node.clone(),
            blocks: s
                .blocks
                .iter()
                .filter_map(|b| usize::try_from(*b).ok())
                .collect(),
        })
        .collect()
}

/// The spec's constraints. `nodes` lose hosts of tiers that may not compute.
fn constraints(
    question: &Question<'_>,
    nodes: &mut [solver::Node],
) -> Result<solver::Constraints, spec::SpecError> {
    let wishes = &question.spec.constraints;
    let keep = usize::try_from(wishes.keep_on_entry).unwrap_or(usize::MAX);
    let mut forbidden = Vec::new();
    let mut allowed = spec::allowed_tiers(question.spec)?;
    let entry_tier = nodes
        .iter()
        .find(|n| n.name == question.entry)
        .map(|n| n.tier);
    if let (Some(tiers), Some(entry_tier)) = (&mut allowed, entry_tier)
        && keep > 0
        && !tiers.contains(&entry_tier)
    {
        // The entry may compute what must stay on it, and nothing else.
        let others: BTreeSet<Tier> = tiers.clone();
        tiers.insert(entry_tier);
        for node in nodes.iter_mut().filter(|n| !others.contains(&n.tier)) {
            if node.name != question.entry {
                let reason = format!("tier={} excluded", node.tier);
                node.excluded.get_or_insert(reason);
            }
        }
        forbidden.extend(
            (keep..question.manifest.blocks.len()).map(|block| BlockOnNode {
                block,
                node: question.entry.to_owned(),
            }),
        );
    }
    let pins = wishes
        .pins
        .iter()
        .flat_map(|p| (p.first..=p.last).map(move |b| (b, &p.node)))
        .filter_map(|(block, node)| {
            Some(BlockOnNode {
                block: usize::try_from(block).ok()?,
                node: node.clone(),
            })
        })
        .collect();
    Ok(solver::Constraints {
        pins,
        forbidden,
        keep_first_on_entry: keep,
        allowed_tiers: allowed,
        tier_slice_limit_bytes: spec::slice_limits(question.spec)?,
        ..solver::Constraints::default()
    })
}

#[cfg(test)]
mod tests;
