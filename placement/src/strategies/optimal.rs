//! `optimal`: the exact method with a certificate, for every objective. Run-feasible
//! Viterbi, Lagrangian relaxation and fixing, then label setting with dominance
//! (Irnich and Desaulniers, "Shortest path problems with resource constraints",
//! 2005), for a single workload from both ends (Righini and Salani, 2006).
//!
//! If several workloads share the nodes, a few at a time are re-placed on what the
//! others leave (large neighbourhood search: Shaw, 1998); the bound is that of the
//! prices on what they share.
//!
//! A maximum over several places is minimized by repeatedly asking whether any
//! placement stays below a value and within every limit; a sum with such a term by
//! lowering that value from one optimum of the sum to the next (Haimes et al., "On a
//! bicriterion formulation", 1971); ranked criteria one after the other, each kept
//! within its tolerance.

mod worst;

use super::parameters::no_parameters;
use super::rows;
use crate::dense::{Aim, Dense, LOADING, Rows};
use crate::exact::{Exact, Outcome, Tuning};
use crate::limits::{Ctx, SolveOptions};
use crate::objective::{Criterion, Objective, RankedCriterion};
use crate::problem::{Problem, Transition};
use crate::solution::{Answer, Certificate, Placement, Stats, Status};
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

/// Relative step below the best at which its optimality is tested.
const STEP: f64 = 1e-8;
/// Relative difference below which a bound counts as reached.
const TOLERANCE: f64 = 2e-9;
/// Tolerance for rounding when a ranked criterion is held to its best value.
const RANK_SLACK: f64 = 4e-9;

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
        let choices = rows::choices(problem, self.name())?;
        Ok(solve(problem, &choices, options, ctx).answer)
    }
}

/// An answer with its origin.
pub(super) struct Solved {
    pub answer: Answer,
    /// Choice of thresholds and node per block.
    pub place: Option<(usize, Vec<usize>)>,
}

/// Solves for the problem's objective under the given choices of thresholds.
pub(super) fn solve(
    problem: &Problem,
    choices: &[Vec<Rows>],
    options: &SolveOptions,
    ctx: &Ctx,
) -> Solved {
    let mut run = Run {
        problem,
        choices,
        ctx,
        max_work: options.work_limit.unwrap_or(u64::MAX),
        seed: options.seed,
        aim: Aim::of(&problem.objective),
        caps: Vec::new(),
        best: None,
        bound: f64::INFINITY,
        stats: Stats::default(),
    };
    run.over_all();
    match &problem.objective {
        Objective::Lexicographic(ranks) if ranks.len() > 1 && run.best.is_some() => {
            run.by_rank(ranks)
        }
        _ => run.solved(),
    }
}

/// One solve over all choices of thresholds.
struct Run<'a> {
    problem: &'a Problem,
    choices: &'a [Vec<Rows>],
    ctx: &'a Ctx,
    max_work: u64,
    seed: u64,
    aim: Aim,
    /// Criteria of earlier ranks, and their limits.
    caps: Vec<(Criterion, f64)>,
    best: Option<Best>,
    /// No placement is better than the smaller of this and the best.
    bound: f64,
    stats: Stats,
}

#[derive(Clone)]
struct Best {
    value: f64,
    choice: usize,
    path: Vec<usize>,
    placements: Vec<Placement>,
}

/// The searched problem under one choice of thresholds.
struct Question<'a> {
    /// The full one.
    full: &'a Dense,
    /// The searched one: the same, or a relaxation.
    searched: &'a Dense,
    choice: usize,
    /// Whether bounds found hold for the full problem.
    binding: bool,
}

