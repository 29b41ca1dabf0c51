//! The independent checker: computes the cost and every constraint of a placement from the problem
//! alone. It shares no code with the strategies, so that a fault in one of them cannot hide here.

use crate::problem::{Link, Node, Problem, Transition, Workload};
use crate::solution::{
    Answer, Bottleneck, CrossingMetrics, LinkMetrics, Metrics, NodeMetrics, Placement, Segment,
    SegmentMetrics, Status, WorkloadMetrics,
};
use std::collections::BTreeMap;

mod claims;
mod reckon;

pub use claims::check_answer;
use reckon::{
    Odds, at_hand_before, live_bytes, memory_after, memory_before, memory_loaded, odds,
    output_bytes,
};

/// Relative tolerance for rounding in every comparison.
const ROUNDING: f64 = 1e-9;

/// A fault of a placement or a claim.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Violation {
    /// Not one placement per workload, in the problem's order.
    #[error("placements are for {found:?}, expected {wanted:?}")]
    Workloads {
        /// The given ones.
        found: Vec<String>,
        /// The problem's.
        wanted: Vec<String>,
    },
    /// The segments are not the blocks in order, each once.
    #[error("{workload}: segments do not hold blocks 0..{blocks} in order, each once")]
    Blocks {
        /// The workload.
        workload: String,
        /// Its number of blocks.
        blocks: usize,
    },
    /// Two neighbouring segments are on one node.
    #[error("{workload}: neighbouring segments both on {node} should be one")]
    NotMerged {
        /// The workload.
        workload: String,
        /// The node.
        node: String,
    },
    /// A threshold is not in its exit's table, or their number is wrong.
    #[error("{workload}: thresholds {thresholds:?} are not rows of the exits' tables")]
    Thresholds {
        /// The workload.
        workload: String,
        /// The given ones.
        thresholds: Vec<f64>,
    },
    /// A block is where it must not or cannot run.
    #[error("{workload}: block {block} cannot run on {node}: {reason}")]
    Host {
        /// The workload.
        workload: String,
        /// The block.
        block: usize,
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// A required link was never measured.
    #[error("{workload}: link {from}→{to} unmeasured")]
    NoLink {
        /// The workload.
        workload: String,
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
    },
    /// The tier goes down although it must not.
    #[error("{workload}: tier goes down from {from} to {to}")]
    TierOrder {
        /// The workload.
        workload: String,
        /// The node before.
        from: String,
        /// The node after.
        to: String,
    },
    /// A node would hold too many bytes.
    #[error("{node}: {what} takes {used} bytes of {limit}")]
    Bytes {
        /// The node.
        node: String,
        /// `memory`, `memory during the switch` or `slice limit`.
        what: &'static str,
        /// Bytes needed.
        used: u64,
        /// Bytes available.
        limit: u64,
    },
    /// A node or link would be too busy.
    #[error("{place}: utilisation {used:.4} is above {limit:.4}")]
    Busy {
        /// `edge-1` or `cam-1→edge-1`.
        place: String,
        /// Utilisation needed.
        used: f64,
        /// The limit.
        limit: f64,
    },
    /// The expected latency is above the limit.
    #[error("{workload}: latency {seconds} s is above the limit of {limit} s")]
    Latency {
        /// The workload.
        workload: String,
        /// Seconds expected.
        seconds: f64,
        /// Seconds allowed.
        limit: f64,
    },
    /// The expected accuracy is below the floor.
    #[error("{workload}: accuracy {accuracy} is below {floor}")]
    Accuracy {
        /// The workload.
        workload: String,
        /// Expected.
        accuracy: f64,
        /// Wanted.
        floor: f64,
    },
    /// A strategy's claim about its answer is wrong.
    #[error("claim refuted: {0}")]
    Claim(String),
}

/// Cost and metrics of a placement, or everything that is wrong with it.
///
/// # Errors
/// All violations found. A problem that does not pass
/// [`crate::validate`] may give meaningless violations, never a panic.
pub fn evaluate(problem: &Problem, placements: &[Placement]) -> Result<Metrics, Vec<Violation>> {
    let found: Vec<String> = placements.iter().map(|p| p.workload.clone()).collect();
    let wanted: Vec<String> = problem.workloads.iter().map(|w| w.name.clone()).collect();
    if found != wanted {
        return Err(vec![Violation::Workloads { found, wanted }]);
    }
    let mut tally = Tally::new(problem);
    for (workload, placement) in problem.workloads.iter().zip(placements) {
        tally.workload(workload, placement);
    }
    tally.finish(placements)
}

