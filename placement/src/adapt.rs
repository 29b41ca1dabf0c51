//! When to move a running model: pure rules on numbers, no clock and no state
//! of their own. Every decision says why, with the numbers that made it.

use serde::{Deserialize, Serialize};
use std::fmt;

// Says how much the rules below regret, on traces; nothing else plays it.
#[cfg(test)]
mod simulate;

/// How eager to be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// For how many seconds a gain is expected to last.
    pub horizon_seconds: f64,
    /// Smallest gain worth an action, as a share of the current cost.
    pub min_gain_share: f64,
    /// How many standard deviations of the gain are taken off it before it
    /// counts; 0 trusts the estimate.
    pub confidence_deviations: f64,
    /// Least seconds between two switches.
    pub cool_down_seconds: f64,
    /// Window in which switches back and forth are counted.
    pub flap_window_seconds: f64,
    /// Returns to a path left before, within the window, that make a flap.
    pub flap_returns: usize,
    /// A switch is taken back when it measures worse by more than this share.
    pub rollback_share: f64,
    /// Requests to measure before that is judged.
    pub rollback_requests: u64,
    /// How many standard errors of that measurement are taken off it.
    pub rollback_deviations: f64,
    /// No switch at all while true.
    pub paused: bool,
}

impl Default for Policy {
    /// What regrets little on every kind of trace that the tests play: states
    /// that hold for half a minute, deep fades, a wandering link without states.
    /// That moving pays is what keeps a model still. A cool-down or a long hold
    /// leaves it on a link that went bad, which costs far more than the moves it
    /// saves; the hold only catches what moves faster than a gain can pay.
    fn default() -> Self {
        Self {
            horizon_seconds: 25.0,
            min_gain_share: 0.05,
            confidence_deviations: 0.25,
            cool_down_seconds: 0.0,
            flap_window_seconds: 60.0,
            flap_returns: 4,
            rollback_share: 0.1,
            rollback_requests: 20,
            rollback_deviations: 1.0,
            paused: false,
        }
    }
}

/// A switch that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Switched {
    /// When, in seconds on the caller's clock.
    pub at_seconds: f64,
    /// The path left, as [`crate::Placement::path`] writes it.
    pub from: String,
    /// The path taken.
    pub to: String,
}

/// What is known when a better placement was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation {
    /// Now, on the same clock as the history.
    pub now_seconds: f64,
    /// Expected latency of the current placement; infinite when it can no
    /// longer serve.
    pub current_seconds: f64,
    /// Expected latency of the best placement.
    pub best_seconds: f64,
    /// Standard deviation of their difference, from the noise of what was
    /// measured.
    pub deviation_seconds: f64,
    /// Requests per second.
    pub rate_per_second: f64,
    /// What the switch costs all requests together, in request-seconds.
    pub migration_request_seconds: f64,
}

/// The numbers behind a switch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gain {
    /// Cost now, in seconds.
    pub current_seconds: f64,
    /// Cost after.
    pub best_seconds: f64,
    /// Gain per request that can be relied on.
    pub sure_seconds: f64,
    /// That gain over all requests of the horizon, in request-seconds.
    pub worth_request_seconds: f64,
    /// What the switch costs, in request-seconds.
    pub migration_request_seconds: f64,
}

/// Move or not.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Decision {
    /// Move: it pays.
    Switch(Gain),
    /// Move: the current placement cannot serve any more.
    Rescue {
        /// Cost after, in seconds.
        best_seconds: f64,
    },
    /// Stay where it is.
    Stay(Stay),
}

/// Why not to move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stay {
    /// Adaptation is paused.
    Paused,
    /// Nothing serves: there is no placement to move to.
    NothingServes,
    /// The gain, less its uncertainty, is too small.
    SmallGain {
        /// Cost now, in seconds.
        current_seconds: f64,
        /// Cost after, in seconds.
        best_seconds: f64,
        /// Gain per request that can be relied on.
        sure_seconds: f64,
        /// Least gain wanted.
        wanted_seconds: f64,
    },
    /// The switch costs more than it saves within the horizon.
    TooDear(Gain),
    /// The last switch is too recent.
    CoolDown {
        /// Seconds left.
        left_seconds: f64,
    },
    /// It went back and forth.
    Flapping {
        /// Returns to a path left before, within the window.
        returns: usize,
        /// Seconds until it may move again.
        left_seconds: f64,
    },
}

