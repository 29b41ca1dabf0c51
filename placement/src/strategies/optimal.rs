//! `optimal`: the exact method with a certificate, for every objective there
//! is. Run-feasible Viterbi, Lagrangian relaxation and fixing, then label
//! setting with dominance (Irnich and Desaulniers, "Shortest path problems with
//! resource constraints", 2005).

use super::{no_parameters, rows};
use crate::dense::{COMPUTE, Dense, LOADING, Rows};
use crate::exact::{Exact, Outcome, Tuning};
use crate::problem::{Objective, Problem, Transition};
use crate::solution::{Answer, Certificate, Placement, Stats};
use crate::strategy::{Ctx, Parameters, SolveError, SolveOptions, Strategy};
use crate::validate::ValidProblem;

/// Relative difference below which a bound counts as reached.
const TOLERANCE: f64 = 2e-9;
/// Relative step below the best bottleneck at which its optimality is asked.
const BOTTLENECK_STEP: f64 = 1e-8;
/// While the bound is further off than this, the bottleneck is bisected.
const BISECT_ABOVE: f64 = 1.02;

#[derive(Debug)]
struct Optimal;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("optimal", parameters)?;
    Ok(Box::new(Optimal))
}

impl Strategy for Optimal {
    fn name(&self) -> &str {
        "optimal"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let mut run = Run {
            problem,
            ctx,
            max_work: options.work_limit.unwrap_or(u64::MAX),
            best: None,
            bound: f64::INFINITY,
            stats: Stats::default(),
        };
        for rows in rows::choices(problem, self.name())? {
            let dense = Dense::new(problem, &rows);
            run.try_previous(&dense, &rows);
            match problem.objective {
                Objective::Latency => run.latency(&dense, &rows),
                Objective::Throughput => run.bottleneck(&dense, &rows),
            }
        }
        Ok(run.answer())
    }
}

/// One solve over all choices of thresholds.
struct Run<'a> {
    problem: &'a Problem,
    ctx: &'a Ctx,
    max_work: u64,
    best: Option<Best>,
    /// No placement is better than the smaller of this and the best.
    bound: f64,
    stats: Stats,
}

struct Best {
    value: f64,
    placements: Vec<Placement>,
}

impl Run<'_> {
    fn cutoff(&self) -> f64 {
        self.best.as_ref().map_or(f64::INFINITY, |b| b.value)
    }

    fn improve(&mut self, dense: &Dense, rows: &[Rows], value: f64, path: &[usize]) {
        self.best = Some(Best {
            value,
            placements: dense.placements(self.problem, rows, path),
        });
    }

    /// What runs now wins every tie, so that an unchanged world stays as it is.
    fn try_previous(&mut self, dense: &Dense, rows: &[Rows]) {
        if let Some(path) = dense.previous_path()
            && let Some(value) = dense.value(self.problem, &path)
            && value <= self.cutoff() * (1.0 + TOLERANCE)
        {
            self.improve(dense, rows, value, &path);
        }
    }

    fn exact<'c>(&self, ctx: &'c Ctx, cutoff: f64, any: bool) -> Exact<'c> {
        Exact {
            tuning: Tuning::default(),
            ctx,
            max_work: self.max_work.saturating_sub(self.stats.work),
            cutoff,
            any,
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.stats.work += outcome.work;
        self.stats.nodes_left = outcome.nodes_left;
        outcome.stage.clone_into(&mut self.stats.stage);
    }

    fn latency(&mut self, dense: &Dense, rows: &[Rows]) {
        if self.loads_depend_on_each_other() {
            // Several workloads, of which each may stay as it is and then loads
            // nothing: not a sum over blocks. A relaxation gives the bound.
            let mut relaxed = dense.clone();
            for chain in &mut relaxed.chains {
                chain.need[LOADING] = Vec::new();
            }
            let outcome = self.exact(self.ctx, self.cutoff(), false).solve(&relaxed);
            self.count(&outcome);
            self.bound = self.bound.min(outcome.bound);
            if let Some((_, path)) = outcome.best
                && let Some(value) = dense.value(self.problem, &path)
                && value < self.cutoff()
            {
                self.improve(dense, rows, value, &path);
            }
        }
        let outcome = self.exact(self.ctx, self.cutoff(), false).solve(dense);
        self.count(&outcome);
        if !self.loads_depend_on_each_other() {
            self.bound = self.bound.min(outcome.bound);
        }
        if let Some((value, path)) = outcome.best {
            self.improve(dense, rows, value, &path);
        }
    }

    fn loads_depend_on_each_other(&self) -> bool {
        let workloads = &self.problem.workloads;
        self.problem.transition == Transition::Separate
            && workloads.len() > 1
            && workloads.iter().any(|w| w.previous.is_some())
    }

    /// The smallest bottleneck: asks again and again whether a placement stays
    /// below some value everywhere, first by bisection, at last just below the
    /// best.
    fn bottleneck(&mut self, dense: &Dense, rows: &[Rows]) {
        let mix: f64 = dense.chains.iter().map(|c| c.rate).sum();
        let mut bound = 0.0;
        if self.best.is_none() {
            let first = self.exact(self.ctx, f64::INFINITY, true).solve(dense);
            self.count(&first);
            match first.best {
                Some((_, path)) => self.accept(dense, rows, &path),
                None => {
                    if !first.complete {
                        self.bound = 0.0;
                    }
                    return;
                }
            }
        }
        loop {
            let best = self.cutoff();
            let nearly = best * (1.0 - BOTTLENECK_STEP);
            if bound >= nearly || best == 0.0 {
                self.bound = self.bound.min(best);
                return;
            }
            let target = if best > bound * BISECT_ABOVE {
                f64::midpoint(best, bound).min(nearly)
            } else {
                nearly
            };
            let outcome = self
                .exact(self.ctx, f64::INFINITY, true)
                .solve(&lowered(dense, target, mix));
            self.count(&outcome);
            match outcome.best {
                Some((_, path)) => {
                    let before = best;
                    self.accept(dense, rows, &path);
                    if self.cutoff() >= before {
                        self.bound = self.bound.min(bound);
                        return;
                    }
                }
                None if outcome.complete => bound = target,
                None => {
                    self.bound = self.bound.min(bound);
                    return;
                }
            }
        }
    }

    fn accept(&mut self, dense: &Dense, rows: &[Rows], path: &[usize]) {
        if let Some(value) = dense.value(self.problem, path)
            && value < self.cutoff()
        {
            self.improve(dense, rows, value, path);
        }
    }

    fn answer(self) -> Answer {
        let Some(best) = self.best else {
            return Answer {
                placements: Vec::new(),
                objective: None,
                certificate: if self.bound == f64::INFINITY {
                    Certificate::INFEASIBLE
                } else {
                    Certificate::UNKNOWN
                },
                stats: self.stats,
            };
        };
        let bound = self.bound.min(best.value);
        Answer {
            placements: best.placements,
            objective: Some(best.value),
            certificate: Certificate::of(best.value, Some(bound), BOTTLENECK_STEP * 2.0),
            stats: self.stats,
        }
    }
}

/// The problem with every capacity lowered to what a bottleneck of `seconds`
/// leaves.
fn lowered(dense: &Dense, seconds: f64, mix: f64) -> Dense {
    let mut low = dense.clone();
    for (capacity, free) in low.capacity[COMPUTE].iter_mut().zip(&dense.free_compute) {
        *capacity = capacity.min(seconds * mix * free);
    }
    low.link_capacity = low.link_capacity.min(seconds * mix);
    low
}
