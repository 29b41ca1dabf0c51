//! Why this split and no other, as data that command line, status and dashboard print.

use super::others::{self, Alternative, Baseline};
use super::queue::waiting_seconds;
use super::reason_alone;
use super::relief::{Relief, what_helps};
use crate::limits::Ctx;
use crate::problem::Problem;
use crate::solution::{Certificate, Metrics, Placement, Solution, WorkloadMetrics};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// A place used above this share of its limit is reported.
const TIGHT: f64 = 0.9;
/// Share of the time for the alternatives.
const ALTERNATIVES_SHARE: f64 = 0.5;

/// All reasons for a placement and against the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The strategy that gave it.
    pub strategy: String,
    /// Its certificate.
    pub certificate: Certificate,
    /// Its objective, in the objective's unit.
    pub objective: f64,
    /// The way of a request, workload by workload.
    pub workloads: Vec<Way>,
    /// Places nearly at their limit, the tightest first.
    pub tight: Vec<Tight>,
    /// Limits without which a better placement would exist.
    pub binding: Vec<Relief>,
    /// The best alternatives, cheapest first.
    pub alternatives: Vec<Alternative>,
    /// The whole model on the best node of each tier, with the same encoding of its input and
    /// replies.
    pub baselines: Vec<Baseline>,
    /// Nodes that host nothing, and why.
    pub unused: Vec<Unused>,
}

/// The path of one workload's requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The workload.
    pub workload: String,
    /// [`Placement::path`].
    pub path: String,
    /// Expected latency in seconds, without waiting.
    pub latency_seconds: f64,
    /// Expected seconds of waiting, estimated; `None` if a place has more work than time.
    pub queue_seconds: Option<f64>,
    /// Its stretches in order.
    pub stretches: Vec<Stretch>,
}

/// A stretch of blocks on a node, with the crossing that leads to it. All times
/// are expected seconds per request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stretch {
    /// The node.
    pub node: String,
    /// Its blocks.
    pub blocks: Vec<usize>,
    /// Probability that a request gets there.
    pub reach: f64,
    /// Bytes that cross to it; 0 without a crossing.
    pub bytes: u64,
    /// Seconds of latency there and back.
    pub round_trip_seconds: f64,
    /// Seconds of sending request and reply.
    pub transfer_seconds: f64,
    /// Seconds of computing.
    pub compute_seconds: f64,
    /// Seconds of waiting for node and link, estimated; `None` if there is more work than time.
    pub queue_seconds: Option<f64>,
    /// Joules for computing and sending.
    pub energy_joules: f64,
    /// Money for computing and sending.
    pub money: f64,
}

/// A place and a resource that it is nearly out of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tight {
    /// `edge-1`, `cam-1→edge-1` or a workload.
    pub place: String,
    /// `memory`, `memory during the switch`, `compute`, `bandwidth`, `latency`.
    pub what: String,
    /// Used, as a share of the limit.
    pub share: f64,
}

/// A node that hosts nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unused {
    /// The node.
    pub node: String,
    /// Why.
    pub reason: String,
    /// A lower bound on the objective of placements that use it, if it was computed.
    pub at_least: Option<f64>,
}

/// Explains a solution; `None` if it has no placement (then use [`super::why_infeasible`]). `ctx`
/// bounds the solves for alternatives and binding limits; if cut short, there are fewer of them.
pub fn explain(problem: &Problem, solution: &Solution, ctx: &Ctx) -> Option<Explanation> {
    let metrics = solution.metrics.as_ref()?;
    let alternatives = others::alternatives(problem, solution, &ctx.part(ALTERNATIVES_SHARE));
    let best = alternatives
        .iter()
        .map(|a| a.objective)
        .fold(metrics.objective, f64::min);
    let ways = solution.placements.iter().zip(&metrics.workloads);
    Some(Explanation {
        strategy: solution.strategy.clone(),
        certificate: solution.certificate,
        objective: metrics.objective,
        workloads: ways.map(|(p, w)| way(problem, metrics, p, w)).collect(),
        tight: tight(problem, metrics),
        binding: what_helps(problem, Some(best), ctx),
        alternatives,
        baselines: others::baselines(problem, ctx),
        unused: unused(problem, metrics, ctx),
    })
}

fn way(
    problem: &Problem,
    metrics: &Metrics,
    placement: &Placement,
    workload: &WorkloadMetrics,
) -> Way {
    let stretches: Vec<Stretch> = workload
        .segments
        .iter()
        .map(|segment| {
            let first = segment.blocks.first().copied();
            let mut crossings = workload.crossings.iter();
            let crossing = crossings.find(|x| Some(x.before_block) == first);
            let of = |value: fn(&crate::CrossingMetrics) -> f64| crossing.map_or(0.0, value);
            let node = problem.nodes.iter().find(|n| n.name == segment.node);
            let used = metrics.nodes.iter().find(|n| n.node == segment.node);
            let computing = node.zip(used).map_or(0.0, |(node, used)| {
                waiting_seconds(segment.compute_seconds, used.utilisation, node.concurrency)
            });
            let sending = crossing.map_or(0.0, |x| {
                let link = metrics
                    .links
                    .iter()
                    .find(|l| l.from == x.from && l.to == x.to);
                waiting_seconds(x.transfer_seconds, link.map_or(0.0, |l| l.utilisation), 1)
            });
            Stretch {
                node: segment.node.clone(),
                blocks: segment.blocks.clone(),
                reach: segment.reach,
                bytes: crossing.map_or(0, |x| x.bytes),
                round_trip_seconds: of(|x| x.round_trip_seconds),
                transfer_seconds: of(|x| x.transfer_seconds),
                compute_seconds: segment.compute_seconds,
                queue_seconds: Some(computing + sending).filter(|s| s.is_finite()),
                energy_joules: segment.energy_joules + of(|x| x.energy_joules),
                money: segment.money + of(|x| x.money),
            }
        })
        .collect();
    Way {
        workload: workload.workload.clone(),
        path: placement.path(),
        latency_seconds: workload.latency_seconds,
        queue_seconds: stretches.iter().map(|s| s.queue_seconds).sum(),
        stretches,
    }
}

