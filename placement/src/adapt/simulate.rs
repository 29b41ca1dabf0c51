//! Simulates the adaptation rules on a trace of bandwidths, and compares their cost with the
//! optimum of a clairvoyant who knows the trace and pays for moves too.

use super::{Decision, Policy, Situation, Switched, WorkFunction, decide};
use crate::random::Dice;
use crate::regions::Line;

/// Weight of a new sample in the smoothed logarithm of the factor.
const SMOOTHING: f64 = 0.3;
/// Weight of a new sample in its variance.
const VARIANCE_SMOOTHING: f64 = 0.05;
/// Variance assumed before the first samples.
const FIRST_VARIANCE: f64 = 0.1;

/// A rule for when to move.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    /// Never moves.
    Never,
    /// Moves to the optimum of the raw sample periodically, as in the paper.
    Periodic {
        /// The period.
        seconds: f64,
    },
    /// Moves to the optimum of the estimate once it has changed by more than a share since the last
    /// time.
    Threshold {
        /// That share, of the logarithm of the factor.
        share: f64,
    },
    /// [`decide`] on the smoothed estimate with its uncertainty.
    CostAware(Policy),
    /// [`WorkFunction`] on the smoothed estimate: needs no horizon.
    WorkFunction,
}

/// A model and its environment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct World {
    /// The placements to choose from.
    pub(super) lines: Vec<Line>,
    /// Requests per second.
    pub(super) rate_per_second: f64,
    /// Costs of moves, `[from][to]`, in request-seconds.
    pub(super) moving: Vec<Vec<f64>>,
    /// Seconds charged to a request that the placement in use cannot serve.
    pub(super) outage_seconds: f64,
}

/// Bandwidth factors over time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trace {
    /// Seconds between two samples.
    pub(super) step_seconds: f64,
    /// The true factors.
    pub(super) factors: Vec<f64>,
    /// The measured factors.
    pub(super) measured: Vec<f64>,
}

/// States of a link, with noise on top.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wander {
    /// Factor of each state, in order.
    pub(super) states: &'static [f64],
    /// Probability per step of moving to a neighbour.
    pub(super) step: f64,
    /// Probability per step of moving anywhere.
    pub(super) jump: f64,
    /// Share of the noise that persists to the next step.
    pub(super) memory: f64,
    /// Standard deviation of new noise, in logarithms.
    pub(super) noise: f64,
    /// Standard deviation of measurements, in logarithms.
    pub(super) measuring: f64,
}

/// A phone on LTE: five states, each held for about half a minute.
pub(super) const LTE: Wander = Wander {
    states: &[0.08, 0.25, 0.6, 1.0, 1.6],
    step: 0.03,
    jump: 0.004,
    memory: 0.8,
    noise: 0.12,
    measuring: 0.25,
};

/// A host on Wi-Fi: mostly good, with sudden deep fades.
pub(super) const WIFI: Wander = Wander {
    states: &[0.05, 0.4, 1.0],
    step: 0.01,
    jump: 0.02,
    memory: 0.5,
    noise: 0.1,
    measuring: 0.15,
};

impl Trace {
    /// A synthetic trace with one sample per second; deterministic in the seed.
    pub(super) fn wander(how: &Wander, seconds: usize, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let (mut state, mut noise) = (how.states.len() / 2, 0.0);
        let (mut factors, mut measured) = (Vec::new(), Vec::new());
        for _ in 0..seconds {
            if dice.chance(how.step) {
                let up = dice.chance(0.5);
                state = if up {
                    (state + 1).min(how.states.len() - 1)
                } else {
                    state.saturating_sub(1)
                };
            }
            if dice.chance(how.jump) {
                state = dice.below(how.states.len());
            }
            noise = how.memory * noise + how.noise * normal(&mut dice);
            let factor = how.states[state] * noise.exp();
            factors.push(factor);
            measured.push(factor * (how.measuring * normal(&mut dice)).exp());
        }
        Self {
            step_seconds: 1.0,
            factors,
            measured,
        }
    }
}

/// A standard normal number (Box and Muller, 1958).
fn normal(dice: &mut Dice) -> f64 {
    let radius = (-2.0 * (1.0 - dice.share()).ln()).sqrt();
    radius * (std::f64::consts::TAU * dice.share()).cos()
}

/// The result of a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fare {
    /// Cost of all requests and moves, in request-seconds.
    pub(super) request_seconds: f64,
    /// Moves made.
    pub(super) moves: usize,
    /// The clairvoyant's cost.
    pub(super) clairvoyant_request_seconds: f64,
}

impl Fare {
    /// Excess over the clairvoyant's cost, relative to it.
    pub(super) fn regret(&self) -> f64 {
        if self.clairvoyant_request_seconds > 0.0 {
            self.request_seconds / self.clairvoyant_request_seconds - 1.0
        } else {
            0.0
        }
    }
}

