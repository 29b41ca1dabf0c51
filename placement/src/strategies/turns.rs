//! Shared by the strategies from the literature: workloads placed one after the other, each by
//! trying candidates that a rule allows.

use super::rows;
use crate::dense::{Chain, Dense, Rows};
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Problem;
use crate::solution::{Answer, Certificate, Placement, Stats};
use crate::strategy::SolveError;
use std::ops::RangeInclusive;

/// Limits of a solve, and what was spent.
pub(super) struct Effort<'a> {
    ctx: &'a Ctx,
    limit: u64,
    spent: u64,
}

impl<'a> Effort<'a> {
    pub(super) fn new(options: &SolveOptions, ctx: &'a Ctx) -> Self {
        Self {
            ctx,
            limit: options.work_limit.unwrap_or(u64::MAX),
            spent: 0,
        }
    }

    /// Counts one unit; false if the limits are reached.
    pub(super) fn spend(&mut self) -> bool {
        self.spent += 1;
        self.spent <= self.limit && !(self.spent.is_multiple_of(64) && self.ctx.expired())
    }

    pub(super) fn is_over(&self) -> bool {
        self.spent >= self.limit || self.ctx.expired()
    }

    pub(super) fn stats(&self, stage: &str, problem: &Problem) -> Stats {
        Stats {
            stage: stage.to_owned(),
            work: self.spent,
            nodes_left: problem.nodes.len(),
        }
    }
}

/// One workload's turn.
pub(super) struct Turn<'a> {
    pub problem: &'a Problem,
    pub dense: &'a Dense,
    /// Which workload.
    pub k: usize,
    /// Nodes of the workloads placed before it.
    pub before: &'a [usize],
}

impl Turn<'_> {
    pub(super) fn chain(&self) -> &Chain {
        &self.dense.chains[self.k]
    }

    /// Other nodes for which `is_host` holds.
    pub(super) fn others(&self, is_host: impl Fn(&crate::Node) -> bool) -> Vec<usize> {
        let nodes = self.problem.nodes.iter().enumerate();
        nodes
            .filter(|(i, node)| *i != self.chain().entry && is_host(node))
            .map(|(i, _)| i)
            .collect()
    }

    /// Objective with these nodes for its blocks; `None` if a limit is broken.
    pub(super) fn value(&self, nodes: &[usize]) -> Option<f64> {
        self.dense.value(&[self.before, nodes].concat())
    }

    /// The best split: the first blocks on the entry, the others on one host, with the cut before a
    /// block in `cuts` (the number of blocks: no cut).
    pub(super) fn best_split(
        &self,
        hosts: &[usize],
        cuts: RangeInclusive<usize>,
        effort: &mut Effort<'_>,
    ) -> Option<(f64, Vec<usize>)> {
        let (dense, chain, n) = (self.dense, self.chain(), self.dense.n);
        let entry = chain.entry;
        let mut prefix = vec![0.0; chain.l + 1];
        for b in 0..chain.l {
            prefix[b + 1] = prefix[b] + chain.cost[b * n + entry];
        }
        let is_sum = dense.aim.worst.is_none();
        let (mut best, mut least): (Option<(f64, Vec<usize>)>, f64) = (None, f64::INFINITY);
        let mut attempt = |cut: usize, host: usize, sum: f64| {
            // Only sums can be compared without evaluating the whole.
            if sum == f64::INFINITY || (is_sum && sum >= least) {
                return true;
            }
            let mut nodes = vec![entry; cut];
            nodes.resize(chain.l, host);
            if let Some(value) = self.value(&nodes)
                && best.as_ref().is_none_or(|b| value < b.0)
            {
                least = sum;
                best = Some((value, nodes));
            }
            effort.spend()
        };
        let mut going = !cuts.contains(&chain.l) || attempt(chain.l, entry, prefix[chain.l]);
        for &host in hosts {
            let mut rest = 0.0;
            for cut in (0..chain.l).rev() {
                rest += chain.cost[cut * n + host];
                if going && cuts.contains(&cut) {
                    let crossing = dense.crossing(chain, cut, entry, host);
                    going = attempt(cut, host, prefix[cut] + crossing + rest);
                }
            }
        }
        best
    }
}

/// Places the workloads one after the other under each choice of thresholds by `rule`, and returns
/// the best result. Proves nothing.
pub(super) fn in_turn(
    problem: &Problem,
    choices: &[Vec<Rows>],
    stage: &str,
    effort: &mut Effort<'_>,
    mut rule: impl FnMut(&Turn<'_>, &mut Effort<'_>) -> Option<(f64, Vec<usize>)>,
) -> Answer {
    let mut best: Option<(f64, Vec<Placement>)> = None;
    for rows in choices {
        if effort.is_over() && best.is_some() {
            break;
        }
        let dense = Dense::new(problem, rows);
        let (mut path, mut value) = (Vec::new(), None);
        for k in 0..dense.chains.len() {
            let turn = Turn {
                problem,
                dense: &dense,
                k,
                before: &path,
            };
            let found = rule(&turn, effort);
            value = found.as_ref().map(|f| f.0);
            let Some((_, nodes)) = found else {
                break;
            };
            path.extend(nodes);
        }
        if let Some(value) = value
            && best.as_ref().is_none_or(|b| value < b.0)
        {
            best = Some((value, dense.placements(problem, rows, &path)));
        }
    }
    feasible(best, effort.stats(stage, problem))
}

/// An answer without proof.
pub(super) fn feasible(best: Option<(f64, Vec<Placement>)>, stats: Stats) -> Answer {
    match best {
        None => Answer::none(Certificate::UNKNOWN, stats),
        Some((value, placements)) => Answer {
            placements,
            objective: Some(value),
            certificate: Certificate::of(value, None, 0.0),
            stats,
        },
    }
}

/// As [`rows::choices`], for strategies that need exits.
pub(super) fn choices_with_exits(
    problem: &Problem,
    strategy: &str,
) -> Result<Vec<Vec<Rows>>, SolveError> {
    match problem.workloads.iter().find(|w| w.exits.is_empty()) {
        Some(workload) => Err(not_applicable(
            strategy,
            format!("workload `{}` has no side exit", workload.name),
        )),
        None => rows::choices(problem, strategy),
    }
}

pub(super) fn not_applicable(strategy: &str, reason: impl Into<String>) -> SolveError {
    SolveError::NotApplicable {
        strategy: strategy.to_owned(),
        reason: reason.into(),
    }
}
