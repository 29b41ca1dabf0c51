//! Minimizes the maximum over several places: is there any placement below a value? Asked by
//! bisection, first with little effort, then with more between the proved and the found value.

use super::{Question, Run, STEP};
use crate::dense::Dense;
use crate::exact::{Exact, Outcome, Tuning, as_question};
use crate::objective::Criterion;

/// While the bound is further off than this, the value is bisected.
const BISECT_ABOVE: f64 = 1.02;
/// Values left open with little effort are narrowed from both sides to this ratio.
const FINE: f64 = 1.002;
/// Labels per question at first, and the factor after each round.
const FIRST_LABELS: u64 = 20_000;
const MORE: u64 = 8;
/// Share of the time left for one question.
const SHARE_OF_TIME: f64 = 0.3;

/// The result of a question.
enum Found {
    /// A placement, taken.
    Better,
    /// There is none; proved.
    Nothing,
    /// Unknown within the effort.
    Open,
    /// A placement that rounding keeps from being accepted: asking further is useless.
    Stuck,
}

/// The question, and what is known.
struct Bisection<'a, 'q> {
    question: &'a Question<'q>,
    criterion: Criterion,
    weight: f64,
    /// No placement stays below this.
    proved: f64,
    /// The lowest and the highest open value.
    open: Option<(f64, f64)>,
}

impl Run<'_> {
    /// The smallest worst place. Returns the proved bound.
    pub(super) fn worst(
        &mut self,
        question: &Question<'_>,
        criterion: Criterion,
        weight: f64,
    ) -> f64 {
        if self.best.is_none() {
            let first = self.ask_any(question.searched, None);
            match first.best {
                Some((_, path)) if self.accept(question, &path) => {}
                None if first.complete => return f64::INFINITY,
                _ => return 0.0,
            }
        }
        let mut bisection = Bisection {
            question,
            criterion,
            weight,
            proved: 0.0,
            open: None,
        };
        let mut labels = FIRST_LABELS;
        while !self.narrow(&mut bisection, labels) {
            if self.ctx.expired() || self.stats.work >= self.max_work {
                return bisection.proved;
            }
            bisection.open = None;
            labels = labels.saturating_mul(MORE);
        }
        bisection.proved
    }

    /// Asks until nothing is open, or the open range is narrow; returns whether it is settled.
    fn narrow(&mut self, bisection: &mut Bisection<'_, '_>, labels: u64) -> bool {
        loop {
            let best = self.cutoff();
            let nearly = best * (1.0 - STEP);
            if bisection.proved >= nearly || best == 0.0 {
                bisection.proved = best;
                return true;
            }
            let Some(target) = bisection.next(best, nearly) else {
                return false;
            };
            if self.ctx.expired() || self.stats.work >= self.max_work {
                return false;
            }
            match self.stays_below(bisection, target, labels) {
                Found::Better => bisection.found(self.cutoff()),
                Found::Nothing => bisection.nothing(target),
                Found::Open => bisection.stays_open(target),
                Found::Stuck => return true,
            }
        }
    }

    fn stays_below(&mut self, bisection: &Bisection<'_, '_>, value: f64, labels: u64) -> Found {
        let mut low = bisection.question.searched.clone();
        low.lower(bisection.criterion, value / bisection.weight);
        let outcome = self.ask_any(&low, Some(labels));
        match outcome.best {
            Some((_, path)) if self.accept(bisection.question, &path) => Found::Better,
            Some(_) => Found::Stuck,
            None if outcome.complete => Found::Nothing,
            None => Found::Open,
        }
    }

    /// Whether any placement exists, within at most `labels` labels.
    fn ask_any(&mut self, dense: &Dense, labels: Option<u64>) -> Outcome {
        let (asked, cutoff) = as_question(dense);
        let has_deadline = self.ctx.remaining().is_some();
        let part = self.ctx.part(labels.map_or(1.0, |_| SHARE_OF_TIME));
        let left = self.max_work.saturating_sub(self.stats.work);
        let exact = Exact {
            tuning: Tuning {
                labels: labels.unwrap_or(u64::MAX),
                // Branch and bound without a deadline takes too long.
                thorough: labels.is_none_or(|l| l > FIRST_LABELS && has_deadline),
                ..Tuning::default()
            },
            ctx: &part,
            max_work: left,
            cutoff,
            any: true,
            start: None,
            seed: self.seed,
        };
        let outcome = exact.solve(&asked);
        self.count(&outcome);
        outcome
    }
}

impl Bisection<'_, '_> {
    /// The value to ask next; `None` once the open range is narrow.
    fn next(&self, best: f64, nearly: f64) -> Option<f64> {
        let Some((lowest, highest)) = self.open else {
            let far = best > self.proved * BISECT_ABOVE;
            return Some(if far {
                f64::midpoint(best, self.proved).min(nearly)
            } else {
                nearly
            });
        };
        if lowest > self.proved * FINE {
            Some(f64::midpoint(self.proved, lowest))
        } else if nearly > highest * FINE {
            Some(f64::midpoint(highest, nearly))
        } else {
            None
        }
    }

    fn found(&mut self, best: f64) {
        self.open = self
            .open
            .filter(|(lowest, _)| *lowest < best)
            .map(|(lowest, highest)| (lowest, highest.min(best)));
    }

    fn nothing(&mut self, target: f64) {
        self.proved = target;
        self.open = self
            .open
            .filter(|(_, highest)| *highest > target)
            .map(|(lowest, highest)| (lowest.max(target), highest));
    }

    fn stays_open(&mut self, target: f64) {
        self.open = Some(match self.open {
            None => (target, target),
            Some((lowest, highest)) => (lowest.min(target), highest.max(target)),
        });
    }
}
