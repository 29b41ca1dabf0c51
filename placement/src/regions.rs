//! Critical regions: the optimum as a function of one factor by which the bandwidth
//! of some links changes, with exact breakpoints. Reacting is then a look-up.
//!
//! For a fixed placement the expected latency is `fixed + inverse / factor`, a
//! line in the inverse of the factor, so the optimum is the lower envelope of
//! lines, found by computing the optimum where two known lines meet (Eisner and
//! Severance, "Mathematical techniques for efficient record segmentation in large
//! shared databases", JACM 1976). Links can carry less as the factor falls, so
//! placements drop out: the envelope ends where its placement does, and restarts
//! without it.

use crate::dense::{Aim, Dense, Rows};
use crate::exact::{Exact, Tuning};
use crate::limits::{Ctx, SolveOptions};
use crate::objective::Objective;
use crate::problem::{Problem, Transition};
use crate::solution::Placement;
use crate::strategies::threshold_choices;
use crate::validate::{FieldErrors, ValidProblem};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Relative difference below which an optimum is on a known line.
const TOLERANCE: f64 = 1e-8;
/// Relative step past the point where a placement drops out.
const PAST: f64 = 1e-9;
/// Most lines.
const MAX_LINES: usize = 10_000;

/// A placement and its cost under any factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// One placement per workload.
    pub placements: Vec<Placement>,
    /// Objective seconds that do not depend on the factor.
    pub fixed_seconds: f64,
    /// Objective seconds, times the factor, that do.
    pub inverse_seconds: f64,
    /// Below this factor some link or limit is overdrawn.
    pub least_factor: f64,
}

impl Line {
    /// Objective seconds under a factor; infinite if it cannot serve.
    pub fn seconds(&self, factor: f64) -> f64 {
        if factor < self.least_factor * (1.0 - TOLERANCE) {
            f64::INFINITY
        } else {
            self.at(factor.recip())
        }
    }

    fn at(&self, inverse: f64) -> f64 {
        self.fixed_seconds + self.inverse_seconds * inverse
    }
}

/// A range of factors with one optimum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Region {
    /// The lowest factor.
    pub from_factor: f64,
    /// The highest factor.
    pub to_factor: f64,
    /// Ordinal of the optimum in [`Regions::lines`]; `None` if nothing serves.
    pub line: Option<usize>,
}

/// The optimum over a range of factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Regions {
    /// Placements that are optimal somewhere.
    pub lines: Vec<Line>,
    /// Regions from the lowest factor to the highest, without gaps.
    pub regions: Vec<Region>,
}

impl Regions {
    /// The region of a factor; outside the range, the nearest one.
    pub fn at(&self, factor: f64) -> Option<&Region> {
        let above = self.regions.iter().find(|r| factor <= r.to_factor);
        above.or(self.regions.last())
    }
}

/// Why there are no regions.
#[derive(Debug, thiserror::Error)]
pub enum RegionsError {
    /// The problem contradicts itself.
    #[error("the problem is invalid; correct these fields: {0}")]
    Invalid(FieldErrors),
    /// The optimum is not a lower envelope of such lines.
    #[error("regions do not apply: {0}")]
    NotApplicable(String),
    /// An optimum could not be proved within the limits.
    #[error("an optimum was not proved within the limits; give more time or work")]
    Unproved,
}

