//! The exact method: run-feasible Viterbi, then prices on capacities (Lagrangian relaxation) with
//! fixing, and labels from both ends of a chain that meet in the middle, where that applies; then
//! A* over labels from one end until the answer is proved or the limits are reached. The bound
//! holds in any case.

mod halves;
mod labels;
mod question;
mod reduce;
mod regroup;
mod resources;
mod subgradient;
mod tables;
mod terms;
#[cfg(test)]
mod tests;
mod wide;

pub(crate) use question::as_question;
pub(crate) use terms::{Exact, Outcome, Tuning};

use crate::dense::Dense;
use crate::limits::Ctx;
use crate::milp::{self, Goal};
use halves::Hunt;
use labels::{Ahead, IMPROVEMENT, Search};
use question::worst_cost;
use reduce::{restrict, restrict_prices, through};
use regroup::Regroup;
use subgradient::Ascent;
use tables::{Prices, Relaxed, Table, backward, forward, priced, trace_backward};

/// Rounds after which to search from both ends, and with how many labels: most small problems need
/// no better prices.
const HUNTS: [(usize, u64); 3] = [(15, 1_500), (40, 3_000), (80, 10_000)];
/// Labels from both ends before any price is computed.
const FIRST_HUNT: u64 = 300;
/// Width of the beams that search for placements.
const BEAM: usize = 64;
/// Widths of the last beams before the proof.
const LAST_BEAMS: [usize; 3] = [64, 256, 1024];

/// Share of the remaining time for labels before branch and bound starts, and for that before
/// labels continue: if labels succeed, they mostly do so early.
const LABELS_SHARE: f64 = 0.12;
/// The same if labels from both ends have stalled already.
const STALLED_SHARE: f64 = 0.02;
const MILP_SHARE: f64 = 0.6;
/// Share of the remaining time for regrouping workloads before prices are computed, and after.
const FIRST_REGROUP_SHARE: f64 = 0.15;
const REGROUP_SHARE: f64 = 0.5;
/// Branch-and-bound nodes without a deadline.
const MILP_NODES: u64 = 2_000;
/// Error tolerance of branch and bound.
const MILP_TOLERANCE: f64 = 1e-6;

impl Exact<'_> {
    /// Solves a compiled problem.
    pub(crate) fn solve(&self, dense: &Dense) -> Outcome {
        if dense.n > self.tuning.wide {
            wide::solve(self, dense)
        } else {
            self.solve_narrow(dense)
        }
    }

    fn solve_narrow(&self, dense: &Dense) -> Outcome {
        let mut state = State::new(self, dense);
        let stage = state.run();
        let (best, bound) = (state.best, state.bound);
        let limit = best.as_ref().map_or(self.cutoff, |b| b.0);
        Outcome {
            bound: if state.complete {
                limit
            } else {
                bound.min(limit)
            },
            best,
            complete: state.complete,
            stage,
            work: state.work,
            nodes_left: state.ids.len(),
        }
    }
}

/// A solve in progress; the problem shrinks as places are ruled out.
struct State<'a> {
    how: &'a Exact<'a>,
    /// The original problem.
    whole: &'a Dense,
    dense: Dense,
    ids: Vec<usize>,
    best: Option<(f64, Vec<usize>)>,
    bound: f64,
    complete: bool,
    work: u64,
    /// Least that each budget will still be charged.
    ahead: Vec<Ahead>,
    /// Whether to search from both ends: there is one chain without budgets, the best is wanted,
    /// and no search from both ends gave an invalid result.
    hunts: bool,
}

impl<'a> State<'a> {
    fn new(how: &'a Exact<'a>, dense: &'a Dense) -> Self {
        let mut state = Self {
            how,
            whole: dense,
            ids: (0..dense.n).collect(),
            dense: dense.clone(),
            best: how.start.clone().filter(|s| s.0 < how.cutoff),
            bound: f64::NEG_INFINITY,
            complete: false,
            work: 0,
            ahead: Vec::new(),
            hunts: dense.chains.len() == 1
                && dense.budgets.is_empty()
                && !how.any
                && how.tuning.halves > 0,
        };
        state.set_ahead();
        state
    }

