//! Compiled metrics that are sums over blocks and crossings: what a block adds on a node, and a
//! crossing between two.

use super::traffic::Traffic;
use crate::objective::{Criterion, Objective};
use crate::problem::{Problem, Workload};
use std::collections::HashMap;

/// The parts of the objective.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Aim {
    /// Sums, with their weights.
    pub sum: Vec<(Criterion, f64)>,
    /// The worst of several places, with its weight.
    pub worst: Option<(Criterion, f64)>,
}

impl Aim {
    /// Of an objective; for a ranked one, of its first criterion.
    pub(crate) fn of(objective: &Objective) -> Self {
        let mut aim = Self::default();
        for term in objective.terms() {
            if term.criterion.is_worst() {
                aim.worst = Some((term.criterion, term.weight));
            } else {
                aim.sum.push((term.criterion, term.weight));
            }
        }
        aim
    }

    /// Whether the aim is the sustainable rate.
    pub(crate) fn is_rate(&self) -> bool {
        matches!(self.worst, Some((Criterion::Throughput, _)))
    }
}

/// Cost of a crossing, as coefficients of the pair of nodes' properties.
#[derive(Debug, Clone, Default)]
pub(crate) struct Toll {
    /// Per second of round trip, by the block after the cut.
    pub trip: Vec<f64>,
    /// Per second that a byte takes in the request's direction.
    pub forth: Vec<f64>,
    /// Per second that a byte takes in the reply's direction.
    pub back: Vec<f64>,
    /// Per joule of the expected bytes.
    pub joules: f64,
    /// Per unit of money of the expected bytes.
    pub money: f64,
    /// Added by cutting before a block with the previous one on a node, `[block][node]`; empty if
    /// no block has a penalty.
    pub cut: Vec<f64>,
}

/// A sum over one chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measure {
    /// Per block and node; infinite if there is no measured time.
    pub cost: Vec<f64>,
    /// Per crossing.
    pub toll: Toll,
}

/// The input of a measure.
pub(super) struct Source<'a> {
    pub problem: &'a Problem,
    pub workload: &'a Workload,
    pub traffic: &'a Traffic,
    pub index: &'a HashMap<&'a str, usize>,
    /// Share of this workload among all requests.
    pub share: f64,
    /// Which node has which block now, loaded or on its disk, `[block][node]`; empty without a
    /// previous placement.
    pub at_hand: &'a [bool],
}

impl Source<'_> {
    /// The weighted sum of criteria as in the objective.
    pub(super) fn weighted(&self, terms: &[(Criterion, f64)]) -> Measure {
        let mut measure = self.empty();
        for (criterion, weight) in terms {
            let per_request = match criterion {
                Criterion::Latency | Criterion::TailLatency => {
                    self.charge_moves(&mut measure, weight * self.workload.weight);
                    weight * self.workload.weight
                }
                _ => weight * self.share,
            };
            self.add(&mut measure, *criterion, per_request);
        }
        measure
    }

    /// Expected latency in plain seconds.
    pub(super) fn latency(&self) -> Measure {
        let mut measure = self.empty();
        self.add(&mut measure, Criterion::Latency, 1.0);
        measure
    }

    fn empty(&self) -> Measure {
        let (n, l) = (self.problem.nodes.len(), self.workload.blocks.len());
        let mut cost = vec![f64::INFINITY; l * n];
        let mut penalty = false;
        for (b, block) in self.workload.blocks.iter().enumerate() {
            for (name, c) in &block.costs {
                if let Some(i) = self.index.get(name.as_str()) {
                    cost[b * n + i] = 0.0;
                    penalty |= c.cut_penalty_seconds > 0.0;
                }
            }
        }
        Measure {
            cost,
            toll: Toll {
                trip: vec![0.0; l],
                forth: vec![0.0; l],
                back: vec![0.0; l],
                joules: 0.0,
                money: 0.0,
                cut: if penalty {
                    vec![0.0; l * n]
                } else {
                    Vec::new()
                },
            },
        }
    }

    fn add(&self, measure: &mut Measure, criterion: Criterion, weight: f64) {
        let n = self.problem.nodes.len();
        let tail = criterion == Criterion::TailLatency;
        let reach = |b: usize| if tail { 1.0 } else { self.traffic.reach[b] };
        for (b, block) in self.workload.blocks.iter().enumerate() {
            for (name, cost) in &block.costs {
                let Some(&i) = self.index.get(name.as_str()) else {
                    continue;
                };
                let per_second = weight * self.per_second(criterion, i);
                measure.cost[b * n + i] += reach(b) * cost.seconds * per_second;
                if !measure.toll.cut.is_empty() && b + 1 < self.workload.blocks.len() {
                    measure.toll.cut[(b + 1) * n + i] +=
                        reach(b + 1) * cost.cut_penalty_seconds * per_second;
                }
            }
            let toll = &mut measure.toll;
            match criterion {
                Criterion::Latency => {
                    toll.trip[b] += weight * self.traffic.reach[b];
                    toll.forth[b] += weight * self.traffic.bytes[b];
                    toll.back[b] += weight * self.traffic.reply[b];
                }
                Criterion::TailLatency => {
                    toll.trip[b] += weight;
                    toll.forth[b] += weight * self.traffic.live[b];
                    toll.back[b] += weight * self.traffic.output;
                }
                _ => {}
            }
        }
        match criterion {
            Criterion::Energy => measure.toll.joules += weight,
            Criterion::Money => measure.toll.money += weight,
            _ => {}
        }
    }

    /// Weight of a second of computing on an idle node.
    fn per_second(&self, criterion: Criterion, node: usize) -> f64 {
        let node = &self.problem.nodes[node];
        match criterion {
            Criterion::Latency | Criterion::TailLatency => (1.0 - node.load_share).recip(),
            Criterion::Energy => node.active_watts,
            Criterion::Money => node.price_per_second,
            Criterion::Throughput | Criterion::Fairness | Criterion::ProportionalFairness => 0.0,
        }
    }

    fn charge_moves(&self, measure: &mut Measure, weight: f64) {
        let Some(previous) = &self.workload.previous else {
            return;
        };
        let n = self.problem.nodes.len();
        let per_byte = weight * previous.move_seconds_per_byte;
        for (b, block) in self.workload.blocks.iter().enumerate() {
            for i in (0..n).filter(|i| !self.at_hand[b * n + i]) {
                measure.cost[b * n + i] += per_byte * block.slice_bytes as f64;
            }
        }
    }
}