/// The optimum by a factor on the bandwidth of `links` (sender, receiver; all links
/// if empty) within `factors`.
///
/// # Errors
/// [`RegionsError`]; the objective must be latency.
pub fn regions(
    problem: &Problem,
    links: &[(String, String)],
    factors: RangeInclusive<f64>,
    options: &SolveOptions,
    ctx: &Ctx,
) -> Result<Regions, RegionsError> {
    ValidProblem::new(problem).map_err(RegionsError::Invalid)?;
    let applies = |ok: bool, reason: &str| {
        let error = || RegionsError::NotApplicable(reason.to_owned());
        ok.then_some(()).ok_or_else(error)
    };
    let (low, high) = (*factors.start(), *factors.end());
    applies(
        low > 0.0 && low <= high && high.is_finite(),
        "factors must be above zero, the lower one first",
    )?;
    applies(
        problem.objective == Objective::Latency,
        "the objective must be latency",
    )?;
    let held = problem.workloads.iter().any(|w| w.previous.is_some());
    let separate = problem.transition == Transition::Separate && problem.workloads.len() > 1;
    applies(
        !(held && separate),
        "separate copies of several workloads are no sum over blocks",
    )?;
    let limited = |w: &crate::Workload| w.constraints.latency_limit_seconds.is_some();
    applies(
        problem.workloads.len() == 1 || !problem.workloads.iter().any(limited),
        "latency limits of several workloads depend on the factor by themselves",
    )?;
    let moves = |w: &crate::Workload| {
        let previous = w.previous.as_ref();
        w.weight == 0.0 || previous.is_some_and(|p| p.move_seconds_per_byte > 0.0)
    };
    applies(
        !problem.workloads.iter().any(|w| limited(w) && moves(w)),
        "with a latency limit, moving must be free and the weight above zero",
    )?;
    let unknown = links.iter().find(|(a, b)| problem.link(a, b).is_none());
    applies(unknown.is_none(), "a link to change is not in the problem")?;
    let choices = threshold_choices(problem);
    applies(choices.is_some(), "too many choices of thresholds")?;
    let sweep = Sweep::new(problem, links, choices.unwrap_or_default(), options, ctx);
    sweep.run(low.recip(), high.recip())
}

/// A candidate: a path under a choice of thresholds, and its line.
#[derive(Debug, Clone)]
struct Candidate {
    choice: usize,
    path: Vec<usize>,
    line: Line,
    /// Whether the latency limit determines its least factor.
    slow: bool,
}

/// From one inverse factor to another, and the optimum between.
type Piece = (f64, f64, usize);

struct Sweep<'a> {
    problem: &'a Problem,
    choices: Vec<Vec<Rows>>,
    /// Compiled under the factor 1, latency limits left out, by choice.
    base: Vec<Dense>,
    /// Scaled pairs `[from][to]`.
    scaled: Vec<usize>,
    work: u64,
    ctx: &'a Ctx,
    found: Vec<Candidate>,
}

impl<'a> Sweep<'a> {
    fn new(
        problem: &'a Problem,
        links: &[(String, String)],
        choices: Vec<Vec<Rows>>,
        options: &SolveOptions,
        ctx: &'a Ctx,
    ) -> Self {
        // With one workload and this objective, the limit only determines from where on the optimum
        // is too slow, which is a property of the line.
        let mut free = problem.clone();
        for workload in &mut free.workloads {
            workload.constraints.latency_limit_seconds = None;
        }
        let aim = Aim::of(&free.objective);
        let base = choices
            .iter()
            .map(|rows| Dense::aimed(&free, rows, &aim, &[]))
            .collect();
        let n = problem.nodes.len();
        let wanted: BTreeSet<(&str, &str)> = links
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        let names: Vec<&str> = problem.nodes.iter().map(|x| x.name.as_str()).collect();
        let scaled = (0..n * n)
            .filter(|at| wanted.is_empty() || wanted.contains(&(names[at / n], names[at % n])))
            .collect();
        Self {
            problem,
            choices,
            base,
            scaled,
            work: options.work_limit.unwrap_or(u64::MAX),
            ctx,
            found: Vec::new(),
        }
    }

