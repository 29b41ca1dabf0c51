//! `first-fit`: every block in order on the first node that still has room, the fastest nodes first
//! (the `ffd` strategy of Reisinger's addnn, 2022, after Johnson, "Near-optimal bin packing
//! algorithms", 1973). Considers no cost but the nodes' speed, and never revises a choice.

use super::parameters::no_parameters;
use super::rows;
use super::turns::{Effort, Turn, in_turn};
use crate::dense::{COMPUTE, KINDS};
use crate::limits::{Ctx, SolveOptions};
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;
use std::collections::HashMap;

#[derive(Debug)]
struct FirstFit;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("first-fit", parameters)?;
    Ok(Box::new(FirstFit))
}

impl Strategy for FirstFit {
    fn name(&self) -> &str {
        "first-fit"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let choices = rows::choices(problem, self.name())?;
        let mut effort = Effort::new(options, ctx);
        Ok(in_turn(
            problem,
            &choices,
            "first fit",
            &mut effort,
            |turn, effort| {
                let nodes = fill(turn, effort)?;
                turn.value(&nodes).map(|value| (value, nodes))
            },
        ))
    }
}

/// The needs of the blocks placed so far.
struct Filling<'a> {
    turn: &'a Turn<'a>,
    nodes: [Vec<f64>; KINDS],
    links: HashMap<usize, f64>,
    budgets: Vec<f64>,
}

/// A node per block, or `None` if a block does not fit.
fn fill(turn: &Turn<'_>, effort: &mut Effort<'_>) -> Option<Vec<usize>> {
    let order = fastest_first(turn);
    let mut filling = Filling {
        turn,
        nodes: std::array::from_fn(|_| vec![0.0; turn.dense.n]),
        links: HashMap::new(),
        budgets: vec![0.0; turn.dense.budgets.len()],
    };
    let mut offset = 0;
    for k in 0..turn.k {
        let l = turn.dense.chains[k].l;
        filling.take_all(k, &turn.before[offset..offset + l]);
        offset += l;
    }
    let mut at = turn.chain().entry;
    let mut nodes = Vec::new();
    for b in 0..turn.chain().l {
        let first = order.iter().copied().find(|to| filling.fits(b, at, *to))?;
        filling.take(turn.k, b, at, first);
        nodes.push(first);
        at = first;
        if !effort.spend() {
            return None;
        }
    }
    Some(nodes)
}

/// Nodes by their mean time per block that they can run.
fn fastest_first(turn: &Turn<'_>) -> Vec<usize> {
    let blocks = &turn.problem.workloads[turn.k].blocks;
    let mean = |name: &str| {
        let times: Vec<f64> = blocks
            .iter()
            .filter_map(|b| Some(b.costs.get(name)?.seconds))
            .collect();
        if times.is_empty() {
            f64::INFINITY
        } else {
            times.iter().sum::<f64>() / times.len() as f64
        }
    };
    let nodes = turn.problem.nodes.iter().enumerate();
    let mut order: Vec<(f64, usize)> = nodes
        .map(|(i, node)| (mean(&node.name) / (1.0 - node.load_share), i))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    order.into_iter().map(|(_, i)| i).collect()
}

impl Filling<'_> {
    /// What block `b` adds on `to` after `at`, by link.
    fn loads(&self, k: usize, b: usize, at: usize, to: usize) -> [(usize, f64); 2] {
        let dense = self.turn.dense;
        let chain = &dense.chains[k];
        let (there, back) = (at * dense.n + to, to * dense.n + at);
        if at == to {
            return [(there, 0.0), (back, 0.0)];
        }
        [
            (there, chain.rate * chain.bytes[b] * dense.forth_load[there]),
            (back, chain.rate * chain.reply[b] * dense.back_load[there]),
        ]
    }

    fn charge(&self, k: usize, z: usize, b: usize, at: usize, to: usize) -> f64 {
        let dense = self.turn.dense;
        let measure = &dense.budgets[z].measures[k];
        let toll = dense.toll(&dense.chains[k], &measure.toll, b, at, to);
        measure.cost[b * dense.n + to] + toll
    }

    fn fits(&self, b: usize, at: usize, to: usize) -> bool {
        let (dense, chain, k) = (self.turn.dense, self.turn.chain(), self.turn.k);
        let place = b * dense.n + to;
        let possible = chain.cost[place] + dense.crossing(chain, b, at, to) < f64::INFINITY;
        let room = |kind: usize| {
            let need = &chain.need[kind];
            need.is_empty() || self.nodes[kind][to] + need[place] <= dense.room(chain, kind, to)
        };
        let link = |(link, load): &(usize, f64)| {
            load + self.links.get(link).copied().unwrap_or(0.0) <= dense.link_capacity
        };
        let budget =
            |z: usize| self.budgets[z] + self.charge(k, z, b, at, to) <= dense.budgets[z].limits[k];
        let leaves = at == to || chain.cut_load.is_empty() || {
            let cut = chain.cut_load[b * dense.n + at];
            self.nodes[COMPUTE][at] + cut <= dense.room(chain, COMPUTE, at)
        };
        possible
            && leaves
            && (0..KINDS).all(room)
            && self.loads(k, b, at, to).iter().all(link)
            && (0..self.budgets.len()).all(budget)
    }

    fn take(&mut self, k: usize, b: usize, at: usize, to: usize) {
        let dense = self.turn.dense;
        let chain = &dense.chains[k];
        for (used, need) in self.nodes.iter_mut().zip(&chain.need) {
            if !need.is_empty() {
                used[to] += need[b * dense.n + to];
            }
        }
        if at != to && !chain.cut_load.is_empty() {
            self.nodes[COMPUTE][at] += chain.cut_load[b * dense.n + at];
        }
        for (link, load) in self.loads(k, b, at, to) {
            *self.links.entry(link).or_default() += load;
        }
        for z in 0..self.budgets.len() {
            self.budgets[z] += self.charge(k, z, b, at, to);
        }
    }

    /// Fills in an earlier workload: its slices and own budgets do not count further.
    fn take_all(&mut self, k: usize, nodes: &[usize]) {
        let dense = self.turn.dense;
        let mut at = dense.chains[k].entry;
        for (b, &to) in nodes.iter().enumerate() {
            self.take(k, b, at, to);
            at = to;
        }
        self.nodes[crate::dense::SLICES].fill(0.0);
        for (spent, budget) in self.budgets.iter_mut().zip(&dense.budgets) {
            if !budget.total {
                *spent = 0.0;
            }
        }
    }
}
