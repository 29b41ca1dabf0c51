//! `dads`: a minimum cut between the entry and one other host (Hu et al.,
//! "Dynamic adaptive DNN surgery for inference acceleration on the edge", INFOCOM
//! 2019, the lightly loaded case).
//!
//! Here blocks run in one order and every live value crosses with a change of
//! hosts, so the graph has an arc each way between neighbouring blocks with the cost
//! of crossing there; unlike in the paper, a cut may come back. Exact for two hosts
//! unless a shared limit binds, which is then reported; the best of several cloud
//! nodes (or other hosts, if there is none) is taken.

use super::min_cut::Graph;
use super::parameters::no_parameters;
use super::rows;
use super::turns::{Effort, Turn, in_turn, not_applicable};
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Tier;
use crate::solution::{Answer, Certificate};
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

/// Relative difference below which the cut is reached.
const TOLERANCE: f64 = 1e-9;

#[derive(Debug)]
struct Dads;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("dads", parameters)?;
    Ok(Box::new(Dads))
}

impl Strategy for Dads {
    fn name(&self) -> &str {
        "dads"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        if problem.objective.criteria().iter().any(|c| c.is_worst()) {
            let reason =
                "a cut has a sum and no worst place; use `throughput`, `fair` or `optimal`";
            return Err(not_applicable(self.name(), reason));
        }
        if problem.nodes.len() < 2 {
            return Err(not_applicable(self.name(), "there is no second host"));
        }
        let choices = rows::choices(problem, self.name())?;
        let mut effort = Effort::new(options, ctx);
        let mut bound = f64::INFINITY;
        let mut broken = false;
        let two = problem.nodes.len() == 2 && problem.workloads.len() == 1;
        let mut answer = in_turn(
            problem,
            &choices,
            "minimum cut",
            &mut effort,
            |turn, effort| {
                let cuts = all_cuts(turn, effort);
                for (value, _) in &cuts {
                    bound = bound.min(*value);
                }
                let fit = cuts
                    .iter()
                    .find_map(|(_, nodes)| Some((turn.value(nodes)?, nodes)));
                broken |= fit.is_none() && !cuts.is_empty();
                fit.map(|(value, nodes)| (value, nodes.clone()))
            },
        );
        if answer.placements.is_empty() && broken {
            return Err(not_applicable(
                self.name(),
                "every minimum cut breaks a limit that a cut does not know (memory, slices, \
                 rate or latency); use `optimal`",
            ));
        }
        if let Some(value) = answer.objective.filter(|_| two && !effort.is_over()) {
            let ranked = problem.objective.ranks().len() > 1;
            if !ranked {
                answer.certificate = Certificate::of(value, Some(bound), TOLERANCE);
            }
        }
        Ok(answer)
    }
}

/// The minimum cut with each host, cheapest first.
fn all_cuts(turn: &Turn<'_>, effort: &mut Effort<'_>) -> Vec<(f64, Vec<usize>)> {
    let clouds = turn.others(|n| n.tier == Tier::Cloud);
    let hosts = if clouds.is_empty() {
        turn.others(|_| true)
    } else {
        clouds
    };
    let mut cuts = Vec::new();
    for host in hosts {
        cuts.extend(minimum_cut(turn, host));
        if !effort.spend() {
            break;
        }
    }
    cuts.sort_by(|a, b| a.0.total_cmp(&b.0));
    cuts
}

/// The cheapest way to divide the blocks between the entry and `host`; `None` if some block can run
/// on neither.
fn minimum_cut(turn: &Turn<'_>, host: usize) -> Option<(f64, Vec<usize>)> {
    let (dense, chain) = (turn.dense, turn.chain());
    let (n, l, entry) = (dense.n, chain.l, chain.entry);
    let at = |b: usize, i: usize| chain.cost[b * n + i];
    let forth = |b: usize| dense.crossing(chain, b, entry, host);
    let back = |b: usize| dense.crossing(chain, b, host, entry);
    let finite = |c: &f64| c.is_finite();
    let all = (0..l).flat_map(|b| [at(b, entry), at(b, host), forth(b), back(b)]);
    let never = 1.0 + 2.0 * all.filter(finite).sum::<f64>();
    let cap = |c: f64| if c.is_finite() { c } else { never };
    let (source, sink) = (l, l + 1);
    let mut graph = Graph::new(l + 2);
    for b in 0..l {
        let before = if b == 0 { source } else { b - 1 };
        let back = if b == 0 { 0.0 } else { cap(back(b)) };
        graph.join(before, b, cap(forth(b)), back);
        graph.join(source, b, cap(at(b, host)), 0.0);
        graph.join(b, sink, cap(at(b, entry)), 0.0);
    }
    let (value, here) = graph.cut(source, sink);
    let nodes = (0..l).map(|b| if here[b] { entry } else { host }).collect();
    (value < never).then_some((value, nodes))
}