fn tight(problem: &Problem, metrics: &Metrics) -> Vec<Tight> {
    let mut all = Vec::new();
    let mut add = |place: &str, what: &str, used: f64, limit: f64| {
        let share = if limit > 0.0 { used / limit } else { 0.0 };
        if share >= TIGHT {
            all.push(Tight {
                place: place.to_owned(),
                what: what.to_owned(),
                share,
            });
        }
    };
    for used in &metrics.nodes {
        let Some(node) = problem.nodes.iter().find(|n| n.name == used.node) else {
            continue;
        };
        let room = node.memory_bytes as f64;
        let held = used.memory_bytes as f64;
        let during = used.transition_bytes as f64;
        add(&used.node, "memory", held, room);
        if during > held {
            add(&used.node, "memory during the switch", during, room);
        }
        add(
            &used.node,
            "compute",
            used.utilisation,
            node.utilisation_cap,
        );
    }
    for used in &metrics.links {
        let limit = problem.link(&used.from, &used.to).map_or(0.0, |l| l.share);
        let place = format!("{}→{}", used.from, used.to);
        add(&place, "bandwidth", used.utilisation, limit);
    }
    for (workload, found) in problem.workloads.iter().zip(&metrics.workloads) {
        if let Some(limit) = workload.constraints.latency_limit_seconds {
            add(&workload.name, "latency", found.latency_seconds, limit);
        }
    }
    all.sort_by(|a, b| b.share.total_cmp(&a.share));
    all
}

fn unused(problem: &Problem, metrics: &Metrics, ctx: &Ctx) -> Vec<Unused> {
    let used: BTreeSet<&str> = metrics.nodes.iter().map(|n| n.node.as_str()).collect();
    let bounds = others::bounds_of_use(problem, ctx);
    let idle = problem.nodes.iter().enumerate();
    idle.filter(|(_, node)| !used.contains(node.name.as_str()))
        .map(|(i, node)| {
            let at_least = bounds.as_ref().map(|b| b[i]);
            let reason = never(problem, node).unwrap_or_else(|| match at_least {
                Some(f64::INFINITY) => "no way leads there and back".to_owned(),
                Some(bound) if bound >= metrics.objective => {
                    "no placement that uses it is better".to_owned()
                }
                Some(_) => "it could only help if limits that are shared allowed it".to_owned(),
                None => "the placement found does without it".to_owned(),
            });
            Unused {
                node: node.name.clone(),
                reason,
                at_least: at_least.filter(|b| b.is_finite()),
            }
        })
        .collect()
}

/// Why a node can host no block at all, if so.
fn never(problem: &Problem, node: &crate::Node) -> Option<String> {
    let mut first = None;
    for workload in &problem.workloads {
        for b in 0..workload.blocks.len() {
            let reason = reason_alone(workload, node, b)?;
            first.get_or_insert(reason);
        }
    }
    first
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for way in &self.workloads {
            write!(
                f,
                "{}: {}, {}",
                way.workload,
                way.path,
                ms(way.latency_seconds)
            )?;
            match way.queue_seconds {
                Some(wait) => writeln!(f, " and {} of waiting", ms(wait))?,
                None => writeln!(f, ", and more work than time")?,
            }
            for s in &way.stretches {
                let network = s.round_trip_seconds + s.transfer_seconds;
                writeln!(
                    f,
                    "  {}: compute {}, network {}",
                    s.node,
                    ms(s.compute_seconds),
                    ms(network)
                )?;
            }
        }
        for t in &self.tight {
            writeln!(
                f,
                "tight: {} of {} at {:.0} %",
                t.what,
                t.place,
                t.share * 100.0
            )?;
        }
        for b in &self.binding {
            writeln!(f, "without {}: {:.6}", b.limit, b.objective)?;
        }
        for a in &self.alternatives {
            writeln!(f, "{}: {} {:.6}", a.change, a.paths.join(", "), a.objective)?;
        }
        for b in &self.baselines {
            match (&b.objective, &b.why_not) {
                (Some(o), _) => writeln!(f, "all on {}: {} {o:.6}", b.tier, b.paths.join(", "))?,
                (None, why) => {
                    writeln!(
                        f,
                        "all on {}: {}",
                        b.tier,
                        why.as_deref().unwrap_or("unknown")
                    )?;
                }
            }
        }
        for u in &self.unused {
            writeln!(f, "not {}: {}", u.node, u.reason)?;
        }
        Ok(())
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}