    /// Without them (the limits were reached) budgets are checked on whole placements only. That
    /// proves nothing wrongly, since a search that is cut short proves nothing.
    fn set_ahead(&mut self) {
        let free = Prices::zero(&self.dense);
        let all: Option<Vec<Ahead>> = (0..self.dense.budgets.len())
            .map(|z| {
                let counted = as_cost(&self.dense, z);
                let tables: Option<Vec<Table>> = (0..counted.chains.len())
                    .map(|k| {
                        let cost = priced(&counted, k, &free);
                        backward(&counted, k, &cost, &free, self.how.ctx)
                    })
                    .collect();
                Some(Ahead::new(tables?, self.dense.budgets[z].total))
            })
            .collect();
        self.ahead = all.unwrap_or_default();
    }

    fn cutoff(&self) -> f64 {
        self.best.as_ref().map_or(self.how.cutoff, |b| b.0)
    }

    fn improve(&mut self, cost: f64, path: &[usize]) {
        let old = path.iter().map(|i| self.ids[*i]).collect();
        self.improve_whole(cost, old);
    }

    /// As [`Self::improve`], with the original node ordinals.
    fn improve_whole(&mut self, cost: f64, path: Vec<usize>) {
        let cutoff = self.cutoff();
        if cutoff == f64::INFINITY || cost < cutoff - IMPROVEMENT * cutoff.abs() {
            self.best = Some((cost, path));
        }
    }

    fn done(&self) -> bool {
        let cutoff = self.cutoff();
        (self.how.any && self.best.is_some())
            || (cutoff < f64::INFINITY && cutoff - self.bound <= IMPROVEMENT * cutoff.abs())
    }