    /// Sweeps from the smallest inverse (the best links) to the largest.
    fn run(mut self, most: f64, least: f64) -> Result<Regions, RegionsError> {
        // (from inverse, to inverse, candidate)
        let mut pieces: Vec<(f64, f64, Option<usize>)> = Vec::new();
        let mut at = least;
        loop {
            let mut cut = None;
            let mut slow = false;
            let Some(envelope) = self.envelope(at, most)? else {
                pieces.push((at, most, None));
                break;
            };
            for (from, to, id) in envelope {
                let last = self.found[id].line.least_factor.recip();
                if last >= to {
                    pieces.push((from, to, Some(id)));
                    continue;
                }
                if last > from {
                    pieces.push((from, last, Some(id)));
                }
                cut = Some(last.max(from));
                // The best is too slow, and the optimum only rises from here on.
                slow = self.found[id].slow;
                break;
            }
            match cut {
                Some(end) if slow && end < most => {
                    pieces.push((end, most, None));
                    break;
                }
                Some(end) if end * (1.0 + PAST) < most => at = end * (1.0 + PAST),
                _ => break,
            }
        }
        Ok(self.regions(pieces))
    }

    /// Highest objective that the latency limit allows.
    fn limit(&self) -> f64 {
        let [workload] = self.problem.workloads.as_slice() else {
            return f64::INFINITY;
        };
        let limit = workload.constraints.latency_limit_seconds;
        limit.map_or(f64::INFINITY, |limit| workload.weight * limit)
    }

