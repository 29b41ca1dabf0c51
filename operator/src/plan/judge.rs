//! What a plan is worth in a problem, and how certain a difference between two plans is.

use super::problem::{self, WORKLOAD};
use crate::state::links::Links;
use crate::state::snapshot::Standing;
use lamina_crds::placement::{Plan, Segment};
use lamina_placement as solver;
use lamina_placement::check::{Violation, evaluate};
use lamina_placement::{Constraints, Metrics, Problem};
use std::collections::BTreeMap;

/// Relative noise of a compute time: by this much one slice's times vary from minute to minute on a
/// host with other work.
const COMPUTE_NOISE: f64 = 0.1;
/// Relative noise of the rate of an unmeasured link.
const UNKNOWN_NOISE: f64 = 1.0;
/// Relative noise of the share of a host that others take.
const LOAD_NOISE: f64 = 0.1;
/// Noise of a crossing beside its bytes: its share of the round trip …
const RTT_NOISE: f64 = 0.2;
/// … and the scheduling delay of both ends.
const CROSSING_NOISE_SECONDS: f64 = 0.001;

/// Expected accuracy changes with the rates that entries count. A strategy chooses thresholds that
/// are just accurate enough, so a difference this small is no reason to leave a plan.
const ACCURACY_NOISE: f64 = 0.01;

/// The value of `plan` in `problem`.
pub(super) fn standing(problem: &Problem, plan: &Plan) -> Standing {
    let placement = placement_of(problem, problem::segments(plan));
    // With an unknown link nobody can say what it violates.
    let violations = if are_links_known(problem, &placement) {
        evaluate(problem, std::slice::from_ref(&placement))
            .err()
            .unwrap_or_default()
    } else {
        Vec::new()
    };
    Standing {
        metrics: figures(problem, &placement),
        violations,
    }
}

/// Latency and segment times as things are, whatever the limits.
pub(super) fn figures_of(problem: &Problem, segments: &[Segment]) -> Option<Metrics> {
    let segments = segments.iter().map(problem::segment).collect();
    figures(problem, &placement_of(problem, segments))
}

fn figures(problem: &Problem, placement: &solver::Placement) -> Option<Metrics> {
    let mut free = problem.clone();
    for node in &mut free.nodes {
        node.memory_bytes = u64::MAX;
        node.utilisation_cap = 1.0;
        node.excluded = None;
    }
    for workload in &mut free.workloads {
        workload.constraints = Constraints::default();
        workload.rate_per_second = 0.0;
        workload.previous = None;
    }
    evaluate(&free, std::slice::from_ref(placement)).ok()
}

/// A placement under the thresholds in force, which come first in their tables.
fn placement_of(problem: &Problem, segments: Vec<solver::Segment>) -> solver::Placement {
    let exits = problem.workloads.iter().flat_map(|w| &w.exits);
    let in_force = exits.filter_map(|exit| exit.table.first());
    solver::Placement {
        workload: WORKLOAD.to_owned(),
        segments,
        thresholds: in_force.map(|row| row.threshold).collect(),
    }
}

fn are_links_known(problem: &Problem, placement: &solver::Placement) -> bool {
    let entry = problem.workloads.first().map(|w| w.entry.as_str());
    let hosts = placement.segments.iter().map(|s| s.node.as_str());
    let path: Vec<&str> = entry.into_iter().chain(hosts).collect();
    path.windows(2)
        .filter(|w| w[0] != w[1])
        .all(|w| problem.link(w[0], w[1]).is_some() && problem.link(w[1], w[0]).is_some())
}

/// Whether `violation` breaks a constraint of the spec, rather than a speed or memory limit of the
/// moment.
pub(super) fn is_broken_wish(violation: &Violation) -> bool {
    match violation {
        Violation::Host { .. }
        | Violation::Blocks { .. }
        | Violation::TierOrder { .. }
        | Violation::Latency { .. }
        | Violation::NoLink { .. } => true,
        Violation::Bytes { what, .. } => *what == "slice limit",
        Violation::Accuracy {
            accuracy, floor, ..
        } => floor - accuracy > ACCURACY_NOISE,
        _ => false,
    }
}