/// Decides on a better placement that was found. `history` in order of time.
///
/// A placement that can no longer serve is left at once; otherwise the gain
/// that can be relied on, over the requests of the horizon, must exceed what the
/// switch costs, and the last switches must not be too recent.
pub fn decide(policy: &Policy, situation: &Situation, history: &[Switched]) -> Decision {
    let s = situation;
    if policy.paused {
        return Decision::Stay(Stay::Paused);
    }
    if !s.best_seconds.is_finite() {
        return Decision::Stay(Stay::NothingServes);
    }
    if !s.current_seconds.is_finite() {
        return Decision::Rescue {
            best_seconds: s.best_seconds,
        };
    }
    let sure =
        s.current_seconds - s.best_seconds - policy.confidence_deviations * s.deviation_seconds;
    let wanted = policy.min_gain_share * s.current_seconds;
    // Written so that a gain which is not a number is none.
    let enough = sure > 0.0 && sure >= wanted;
    if !enough {
        return Decision::Stay(Stay::SmallGain {
            current_seconds: s.current_seconds,
            best_seconds: s.best_seconds,
            sure_seconds: sure,
            wanted_seconds: wanted,
        });
    }
    let gain = Gain {
        current_seconds: s.current_seconds,
        best_seconds: s.best_seconds,
        sure_seconds: sure,
        worth_request_seconds: sure * s.rate_per_second * policy.horizon_seconds,
        migration_request_seconds: s.migration_request_seconds,
    };
    if gain.worth_request_seconds <= gain.migration_request_seconds {
        return Decision::Stay(Stay::TooDear(gain));
    }
    if let Some(left_seconds) = flap_hold(policy, s.now_seconds, history) {
        return Decision::Stay(Stay::Flapping {
            returns: returns(policy, s.now_seconds, history),
            left_seconds,
        });
    }
    let since = history.last().map(|h| s.now_seconds - h.at_seconds);
    match since {
        Some(since) if since < policy.cool_down_seconds => Decision::Stay(Stay::CoolDown {
            left_seconds: policy.cool_down_seconds - since,
        }),
        _ => Decision::Switch(gain),
    }
}

/// How often, within the window that ends now, a path was taken that had been
/// left within the window.
pub fn returns(policy: &Policy, now_seconds: f64, history: &[Switched]) -> usize {
    let begin = now_seconds - policy.flap_window_seconds;
    let recent: Vec<&Switched> = history.iter().filter(|h| h.at_seconds >= begin).collect();
    recent
        .iter()
        .enumerate()
        .filter(|(i, h)| recent[..*i].iter().any(|before| before.from == h.to))
        .count()
}

/// Seconds for which a flapping model is held still; `None` when it does not
/// flap.
fn flap_hold(policy: &Policy, now_seconds: f64, history: &[Switched]) -> Option<f64> {
    if policy.flap_returns == 0 || returns(policy, now_seconds, history) < policy.flap_returns {
        return None;
    }
    let begin = now_seconds - policy.flap_window_seconds;
    // It may move again once the oldest switch of the window is forgotten.
    let oldest = history.iter().find(|h| h.at_seconds >= begin)?;
    Some(oldest.at_seconds - begin)
}

/// Latency measured over some requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean in seconds.
    pub mean_seconds: f64,
    /// Standard deviation of single requests in seconds.
    pub deviation_seconds: f64,
    /// Requests.
    pub requests: u64,
}

/// Whether a switch stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Too few requests yet.
    Wait {
        /// How many are missing.
        requests_missing: u64,
    },
    /// It is at least nearly as good as before.
    Keep {
        /// Mean after, in seconds.
        after_seconds: f64,
        /// What it is held against, in seconds.
        reference_seconds: f64,
    },
    /// It is worse: go back.
    Rollback {
        /// Mean after, in seconds.
        after_seconds: f64,
        /// What it is held against, in seconds.
        reference_seconds: f64,
    },
}