/// What one workload uses of the nodes and links.
struct Tally<'a> {
    problem: &'a Problem,
    nodes: BTreeMap<&'a str, &'a Node>,
    mix: f64,
    busy: BTreeMap<&'a str, Use>,
    sending: BTreeMap<(&'a str, &'a str), Use>,
    workloads: Vec<WorkloadMetrics>,
    wrong: Vec<Violation>,
}

/// Seconds of work: per second at the expected rates, and per request of the
/// mix.
#[derive(Default, Clone, Copy)]
struct Use {
    per_second: f64,
    per_request: f64,
}

impl<'a> Tally<'a> {
    fn new(problem: &'a Problem) -> Self {
        Self {
            problem,
            nodes: problem.nodes.iter().map(|n| (n.name.as_str(), n)).collect(),
            mix: problem.workloads.iter().map(|w| w.rate_per_second).sum(),
            busy: BTreeMap::new(),
            sending: BTreeMap::new(),
            workloads: Vec::new(),
            wrong: Vec::new(),
        }
    }

    /// Share of this workload among all requests.
    fn share_of_mix(&self, workload: &Workload) -> f64 {
        if self.mix > 0.0 {
            workload.rate_per_second / self.mix
        } else {
            1.0 / self.problem.workloads.len() as f64
        }
    }

    fn workload(&mut self, workload: &'a Workload, placement: &Placement) {
        if !self.shape_is_right(workload, placement) {
            return;
        }
        let Some(odds) = odds(workload, &placement.thresholds) else {
            self.wrong.push(Violation::Thresholds {
                workload: workload.name.clone(),
                thresholds: placement.thresholds.clone(),
            });
            return;
        };
        let mut at: &'a str = &workload.entry;
        let mut segments = Vec::new();
        let mut crossings = Vec::new();
        let mut longest = 0.0;
        for (i, segment) in placement.segments.iter().enumerate() {
            let Some((&name, _)) = self.nodes.get_key_value(segment.node.as_str()) else {
                self.host(workload, segment.blocks[0], &segment.node, "unknown node");
                return;
            };
            if at != name {
                if i > 0 {
                    self.tier_order(workload, at, name);
                }
                if let Some((crossing, whole)) =
                    self.crossing(workload, &odds, at, name, segment.blocks[0])
                {
                    longest += whole;
                    crossings.push(crossing);
                }
            }
            let last = i + 1 == placement.segments.len();
            let (metrics, whole) = self.segment(workload, &odds, name, &segment.blocks, last);
            longest += whole;
            segments.push(metrics);
            at = name;
        }
        self.totals(workload, placement, &odds, segments, crossings, longest);
    }

    fn shape_is_right(&mut self, workload: &Workload, placement: &Placement) -> bool {
        let blocks = workload.blocks.len();
        let given: Vec<usize> = placement
            .segments
            .iter()
            .flat_map(|s| s.blocks.iter().copied())
            .collect();
        let none_empty = placement.segments.iter().all(|s| !s.blocks.is_empty());
        if !none_empty || !given.iter().copied().eq(0..blocks) || blocks == 0 {
            self.wrong.push(Violation::Blocks {
                workload: workload.name.clone(),
                blocks,
            });
            return false;
        }
        for pair in placement.segments.windows(2) {
            if pair[0].node == pair[1].node {
                self.wrong.push(Violation::NotMerged {
                    workload: workload.name.clone(),
                    node: pair[0].node.clone(),
                });
            }
        }
        true
    }