    /// The lower envelope on `[from, to]` of all placements that serve at `from`; `None` if there
    /// are none.
    fn envelope(&mut self, from: f64, to: f64) -> Result<Option<Vec<Piece>>, RegionsError> {
        let Some(first) = self.optimum(from, from)? else {
            return Ok(None);
        };
        let Some(last) = self.optimum(to, from)? else {
            return Ok(None);
        };
        let mut pieces = Vec::new();
        let mut open = vec![(from, first, to, last)];
        while let Some((left, a, right, b)) = open.pop() {
            let (x, y) = (&self.found[a].line, &self.found[b].line);
            let slope = x.inverse_seconds - y.inverse_seconds;
            let same = a == b || slope.abs() <= TOLERANCE * x.inverse_seconds.abs();
            let meet = (y.fixed_seconds - x.fixed_seconds) / slope;
            if same || !(meet > left && meet < right) {
                let keep = if !same && meet <= left { b } else { a };
                pieces.push((left, right, keep));
                continue;
            }
            let value = x.at(meet);
            let Some(middle) = self.optimum(meet, from)? else {
                return Ok(None);
            };
            let line = &self.found[middle].line;
            if line.at(meet) >= value * (1.0 - TOLERANCE) {
                // The right part is processed last, so that pieces come in order.
                pieces.push((left, meet, a));
                pieces.push((meet, right, b));
            } else {
                open.push((meet, middle, right, b));
                open.push((left, a, meet, middle));
            }
        }
        pieces.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Some(pieces))
    }

    /// The best placement under one inverse factor among those that serve under
    /// another.
    fn optimum(&mut self, inverse: f64, serving: f64) -> Result<Option<usize>, RegionsError> {
        if self.found.len() > MAX_LINES {
            return Err(RegionsError::Unproved);
        }
        let known = (0..self.found.len())
            .filter(|id| self.found[*id].line.least_factor * serving <= 1.0 + PAST / 4.0)
            .min_by(|a, b| {
                let value = |id: &usize| self.found[*id].line.at(inverse);
                value(a).total_cmp(&value(b))
            });
        let mut best = known.map(|id| (self.found[id].line.at(inverse), Err(id)));
        for choice in 0..self.choices.len() {
            let dense = self.at(choice, inverse, serving);
            // An unchanged placement loads nothing, which the search does not know.
            if let Some(path) = dense.previous_path()
                && let Some(value) = dense.evaluate(&path)
                && best.as_ref().is_none_or(|b| value < b.0 * (1.0 - PAST))
            {
                best = Some((value, Ok((choice, path))));
            }
            let exact = Exact {
                tuning: Tuning::default(),
                ctx: self.ctx,
                max_work: self.work,
                cutoff: best.as_ref().map_or(f64::INFINITY, |b| b.0),
                any: false,
                start: None,
                seed: 1,
            };
            let outcome = exact.solve(&dense);
            self.work = self.work.saturating_sub(outcome.work);
            if !outcome.complete {
                return Err(RegionsError::Unproved);
            }
            if let Some((value, path)) = outcome.best {
                best = Some((value, Ok((choice, path))));
            }
        }
        Ok(best.map(|(_, place)| match place {
            Err(id) => id,
            Ok((choice, path)) => self.add(choice, path),
        }))
    }

    /// The problem with costs under one inverse factor and loads under another.
    fn at(&self, choice: usize, inverse: f64, serving: f64) -> Dense {
        let mut dense = self.base[choice].clone();
        let n = dense.n;
        for &at in &self.scaled {
            let turned = at % n * n + at / n;
            dense.forth[at] *= inverse;
            dense.back[turned] *= inverse;
            dense.forth_load[at] *= serving;
            dense.back_load[turned] *= serving;
        }
        dense
    }

    fn add(&mut self, choice: usize, path: Vec<usize>) -> usize {
        let known = |c: &Candidate| c.choice == choice && c.path == path;
        if let Some(id) = self.found.iter().position(known) {
            return id;
        }
        let cost = |inverse: f64| {
            let dense = self.at(choice, inverse, f64::MIN_POSITIVE);
            dense.assess(&path).map_or(f64::INFINITY, |a| a.cost)
        };
        let (one, two) = (cost(1.0), cost(2.0));
        let inverse_seconds = (two - one).max(0.0);
        let dense = &self.base[choice];
        let placements = dense.placements(self.problem, &self.choices[choice], &path);
        self.found.push(Candidate {
            choice,
            line: Line {
                placements,
                fixed_seconds: one - inverse_seconds,
                inverse_seconds,
                least_factor: 0.0,
            },
            path,
            slow: false,
        });
        let id = self.found.len() - 1;
        let (least, slow) = self.least_factor(id);
        self.found[id].line.least_factor = least;
        self.found[id].slow = slow;
        id
    }

    /// The factor below which a candidate overdraws a link or its limit, and whether it is the
    /// limit.
    fn least_factor(&self, id: usize) -> (f64, bool) {
        let candidate = &self.found[id];
        let dense = &self.base[candidate.choice];
        let loads = dense.link_loads(&candidate.path);
        let link = loads
            .iter()
            .filter(|(at, _)| self.scaled.binary_search(at).is_ok())
            .map(|(_, load)| load / dense.link_capacity)
            .fold(0.0, f64::max);
        let room = self.limit() - candidate.line.fixed_seconds;
        let steady = candidate.line.inverse_seconds <= 0.0 && room >= 0.0;
        let slow = if steady || room == f64::INFINITY {
            0.0
        } else if room > 0.0 {
            candidate.line.inverse_seconds / room
        } else {
            f64::INFINITY
        };
        (link.max(slow), slow >= link)
    }

    /// Converts pieces by inverse factor to regions by factor; keeps only lines in use.
    fn regions(self, pieces: Vec<(f64, f64, Option<usize>)>) -> Regions {
        let mut lines: Vec<Line> = Vec::new();
        let mut number: Vec<Option<usize>> = vec![None; self.found.len()];
        let mut regions: Vec<Region> = Vec::new();
        for (from, to, id) in pieces.into_iter().rev() {
            let line = id.map(|id| {
                *number[id].get_or_insert_with(|| {
                    lines.push(self.found[id].line.clone());
                    lines.len() - 1
                })
            });
            let from_factor = regions.last().map_or(to.recip(), |r| r.to_factor);
            match regions.last_mut() {
                Some(last) if last.line == line => last.to_factor = from.recip(),
                _ => regions.push(Region {
                    from_factor,
                    to_factor: from.recip(),
                    line,
                }),
            }
        }
        Regions { lines, regions }
    }
}

#[cfg(test)]
mod tests;