/// Judges a switch by what was measured. `old_path_now_seconds` is what the old
/// path would take by now, if known: a switch away from a link that went slow is
/// not at fault for being slower than on the good link.
pub fn judge(
    policy: &Policy,
    before: &Measured,
    after: &Measured,
    old_path_now_seconds: Option<f64>,
) -> Verdict {
    if after.requests < policy.rollback_requests.max(1) {
        return Verdict::Wait {
            requests_missing: policy.rollback_requests.max(1) - after.requests,
        };
    }
    let reference_seconds = old_path_now_seconds.unwrap_or(before.mean_seconds);
    let error = after.deviation_seconds / (after.requests as f64).sqrt();
    let surely = after.mean_seconds - policy.rollback_deviations * error;
    let after_seconds = after.mean_seconds;
    if surely > reference_seconds * (1.0 + policy.rollback_share) {
        Verdict::Rollback {
            after_seconds,
            reference_seconds,
        }
    } else {
        Verdict::Keep {
            after_seconds,
            reference_seconds,
        }
    }
}

/// The work-function rule for when no horizon is known (Borodin, Linial, Saks,
/// 1992): remembers, for each candidate, the least that all requests until now
/// could have cost had it ended there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkFunction {
    work: Vec<f64>,
}

impl WorkFunction {
    /// Starts on candidate `current` of `candidates`.
    pub fn new(candidates: usize, current: usize, moving: impl Fn(usize, usize) -> f64) -> Self {
        Self {
            work: (0..candidates).map(|to| moving(current, to)).collect(),
        }
    }

    /// Takes up another candidate, which is reached from one of the others: what it would
    /// have cost until now, nobody knows.
    pub fn add(&mut self, moving: impl Fn(usize) -> f64) {
        let known = self.work.iter().enumerate();
        let reached = known.map(|(from, work)| work + moving(from));
        self.work.push(reached.fold(f64::INFINITY, f64::min));
    }

    /// Takes in what each candidate cost over the last interval, in
    /// request-seconds, with what moving costs, and gives the candidate to be on
    /// when `current` is where it is. Ties stay.
    pub fn advance(
        &mut self,
        costs: &[f64],
        current: usize,
        moving: impl Fn(usize, usize) -> f64,
    ) -> usize {
        let stayed: Vec<f64> = self.work.iter().zip(costs).map(|(w, c)| w + c).collect();
        for (to, work) in self.work.iter_mut().enumerate() {
            *work = stayed
                .iter()
                .enumerate()
                .map(|(from, w)| w + if from == to { 0.0 } else { moving(from, to) })
                .fold(f64::INFINITY, f64::min);
        }
        let value = |to: usize| {
            self.work[to]
                + if to == current {
                    0.0
                } else {
                    moving(current, to)
                }
        };
        // A candidate whose work is that of having come from elsewhere just now
        // is no place to be.
        let settled = |to: usize| stayed.get(to).is_some_and(|s| *s <= self.work[to] + 1e-12);
        let mut best = current;
        for to in (0..self.work.len()).filter(|to| settled(*to)) {
            if !settled(best) || value(to) < value(best) - 1e-12 {
                best = to;
            }
        }
        best
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(gain) => write!(f, "switch: {gain}"),
            Self::Rescue { best_seconds } => write!(
                f,
                "switch: the current placement cannot serve, the best takes {}",
                ms(*best_seconds)
            ),
            Self::Stay(why) => write!(f, "stay: {why}"),
        }
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} to {}, {} of it sure, worth {:.1} request-seconds against {:.1} for moving",
            ms(self.current_seconds),
            ms(self.best_seconds),
            ms(self.sure_seconds),
            self.worth_request_seconds,
            self.migration_request_seconds
        )
    }
}

impl fmt::Display for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("adaptation is paused"),
            Self::NothingServes => f.write_str("no placement can serve"),
            Self::SmallGain {
                current_seconds,
                best_seconds,
                sure_seconds,
                wanted_seconds,
            } => write!(
                f,
                "{} to {} is a sure gain of {}, below the {} wanted",
                ms(*current_seconds),
                ms(*best_seconds),
                ms(sure_seconds.max(0.0)),
                ms(*wanted_seconds)
            ),
            Self::TooDear(gain) => write!(f, "moving costs too much: {gain}"),
            Self::CoolDown { left_seconds } => {
                write!(f, "cooling down for {left_seconds:.0} s more")
            }
            Self::Flapping {
                returns,
                left_seconds,
            } => write!(
                f,
                "went back and forth {returns} times, held for {left_seconds:.0} s more"
            ),
        }
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

#[cfg(test)]
mod tests;