    fn host(&mut self, workload: &Workload, block: usize, node: &str, reason: &str) {
        self.wrong.push(Violation::Host {
            workload: workload.name.clone(),
            block,
            node: node.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn tier_order(&mut self, workload: &Workload, from: &str, to: &str) {
        if workload.constraints.monotone_tiers && self.nodes[to].tier < self.nodes[from].tier {
            self.wrong.push(Violation::TierOrder {
                workload: workload.name.clone(),
                from: from.to_owned(),
                to: to.to_owned(),
            });
        }
    }

    /// The crossing before block `before`, and its seconds for a request that certainly crosses and
    /// runs to the end.
    fn crossing(
        &mut self,
        workload: &'a Workload,
        odds: &Odds,
        from: &'a str,
        to: &'a str,
        before: usize,
    ) -> Option<(CrossingMetrics, f64)> {
        let problem = self.problem;
        let (Some(there), Some(back)) = (problem.link(from, to), problem.link(to, from)) else {
            let missing = if problem.link(from, to).is_none() {
                (from, to)
            } else {
                (to, from)
            };
            self.wrong.push(Violation::NoLink {
                workload: workload.name.clone(),
                from: missing.0.to_owned(),
                to: missing.1.to_owned(),
            });
            return None;
        };
        let bytes = live_bytes(workload, before);
        let reach = odds.reach[before];
        let request = bytes as f64 / there.bytes_per_second;
        let (sent, received) = (reach * bytes as f64, odds.reply_bytes[before]);
        let reply = received / back.bytes_per_second;
        self.send(workload, (from, to), reach * request);
        self.send(workload, (to, from), reply);
        let latency = there.latency_seconds + back.latency_seconds;
        let last_reply = output_bytes(workload) as f64 / back.bytes_per_second;
        let crossing = CrossingMetrics {
            from: from.to_owned(),
            to: to.to_owned(),
            before_block: before,
            reach,
            bytes,
            round_trip_seconds: reach * latency,
            transfer_seconds: reach * request + reply,
            energy_joules: sent * there.joules_per_byte + received * back.joules_per_byte,
            money: sent * there.price_per_byte + received * back.price_per_byte,
        };
        Some((crossing, latency + request + last_reply))
    }

    fn send(&mut self, workload: &Workload, link: (&'a str, &'a str), seconds: f64) {
        let share = self.share_of_mix(workload);
        let used = self.sending.entry(link).or_default();
        used.per_second += workload.rate_per_second * seconds;
        used.per_request += share * seconds;
    }

    fn segment(
        &mut self,
        workload: &Workload,
        odds: &Odds,
        name: &'a str,
        blocks: &[usize],
        last: bool,
    ) -> (SegmentMetrics, f64) {
        let node = self.nodes[name];
        let (mut expected, mut whole, mut slice_bytes) = (0.0, 0.0, 0u64);
        for &b in blocks {
            let block = &workload.blocks[b];
            slice_bytes = slice_bytes.saturating_add(block.slice_bytes);
            for reason in reasons_against(workload, node, b) {
                self.host(workload, b, name, &reason);
            }
            if let Some(cost) = block.costs.get(name) {
                let cut = if !last && Some(&b) == blocks.last() {
                    cost.cut_penalty_seconds
                } else {
                    0.0
                };
                // A request that leaves right after the block never meets the cut.
                let crossing = odds.reach.get(b + 1).copied().unwrap_or(0.0);
                expected += odds.reach[b] * cost.seconds + crossing * cut;
                whole += cost.seconds + cut;
            }
        }
        let share = self.share_of_mix(workload);
        let used = self.busy.entry(name).or_default();
        let lanes = f64::from(node.concurrency.max(1));
        used.per_second += workload.rate_per_second * expected / lanes;
        used.per_request += share * expected / lanes;
        let free = 1.0 - node.load_share;
        let metrics = SegmentMetrics {
            node: name.to_owned(),
            blocks: blocks.to_vec(),
            reach: odds.reach[blocks[0]],
            compute_seconds: expected / free,
            energy_joules: expected * node.active_watts,
            money: expected * node.price_per_second,
            slice_bytes,
        };
        (metrics, whole / free)
    }

    fn totals(
        &mut self,
        workload: &Workload,
        placement: &Placement,
        odds: &Odds,
        segments: Vec<SegmentMetrics>,
        crossings: Vec<CrossingMetrics>,
        longest_seconds: f64,
    ) {
        let c = &workload.constraints;
        let compute_seconds: f64 = segments.iter().map(|s| s.compute_seconds).sum();
        let network_seconds: f64 = crossings
            .iter()
            .map(|x| x.round_trip_seconds + x.transfer_seconds)
            .sum();
        let latency_seconds = compute_seconds + network_seconds;
        if let Some(limit) = c.latency_limit_seconds
            && exceeds(latency_seconds, limit)
        {
            self.wrong.push(Violation::Latency {
                workload: workload.name.clone(),
                seconds: latency_seconds,
                limit,
            });
        }
        if let (Some(floor), Some(accuracy)) = (c.min_accuracy, odds.accuracy)
            && accuracy < floor - ROUNDING
        {
            self.wrong.push(Violation::Accuracy {
                workload: workload.name.clone(),
                accuracy,
                floor,
            });
        }
        self.slice_limits(workload, &placement.segments);
        let held = at_hand_before(workload);
        let moved_bytes: u64 = placement
            .segments
            .iter()
            .flat_map(|s| s.blocks.iter().map(move |b| (s.node.as_str(), *b)))
            .filter(|at| workload.previous.is_some() && !held.contains(at))
            .map(|(_, b)| workload.blocks[b].slice_bytes)
            .sum();
        let per_byte = workload
            .previous
            .as_ref()
            .map_or(0.0, |p| p.move_seconds_per_byte);
        self.workloads.push(WorkloadMetrics {
            workload: workload.name.clone(),
            latency_seconds,
            compute_seconds,
            network_seconds,
            longest_seconds,
            accuracy: odds.accuracy,
            moved_bytes,
            move_seconds: per_byte * moved_bytes as f64,
            energy_joules: segments.iter().map(|s| s.energy_joules).sum::<f64>()
                + crossings.iter().map(|x| x.energy_joules).sum::<f64>(),
            money: segments.iter().map(|s| s.money).sum::<f64>()
                + crossings.iter().map(|x| x.money).sum::<f64>(),
            segments,
            crossings,
        });
    }

    fn slice_limits(&mut self, workload: &Workload, segments: &[Segment]) {
        let c = &workload.constraints;
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for segment in segments {
            let bytes: u64 = segment
                .blocks
                .iter()
                .map(|b| workload.blocks[*b].slice_bytes)
                .fold(0, u64::saturating_add);
            let sum = held.entry(segment.node.as_str()).or_default();
            *sum = sum.saturating_add(bytes);
        }
        for (name, used) in held {
            let tier = self.nodes[name].tier;
            let limits = [
                c.tier_slice_limit_bytes.get(&tier),
                c.node_slice_limit_bytes.get(name),
            ];
            if let Some(&limit) = limits.into_iter().flatten().min()
                && used > limit
            {
                self.wrong.push(Violation::Bytes {
                    node: name.to_owned(),
                    what: "slice limit",
                    used,
                    limit,
                });
            }
        }
    }

    fn finish(mut self, placements: &[Placement]) -> Result<Metrics, Vec<Violation>> {
        if !self.wrong.is_empty() {
            return Err(self.wrong);
        }
        let nodes = self.node_metrics(placements);
        let links = self.link_metrics();
        if !self.wrong.is_empty() {
            return Err(self.wrong);
        }
        let weighted = |of: fn(&WorkloadMetrics) -> f64| -> f64 {
            let terms = self.problem.workloads.iter().zip(&self.workloads);
            terms.map(|(w, m)| w.weight * of(m)).sum()
        };
        let bottleneck = nodes
            .iter()
            .map(|n| (n.node.clone(), n.stage_seconds))
            .chain(
                links
                    .iter()
                    .map(|l| (format!("{}→{}", l.from, l.to), l.stage_seconds)),
            )
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(place, seconds)| Bottleneck { place, seconds });
        let per_request = |of: fn(&WorkloadMetrics) -> f64| -> f64 {
            let terms = self.problem.workloads.iter().zip(&self.workloads);
            terms.map(|(w, m)| self.share_of_mix(w) * of(m)).sum()
        };
        let highest = |of: &dyn Fn(&NodeMetrics) -> f64| nodes.iter().map(of).fold(0.0, f64::max);
        let mut metrics = Metrics {
            objective: 0.0,
            latency_seconds: weighted(|m| m.latency_seconds),
            tail_seconds: weighted(|m| m.longest_seconds),
            move_seconds: weighted(|m| m.move_seconds),
            energy_joules: per_request(|m| m.energy_joules),
            money: per_request(|m| m.money),
            utilisation: highest(&|n| n.utilisation),
            proportional_utilisation: highest(&|n| {
                let node = self.nodes[n.node.as_str()];
                (n.utilisation - node.load_share) / (node.utilisation_cap - node.load_share)
            }),
            bottleneck,
            workloads: Vec::new(),
            nodes: Vec::new(),
            links,
        };
        metrics.objective = value(self.problem, &metrics);
        metrics.workloads = self.workloads;
        metrics.nodes = nodes;
        Ok(metrics)
    }

    fn node_metrics(&mut self, placements: &[Placement]) -> Vec<NodeMetrics> {
        let problem = self.problem;
        let mut metrics = Vec::new();
        for (&name, used) in &self.busy {
            let node = self.nodes[name];
            let memory_bytes = memory_after(problem, placements, name);
            let loaded = memory_loaded(problem, placements, name);
            let transition_bytes = if loaded == 0 || problem.transition == Transition::Drain {
                memory_bytes
            } else {
                memory_before(problem, node).saturating_add(loaded)
            };
            for (what, used) in [
                ("memory", memory_bytes),
                ("memory during the switch", transition_bytes),
            ] {
                if used > node.memory_bytes {
                    self.wrong.push(Violation::Bytes {
                        node: name.to_owned(),
                        what,
                        used,
                        limit: node.memory_bytes,
                    });
                    break;
                }
            }
            let utilisation = node.load_share + used.per_second;
            let room = node.utilisation_cap - node.load_share;
            if room <= 0.0 || exceeds(used.per_second, room) {
                self.wrong.push(Violation::Busy {
                    place: name.to_owned(),
                    used: utilisation,
                    limit: node.utilisation_cap,
                });
            }
            metrics.push(NodeMetrics {
                node: name.to_owned(),
                memory_bytes,
                transition_bytes,
                utilisation,
                stage_seconds: used.per_request / room,
            });
        }
        metrics
    }

    fn link_metrics(&mut self) -> Vec<LinkMetrics> {
        let mut metrics = Vec::new();
        for (&(from, to), used) in &self.sending {
            let share = self.problem.link(from, to).map_or(0.0, |l: &Link| l.share);
            if exceeds(used.per_second, share) {
                self.wrong.push(Violation::Busy {
                    place: format!("{from}→{to}"),
                    used: used.per_second,
                    limit: share,
                });
            }
            metrics.push(LinkMetrics {
                from: from.to_owned(),
                to: to.to_owned(),
                utilisation: used.per_second,
                stage_seconds: used.per_request / share,
            });
        }
        metrics
    }
}

/// The objective's value.
fn value(problem: &Problem, metrics: &Metrics) -> f64 {
    let terms = problem.objective.terms();
    terms
        .iter()
        .map(|t| t.weight * metrics.criterion(t.criterion))
        .sum()
}

fn exceeds(used: f64, limit: f64) -> bool {
    used > limit + ROUNDING * limit.max(1e-3)
}

/// All reasons against block `b` on this node by itself.
fn reasons_against(workload: &Workload, node: &Node, b: usize) -> Vec<String> {
    let c = &workload.constraints;
    let mut reasons = Vec::new();
    let name = node.name.as_str();
    if let Some(reason) = &node.excluded {
        reasons.push(reason.clone());
    }
    if !workload.blocks[b].costs.contains_key(name) {
        reasons.push("no measured time".to_owned());
    }
    if b < c.keep_first_on_entry && name != workload.entry {
        reasons.push("it must stay on the entry".to_owned());
    }
    if c.allowed_tiers
        .as_ref()
        .is_some_and(|t| !t.contains(&node.tier))
    {
        reasons.push(format!("tier={} excluded", node.tier));
    }
    if c.pins.iter().any(|p| p.block == b && p.node != name) {
        reasons.push("it is pinned to another node".to_owned());
    }
    if c.forbidden.iter().any(|f| f.block == b && f.node == name) {
        reasons.push("it is forbidden there".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests;
