//! When to move a running model: pure rules on numbers, without clock or state. Every decision
//! gives its reason, with the numbers behind it.

use serde::{Deserialize, Serialize};
use std::fmt;

// Measures the regret of the rules below on traces; used only in tests.
#[cfg(test)]
mod simulate;

/// When to move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// How long a gain is expected to last, in seconds.
    pub horizon_seconds: f64,
    /// Smallest gain worth an action, as a share of the current cost.
    pub min_gain_share: f64,
    /// Standard deviations subtracted from the gain before it counts; 0 trusts the estimate.
    pub confidence_deviations: f64,
    /// Least time between two switches, in seconds.
    pub cool_down_seconds: f64,
    /// Window in which returns to an earlier path are counted.
    pub flap_window_seconds: f64,
    /// This many returns within the window to a path left before count as a flap.
    pub flap_returns: usize,
    /// A switch is reverted if it measures worse by more than this share.
    pub rollback_share: f64,
    /// Requests to measure before that is decided.
    pub rollback_requests: u64,
    /// Standard errors subtracted from that measurement.
    pub rollback_deviations: f64,
    /// No switches while true.
    pub paused: bool,
}

impl Default for Policy {
    /// Values with little regret on every kind of trace in the tests: states that last half a
    /// minute, deep fades, a wandering link without states. The rule that a move must pay is enough
    /// to keep a model still. A cool-down or a long hold leaves it on a link that went bad, which
    /// costs far more than the moves it saves; the hold only catches changes too fast for a gain to
    /// pay.
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
    /// Time in seconds on the caller's clock.
    pub at_seconds: f64,
    /// The path left, as [`crate::Placement::path`] writes it.
    pub from: String,
    /// The path taken.
    pub to: String,
}

/// The situation when a better placement was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation {
    /// Now, on the same clock as the history.
    pub now_seconds: f64,
    /// Expected latency of the current placement; infinite when it can no
    /// longer serve.
    pub current_seconds: f64,
    /// Expected latency of the best placement.
    pub best_seconds: f64,
    /// Standard deviation of their difference, from measurement noise.
    pub deviation_seconds: f64,
    /// Requests per second.
    pub rate_per_second: f64,
    /// Cost of the switch to all requests together, in request-seconds.
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
    /// Reliable gain per request.
    pub sure_seconds: f64,
    /// That gain over all requests of the horizon, in request-seconds.
    pub worth_request_seconds: f64,
    /// Cost of the switch, in request-seconds.
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
    /// The gain, minus its uncertainty, is too small.
    SmallGain {
        /// Cost now, in seconds.
        current_seconds: f64,
        /// Cost after, in seconds.
        best_seconds: f64,
        /// Reliable gain per request.
        sure_seconds: f64,
        /// Required gain.
        wanted_seconds: f64,
    },
    /// The switch costs more than it gains within the horizon.
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

/// Decides about a better placement. `history` is in order of time.
///
/// A placement that can no longer serve is left at once; otherwise the reliable gain
/// over the requests of the horizon must exceed the cost of the switch, and the last
/// switches must not be too recent.
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
    // Written so that a NaN is not enough.
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

/// How often, within the window that ends now, a path was taken that had been left within the
/// window.
pub fn returns(policy: &Policy, now_seconds: f64, history: &[Switched]) -> usize {
    let begin = now_seconds - policy.flap_window_seconds;
    let recent: Vec<&Switched> = history.iter().filter(|h| h.at_seconds >= begin).collect();
    recent
        .iter()
        .enumerate()
        .filter(|(i, h)| recent[..*i].iter().any(|before| before.from == h.to))
        .count()
}

/// Seconds for which a flapping model must stay; `None` if it does not flap.
fn flap_hold(policy: &Policy, now_seconds: f64, history: &[Switched]) -> Option<f64> {
    if policy.flap_returns == 0 || returns(policy, now_seconds, history) < policy.flap_returns {
        return None;
    }
    let begin = now_seconds - policy.flap_window_seconds;
    // It may move again once the oldest switch leaves the window.
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

/// Whether a switch is kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Too few requests yet.
    Wait {
        /// How many are missing.
        requests_missing: u64,
    },
    /// It is about as good as before, or better.
    Keep {
        /// Mean after, in seconds.
        after_seconds: f64,
        /// The value it is compared with, in seconds.
        reference_seconds: f64,
    },
    /// It is worse: revert.
    Rollback {
        /// Mean after, in seconds.
        after_seconds: f64,
        /// The value it is compared with, in seconds.
        reference_seconds: f64,
    },
}

/// Judges a switch by measurements. `old_path_now_seconds` is the old path's present latency, if
/// known: a switch away from a link that became slow is not to blame for being slower than before
/// on the good link.
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

/// The work-function rule for an unknown horizon (Borodin, Linial, Saks, 1992):
/// remembers, for each candidate, the least possible cost of all requests until now
/// that ends there.
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
        // A candidate whose work value comes from moving there just now is no place to be.
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