    /// Runs the passes; returns the name of the one that ended it.
    fn run(&mut self) -> &'static str {
        let free = Prices::zero(&self.dense);
        let Some(first) = self.relax(&free) else {
            return "viterbi";
        };
        if self.complete {
            return "viterbi";
        }
        if self.hunt(&free, FIRST_HUNT) {
            return "halves";
        }
        if !self.hunts {
            self.beam(&free, &first.tables, BEAM / 4);
            let quick = self.how.tuning.quick_labels;
            if self.finished() || self.prove(&free, &first.tables, quick, 1.0) {
                return "labels";
            }
        }
        self.regroup(FIRST_REGROUP_SHARE);
        if self.finished() {
            return "regroup";
        }
        let Some(mut prices) = self.ascend() else {
            return "halves";
        };
        if self.complete {
            return "lagrangian";
        }
        let Some(last) = self.relax(&prices) else {
            return "lagrangian";
        };
        if self.hunt(&prices, self.how.tuning.halves) {
            return "halves";
        }
        if !self.is_joint() {
            for width in LAST_BEAMS {
                if !self.finished() && (self.how.tuning.thorough || width == BEAM) {
                    self.beam(&prices, &last.tables, width);
                }
            }
        }
        self.regroup(REGROUP_SHARE);
        if self.finished() {
            return "labels";
        }
        if let Some((n, ids)) = self.fix(&last, &prices) {
            prices = restrict_prices(&prices, n, &ids);
        }
        let Some(last) = self.relax(&prices) else {
            return "lagrangian";
        };
        let labels = self.how.tuning.labels;
        let left = self.how.max_work.saturating_sub(self.work).min(labels);
        let share = if self.hunts {
            STALLED_SHARE
        } else {
            LABELS_SHARE
        };
        if self.finished() || self.prove(&prices, &last.tables, left, share) {
            return "labels";
        }
        self.hand_over();
        let left = self.how.max_work.saturating_sub(self.work).min(labels);
        let over = self.how.ctx.expired() || left == 0 || !self.how.tuning.thorough;
        if self.finished() || over {
            return if self.how.tuning.thorough {
                "milp"
            } else {
                "labels"
            };
        }
        self.prove(&prices, &last.tables, left, 1.0);
        "labels"
    }

    /// Whether too many workloads are placed together for beams over all of them.
    fn is_joint(&self) -> bool {
        self.dense.chains.len() > 2 && self.how.tuning.thorough
    }

    /// Repeatedly re-places a few of several workloads.
    fn regroup(&mut self, share_of_time: f64) {
        let done = self.complete || (self.how.any && self.best.is_some());
        if self.dense.chains.len() < 2 || !self.how.tuning.thorough || done {
            return;
        }
        let ctx = self.how.ctx.part(share_of_time);
        let left = self.how.max_work.saturating_sub(self.work);
        let mut search = Regroup::new(self.how, self.whole, &ctx, left / 2);
        let start = self.best.as_ref().map(|b| b.1.clone());
        let enough = if self.how.any {
            f64::INFINITY
        } else {
            self.bound + IMPROVEMENT * self.bound.abs()
        };
        let found = search.search(start, enough);
        self.work += search.work;
        if let Some((cost, path)) = found {
            self.improve_whole(cost, path);
        }
        self.finished();
    }

    /// If labels stall, branch and bound continues on the rest.
    fn hand_over(&mut self) {
        let nodes = if self.how.ctx.remaining().is_some() {
            u64::MAX
        } else {
            MILP_NODES
        };
        let over = self.how.ctx.expired() || self.work >= self.how.max_work;
        if over || !self.how.tuning.thorough {
            return;
        }
        let cutoff = self.cutoff();
        let ctx = self.how.ctx.part(MILP_SHARE);
        let Ok(found) = milp::solve(&self.dense, Goal::Cost, cutoff, nodes, &ctx) else {
            // Too large or numerically too hard: keep the labels' result.
            return;
        };
        self.work += found.nodes;
        if let Some(path) = &found.path
            && let Some(cost) = self.dense.evaluate(path)
        {
            self.improve(cost, path);
        }
        self.bound = self.bound.max(found.bound * (1.0 - MILP_TOLERANCE));
        self.complete = found.complete;
    }

    /// Searches from both ends, if that applies; true if it settled the question.
    fn hunt(&mut self, prices: &Prices, max_labels: u64) -> bool {
        if !self.hunts || self.finished() {
            return self.complete;
        }
        let left = self.how.max_work.saturating_sub(self.work);
        let hunt = Hunt {
            dense: &self.dense,
            prices,
            bound: self.bound,
            cutoff: self.cutoff(),
            max_labels: max_labels.min(self.how.tuning.halves).min(left),
            ctx: self.how.ctx,
        };
        let caught = hunt.run();
        self.bound = self.bound.max(caught.bound);
        self.hunts = self.take(caught.best, caught.labels);
        self.complete = caught.complete && self.hunts;
        self.finished()
    }

    fn finished(&mut self) -> bool {
        self.complete = self.complete || self.done();
        self.complete
    }

    /// Solves the relaxation under `prices`: raises the bound, tries its path. `None` if it proves
    /// that there is nothing (more) to find, or if the limits are reached.
    fn relax(&mut self, prices: &Prices) -> Option<Relaxed> {
        self.work += 1;
        let costs = self.priced_costs(prices);
        let tables: Vec<Table> = costs
            .iter()
            .enumerate()
            .map(|(k, cost)| backward(&self.dense, k, cost, prices, self.how.ctx))
            .collect::<Option<_>>()?;
        let total: f64 = tables.iter().map(|t| t.best).sum();
        if total == f64::INFINITY {
            self.complete = true;
            return None;
        }
        let value = total - prices.spent(&self.dense);
        self.bound = self.bound.max(value);
        let paths: Vec<Vec<usize>> = costs
            .iter()
            .enumerate()
            .map(|(k, cost)| trace_backward(&self.dense, k, cost, prices, &tables[k]))
            .collect::<Option<_>>()?;
        let path = paths.concat();
        if let Some(cost) = self.dense.evaluate(&path) {
            self.improve(cost, &path);
        }
        self.finished();
        Some(Relaxed {
            costs,
            tables,
            paths,
            value,
        })
    }

    fn priced_costs(&self, prices: &Prices) -> Vec<Vec<f64>> {
        (0..self.dense.chains.len())
            .map(|k| priced(&self.dense, k, prices))
            .collect()
    }

    fn beam(&mut self, prices: &Prices, tables: &[Table], width: usize) {
        let cutoff = self.cutoff();
        let search = Search::new(&self.dense, prices, tables, &self.ahead, self.how.any);
        let found = search.beam(width, cutoff, &self.how.ctx.part(0.25));
        self.take(found.best, found.labels);
    }

    /// A* with a limit on labels and time; true if it settled the question.
    fn prove(
        &mut self,
        prices: &Prices,
        tables: &[Table],
        max_labels: u64,
        share_of_time: f64,
    ) -> bool {
        let cutoff = self.cutoff();
        let search = Search::new(&self.dense, prices, tables, &self.ahead, self.how.any);
        let ctx = self.how.ctx.part(share_of_time);
        let found = search.prove(cutoff, max_labels, &ctx);
        self.bound = self.bound.max(found.bound);
        let sound = self.take(found.best, found.labels);
        self.complete = found.complete && sound;
        self.finished()
    }

    /// Uses the result of a search; false if it overlooked a constraint, so that it proves nothing.
    fn take(&mut self, best: Option<(f64, Vec<usize>)>, labels: u64) -> bool {
        self.work += labels;
        let Some((_, path)) = best else {
            return true;
        };
        match self.dense.evaluate(&path) {
            Some(cost) => {
                self.improve(cost, &path);
                true
            }
            None => false,
        }
    }

    /// Raises prices where capacity is overdrawn; returns the best ones. `None` if a search from
    /// both ends settled the question meanwhile.
    fn ascend(&mut self) -> Option<Prices> {
        let mut ascent = Ascent::new(&self.dense);
        let worst = worst_cost(&self.dense);
        for round in 0..self.how.tuning.rounds {
            if self.how.ctx.expired() || self.work > self.how.max_work {
                break;
            }
            let Some(relaxed) = self.relax(&ascent.prices.clone()) else {
                break;
            };
            self.complete = self.complete || self.bound > worst;
            let pause = HUNTS.iter().find(|(after, _)| *after == round);
            if let Some((_, labels)) = pause
                && self.hunt(&ascent.best, *labels)
            {
                return None;
            }
            let beams = !self.hunts || HUNTS.iter().all(|(after, _)| *after < round);
            if round % 25 == 1 && beams && !self.complete && !self.is_joint() {
                self.beam(&ascent.prices.clone(), &relaxed.tables, BEAM);
            }
            if self.finished() || !ascent.step(&self.dense, &relaxed, self.cutoff()) {
                break;
            }
            if round % 10 == 0 && self.cutoff() < f64::INFINITY {
                let prices = ascent.last.clone();
                if let Some((n, ids)) = self.fix(&relaxed, &prices) {
                    ascent.restrict(n, &ids);
                }
            }
        }
        Some(ascent.best)
    }

    /// Rules out every place that cannot be part of anything cheaper than the best. Returns the
    /// number of nodes before and which are left.
    fn fix(&mut self, relaxed: &Relaxed, prices: &Prices) -> Option<(usize, Vec<usize>)> {
        let n = self.dense.n;
        let cutoff = self.cutoff();
        let before: Option<Vec<Table>> = relaxed
            .costs
            .iter()
            .enumerate()
            .map(|(k, cost)| {
                let all = |_, _| 0.0;
                forward(
                    &self.dense,
                    k,
                    cost,
                    prices,
                    f64::INFINITY,
                    all,
                    self.how.ctx,
                )
            })
            .collect();
        let before = before?;
        let keep = |k: usize, b: usize, i: usize| {
            let others = relaxed.value - relaxed.tables[k].best;
            through(&before[k], &relaxed.tables[k], b, i, n) + others < cutoff
        };
        let (dense, ids) = restrict(&self.dense, keep);
        self.ahead = self.ahead.iter().map(|a| a.restrict(n, &ids)).collect();
        self.ids = ids.iter().map(|i| self.ids[*i]).collect();
        self.dense = dense;
        Some((n, ids))
    }
}