/// Simulates a rule. It starts at the optimum of the first sample; the clairvoyant may start
/// anywhere. `None` without lines or samples, or if `moving` is not square.
pub(super) fn simulate(world: &World, trace: &Trace, rule: &Rule) -> Option<Fare> {
    let n = world.lines.len();
    let square = world.moving.len() == n && world.moving.iter().all(|row| row.len() == n);
    let samples = trace.measured.len() == trace.factors.len();
    if !square || !samples || n == 0 || trace.factors.is_empty() {
        return None;
    }
    let mut play = Play::new(world, trace, rule);
    let (mut sum, mut moves) = (0.0, 0);
    for (step, &factor) in trace.factors.iter().enumerate() {
        let next = play.next(step);
        if next != play.current {
            sum += world.moving[play.current][next];
            moves += 1;
            play.moved(step, next);
        }
        sum += world.charge(play.current, factor, trace.step_seconds);
    }
    Some(Fare {
        request_seconds: sum,
        moves,
        clairvoyant_request_seconds: clairvoyant(world, trace),
    })
}

/// The least possible cost: shortest path over time and lines.
fn clairvoyant(world: &World, trace: &Trace) -> f64 {
    let n = world.lines.len();
    let mut least = vec![0.0; n];
    for (step, &factor) in trace.factors.iter().enumerate() {
        let moved = |to: usize| {
            let from = (0..n).map(|from| match step {
                0 => 0.0,
                _ if from == to => least[from],
                _ => least[from] + world.moving[from][to],
            });
            from.fold(f64::INFINITY, f64::min)
        };
        least = (0..n)
            .map(|to| moved(to) + world.charge(to, factor, trace.step_seconds))
            .collect();
    }
    least.into_iter().fold(f64::INFINITY, f64::min)
}

impl World {
    /// Request-seconds of an interval on a line.
    fn charge(&self, line: usize, factor: f64, seconds: f64) -> f64 {
        let each = self.lines[line].seconds(factor);
        let each = if each.is_finite() {
            each
        } else {
            self.outage_seconds
        };
        each * self.rate_per_second * seconds
    }

    fn best(&self, factor: f64) -> usize {
        let cost = |i: usize| self.lines[i].seconds(factor);
        (0..self.lines.len())
            .min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
            .unwrap_or_default()
    }
}

/// A rule in progress, with its state.
struct Play<'a> {
    world: &'a World,
    trace: &'a Trace,
    rule: &'a Rule,
    current: usize,
    /// Smoothed logarithm of the factor, and its variance.
    estimate: f64,
    variance: f64,
    /// The estimate at the last reaction.
    reacted_at: f64,
    history: Vec<Switched>,
    work: WorkFunction,
}

impl<'a> Play<'a> {
    fn new(world: &'a World, trace: &'a Trace, rule: &'a Rule) -> Self {
        let first = trace.measured[0];
        let current = world.best(first);
        Self {
            world,
            trace,
            rule,
            current,
            estimate: first.ln(),
            variance: FIRST_VARIANCE,
            reacted_at: first.ln(),
            history: Vec::new(),
            work: WorkFunction::new(world.lines.len(), current, |a, b| world.moving[a][b]),
        }
    }

    /// The line to be on, given this step's sample.
    fn next(&mut self, step: usize) -> usize {
        let sample = self.trace.measured[step];
        let surprise = sample.ln() - self.estimate;
        self.estimate += SMOOTHING * surprise;
        self.variance += VARIANCE_SMOOTHING * (surprise * surprise - self.variance);
        let factor = self.estimate.exp();
        match self.rule {
            Rule::Never => self.current,
            Rule::Periodic { seconds } => {
                let steps = (seconds / self.trace.step_seconds).max(1.0) as usize;
                if step.is_multiple_of(steps) {
                    self.world.best(sample)
                } else {
                    self.current
                }
            }
            Rule::Threshold { share } => {
                if (self.estimate - self.reacted_at).abs() <= *share {
                    return self.current;
                }
                self.reacted_at = self.estimate;
                self.world.best(factor)
            }
            Rule::CostAware(policy) => self.weigh(policy, step, factor),
            Rule::WorkFunction => {
                let (world, seconds) = (self.world, self.trace.step_seconds);
                let costs: Vec<f64> = (0..world.lines.len())
                    .map(|i| world.charge(i, factor, seconds))
                    .collect();
                let moving = |a: usize, b: usize| world.moving[a][b];
                self.work.advance(&costs, self.current, moving)
            }
        }
    }

    fn weigh(&self, policy: &Policy, step: usize, factor: f64) -> usize {
        let best = self.world.best(factor);
        if best == self.current {
            return best;
        }
        // The smoothed estimate has less error than single samples.
        let off = (self.variance * SMOOTHING / (2.0 - SMOOTHING)).sqrt();
        let seconds = |i: usize, factor: f64| self.world.lines[i].seconds(factor);
        let gain = |factor: f64| seconds(self.current, factor) - seconds(best, factor);
        let spread = (gain(factor * off.exp()) - gain(factor * (-off).exp())).abs() / 2.0;
        let situation = Situation {
            now_seconds: step as f64 * self.trace.step_seconds,
            current_seconds: seconds(self.current, factor),
            best_seconds: seconds(best, factor),
            deviation_seconds: if spread.is_finite() { spread } else { 0.0 },
            rate_per_second: self.world.rate_per_second,
            migration_request_seconds: self.world.moving[self.current][best],
        };
        match decide(policy, &situation, &self.history) {
            Decision::Switch(_) | Decision::Rescue { .. } => best,
            Decision::Stay(_) => self.current,
        }
    }

    fn moved(&mut self, step: usize, next: usize) {
        self.history.push(Switched {
            at_seconds: step as f64 * self.trace.step_seconds,
            from: self.current.to_string(),
            to: next.to_string(),
        });
        self.current = next;
    }
}

mod tests;