/// Standard deviation, in seconds, of the difference between the latencies of two plans. Errors in
/// what both have in common, such as the same bytes over the same link, are equal in both and
/// cancel out.
pub(super) fn deviation_of_difference(
    links: &Links,
    problem: &Problem,
    a: &Metrics,
    b: &Metrics,
) -> f64 {
    let (a, b) = (Parts::of(a), Parts::of(b));
    let mut variance = 0.0;
    for (host, difference) in differences(&a.compute, &b.compute) {
        variance += (difference * compute_noise(problem, host)).powi(2);
    }
    for ((from, to), difference) in differences(&a.transfer, &b.transfer) {
        let noise = links
            .or_estimated(from, to)
            .map_or(UNKNOWN_NOISE, |v| v.noise);
        variance += (difference * noise).powi(2);
    }
    for ((from, to), count) in differences(&a.crossings, &b.crossings) {
        let rtt = links.or_estimated(from, to).and_then(|v| v.rtt_seconds);
        let noise = (rtt.unwrap_or(0.0) * RTT_NOISE).hypot(CROSSING_NOISE_SECONDS);
        variance += (count * noise).powi(2);
    }
    variance.sqrt()
}

/// Relative noise of a compute time on `host`: the load of others stretches it by `1 / (1 -
/// share)`, so the fuller a host is, the more an error of that share matters.
fn compute_noise(problem: &Problem, host: &str) -> f64 {
    let node = problem.nodes.iter().find(|n| n.name == host);
    let share = node.map_or(0.0, |n| n.load_share);
    COMPUTE_NOISE.hypot(LOAD_NOISE * share / (1.0 - share))
}

/// Where a plan spends its time.
#[derive(Default)]
struct Parts<'a> {
    compute: BTreeMap<&'a str, f64>,
    transfer: BTreeMap<(&'a str, &'a str), f64>,
    crossings: BTreeMap<(&'a str, &'a str), f64>,
}

impl<'a> Parts<'a> {
    fn of(metrics: &'a Metrics) -> Self {
        let mut parts = Self::default();
        for workload in &metrics.workloads {
            for s in &workload.segments {
                *parts.compute.entry(&s.node).or_default() += s.compute_seconds;
            }
            for c in &workload.crossings {
                let pair = (c.from.as_str(), c.to.as_str());
                *parts.transfer.entry(pair).or_default() += c.transfer_seconds;
                *parts.crossings.entry(pair).or_default() += 1.0;
            }
        }
        parts
    }
}

/// By how much one side exceeds the other, for each key.
fn differences<K: Ord + Copy>(
    a: &BTreeMap<K, f64>,
    b: &BTreeMap<K, f64>,
) -> impl Iterator<Item = (K, f64)> {
    let mut all = a.clone();
    for (key, value) in b {
        *all.entry(*key).or_default() -= value;
    }
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;
    use lamina_placement::{Node, Tier};

    #[test]
    fn the_time_on_a_full_host_is_known_less_well() {
        let mut node = Node::new("edge-1", Tier::Edge, 0);
        let mut noise = |share| {
            node.load_share = share;
            let problem = Problem {
                nodes: vec![node.clone()],
                ..Problem::default()
            };
            compute_noise(&problem, "edge-1")
        };
        assert!((noise(0.0) - COMPUTE_NOISE).abs() < 1e-9);
        assert!(noise(0.5) > 1.3 * COMPUTE_NOISE);
        assert!(noise(0.9) > 0.9, "{}", noise(0.9));
    }

    #[test]
    fn speed_and_memory_of_the_moment_break_no_wish() {
        let plan = plan(3, &[("cam-1", 0..2), ("edge-1", 2..4)]);
        let placement = placement_of(&Problem::default(), problem::segments(&plan));
        assert_eq!(placement.path(), "cam-1[0-1]→edge-1[2-3]");
        let limit = |what| Violation::Bytes {
            node: "cam-1".into(),
            what,
            used: 2,
            limit: 1,
        };
        assert!(is_broken_wish(&limit("slice limit")));
        assert!(!is_broken_wish(&limit("memory")));
        let accuracy = |accuracy| Violation::Accuracy {
            workload: WORKLOAD.into(),
            accuracy,
            floor: 0.9,
        };
        assert!(is_broken_wish(&accuracy(0.85)));
        assert!(!is_broken_wish(&accuracy(0.899)));
    }
}