/// For each node, a lower bound on placements with a block there: the best run-feasible path
/// through it. `None` if the limits were reached.
pub(crate) fn bounds_through_nodes(dense: &Dense, ctx: &Ctx) -> Option<Vec<f64>> {
    let (n, free) = (dense.n, Prices::zero(dense));
    let mut pairs = Vec::new();
    for k in 0..dense.chains.len() {
        let cost = priced(dense, k, &free);
        let after = backward(dense, k, &cost, &free, ctx)?;
        let before = forward(dense, k, &cost, &free, f64::INFINITY, |_, _| 0.0, ctx)?;
        pairs.push((before, after));
    }
    let total: f64 = pairs.iter().map(|(_, after)| after.best).sum();
    let mut least = vec![f64::INFINITY; n];
    if total == f64::INFINITY {
        return Some(least);
    }
    for (chain, (before, after)) in dense.chains.iter().zip(&pairs) {
        for b in 0..chain.l {
            for (i, least) in least.iter_mut().enumerate() {
                let own = through(before, after, b, i, n);
                *least = least.min(total - after.best + own);
            }
        }
    }
    Some(least)
}

/// The problem with a budget's measure as its cost.
fn as_cost(dense: &Dense, budget: usize) -> Dense {
    let mut counted = dense.clone();
    for (chain, measure) in counted
        .chains
        .iter_mut()
        .zip(&dense.budgets[budget].measures)
    {
        for (cost, counts) in chain.cost.iter_mut().zip(&measure.cost) {
            if *cost < f64::INFINITY {
                *cost = *counts;
            }
        }
        chain.toll.clone_from(&measure.toll);
    }
    counted
}