impl Run<'_> {
    fn over_all(&mut self) {
        for choice in 0..self.choices.len() {
            let dense = self.compile(choice);
            self.try_previous(&dense, choice);
            self.search(&dense, choice);
        }
    }

    fn compile(&self, choice: usize) -> Dense {
        Dense::aimed(self.problem, &self.choices[choice], &self.aim, &self.caps)
    }

    fn cutoff(&self) -> f64 {
        self.best.as_ref().map_or(f64::INFINITY, |b| b.value)
    }

    fn improve(&mut self, dense: &Dense, choice: usize, value: f64, path: &[usize]) {
        let rows = &self.choices[choice];
        self.best = Some(Best {
            value,
            choice,
            path: path.to_vec(),
            placements: dense.placements(self.problem, rows, path),
        });
    }

    /// Accepts a path if it is better; returns whether it was.
    fn accept(&mut self, question: &Question<'_>, path: &[usize]) -> bool {
        match question.full.value(path) {
            Some(value) if value < self.cutoff() => {
                self.improve(question.full, question.choice, value, path);
                true
            }
            _ => false,
        }
    }

    /// The current placement wins every tie, so that an unchanged world stays as it is.
    fn try_previous(&mut self, dense: &Dense, choice: usize) {
        if let Some(path) = dense.previous_path()
            && let Some(value) = dense.value(&path)
            && value <= self.cutoff() * (1.0 + TOLERANCE)
        {
            self.improve(dense, choice, value, &path);
        }
    }

    fn exact(&mut self, dense: &Dense, cutoff: f64) -> Outcome {
        let exact = Exact {
            tuning: Tuning::default(),
            ctx: self.ctx,
            max_work: self.max_work.saturating_sub(self.stats.work),
            cutoff,
            any: false,
            start: None,
            seed: self.seed,
        };
        let outcome = exact.solve(dense);
        self.count(&outcome);
        outcome
    }

    fn count(&mut self, outcome: &Outcome) {
        self.stats.work += outcome.work;
        self.stats.nodes_left = outcome.nodes_left;
        outcome.stage.clone_into(&mut self.stats.stage);
    }

    fn search(&mut self, dense: &Dense, choice: usize) {
        let mut question = Question {
            full: dense,
            searched: dense,
            choice,
            binding: true,
        };
        if self.loads_depend_on_each_other() {
            // Several workloads, each of which may stay unchanged and then loads nothing: not a sum
            // over blocks. A relaxation gives the bound.
            let mut relaxed = dense.clone();
            for chain in &mut relaxed.chains {
                chain.need[LOADING] = Vec::new();
            }
            self.ask(&Question {
                searched: &relaxed,
                ..question
            });
            question.binding = false;
        }
        self.ask(&question);
    }

    fn ask(&mut self, question: &Question<'_>) {
        let bound = match (self.aim.sum.is_empty(), self.aim.worst) {
            (_, None) => self.sum(question),
            (true, Some((criterion, weight))) => self.worst(question, criterion, weight),
            (false, Some((criterion, weight))) => self.mixed(question, criterion, weight),
        };
        if question.binding {
            self.bound = self.bound.min(bound);
        }
    }

    fn loads_depend_on_each_other(&self) -> bool {
        let workloads = &self.problem.workloads;
        self.problem.transition == Transition::Separate
            && workloads.len() > 1
            && workloads.iter().any(|w| w.previous.is_some())
    }

    /// The smallest sum. Returns the proved bound.
    fn sum(&mut self, question: &Question<'_>) -> f64 {
        let outcome = self.exact(question.searched, self.cutoff());
        if let Some((_, path)) = &outcome.best {
            self.accept(question, path);
        }
        outcome.bound
    }

    /// The smallest sum with one term that is the worst place: the best sum, then the best with a
    /// better worst place, and so on until no sum can make up for the rest. Returns the proved
    /// bound.
    fn mixed(&mut self, question: &Question<'_>, criterion: Criterion, weight: f64) -> f64 {
        let mut ceiling = f64::INFINITY;
        loop {
            let mut low = question.searched.clone();
            if ceiling < f64::INFINITY {
                low.lower(criterion, ceiling);
            }
            let cutoff = self.cutoff();
            let outcome = self.exact(&low, cutoff);
            let Some((_, path)) = &outcome.best else {
                return outcome.bound.min(cutoff);
            };
            let accepted = self.accept(question, path);
            if !outcome.complete {
                return outcome.bound;
            }
            let Some(found) = question.searched.assess(path) else {
                return outcome.bound;
            };
            // Anything with a worse place than this one has no smaller sum.
            let least = found.cost + weight * found.worst;
            if !accepted && least < self.cutoff() {
                return outcome.bound;
            }
            if found.worst <= 0.0 {
                return self.cutoff();
            }
            ceiling = found.worst * (1.0 - STEP);
        }
    }

    /// The later ranks, each within what the earlier ones leave.
    fn by_rank(mut self, ranks: &[RankedCriterion]) -> Solved {
        let (first_bound, mut proved) = (self.bound.min(self.cutoff()), self.is_proved());
        for pair in ranks.windows(2) {
            let cap = self.cutoff() * (1.0 + pair[0].tolerance);
            self.caps
                .push((pair[0].criterion, cap * (1.0 + RANK_SLACK)));
            self.aim = Aim::of(&pair[1].criterion.into());
            self.bound = f64::INFINITY;
            let Some(before) = self.best.take() else {
                break;
            };
            let dense = self.compile(before.choice);
            if let Some(value) = dense.value(&before.path) {
                self.best = Some(Best { value, ..before });
                self.over_all();
                proved &= self.is_proved();
            } else {
                // Only rounding makes it exceed its own limits: keep it.
                self.best = Some(before);
                proved = false;
                break;
            }
        }
        self.caps.clear();
        self.aim = Aim::of(&self.problem.objective);
        if let Some(best) = &mut self.best {
            let rows = &self.choices[best.choice];
            let dense = Dense::aimed(self.problem, rows, &self.aim, &[]);
            best.value = dense.value(&best.path).unwrap_or(best.value);
        }
        self.bound = first_bound;
        let given_up = ranks.first().map_or(0.0, |r| r.tolerance);
        let mut solved = self.solved();
        let certificate = &mut solved.answer.certificate;
        let within = certificate.gap.is_some_and(|g| g <= given_up + RANK_SLACK);
        certificate.status = if proved && within {
            Status::Optimal
        } else {
            Status::Feasible
        };
        solved
    }

    fn is_proved(&self) -> bool {
        let best = self.cutoff();
        best - self.bound <= STEP * 2.0 * best
    }

    fn solved(self) -> Solved {
        let Some(best) = self.best else {
            let certificate = if self.bound == f64::INFINITY {
                Certificate::INFEASIBLE
            } else {
                Certificate::UNKNOWN
            };
            return Solved {
                answer: Answer::none(certificate, self.stats),
                place: None,
            };
        };
        let bound = self.bound.min(best.value);
        Solved {
            answer: Answer {
                placements: best.placements,
                objective: Some(best.value),
                certificate: Certificate::of(best.value, Some(bound), STEP * 2.0),
                stats: self.stats,
            },
            place: Some((best.choice, best.path)),
        }
    }
}
