//! When a peer is probed next. Pure: the current time is passed in.

use std::time::Duration;

/// An answer counts as missing after this time, or after some round trips.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE: f64 = 4.0;
/// While blobs are in flight an empty message may wait behind them.
const PATIENCE_BEHIND_BLOBS: u32 = 3;
/// A peer that has not answered for this part of the patience is asked once more.
const DOUBT: f64 = 0.4;
/// Pause after a refused connection.
const AGAIN: Duration = Duration::from_millis(400);
/// Failures in a row after which the normal pace is enough: the peer is gone.
const GONE: u32 = 3;
/// Random part of the pace, which keeps hosts from asking in step.
const SPREAD: f64 = 0.1;

/// How long to wait for an answer.
pub(super) fn patience(rtt: Option<f64>, behind_blobs: bool) -> Duration {
    let trips = Duration::from_secs_f64(PATIENCE * rtt.unwrap_or(0.0));
    let patience = trips.max(LEAST_PATIENCE);
    if behind_blobs {
        patience * PATIENCE_BEHIND_BLOBS
    } else {
        patience
    }
}

/// When to ask a peer.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    asked: Duration,
    next: Duration,
    failures: u32,
}

impl Pace {
    /// The first question comes soon. `spread` is any number from 0 to 1.
    pub(super) fn new(every: Duration, spread: f64, now: Duration) -> Self {
        let soon = every.min(Duration::from_millis(500));
        Self {
            every,
            asked: now,
            next: now + soon.mul_f64(spread),
            failures: 0,
        }
    }

    /// Time of the next question.
    pub(super) const fn next(&self) -> Duration {
        self.next
    }

    /// Whether enough questions in a row went unanswered to call the peer gone.
    pub(super) const fn is_gone(&self) -> bool {
        self.failures >= GONE
    }

    /// Whether to open another connection, repeatedly while the peer is gone: one with many losses
    /// retransmits ever more rarely.
    pub(super) const fn is_stuck(&self) -> bool {
        self.failures >= 2 * GONE && self.failures.is_multiple_of(GONE)
    }

    /// The peer was asked, to answer within `patience`.
    pub(super) fn asked(&mut self, patience: Duration, now: Duration) {
        self.asked = now;
        let pause = if self.is_gone() {
            self.every.max(patience)
        } else {
            patience.mul_f64(DOUBT)
        };
        self.next = now + pause;
    }

    /// The peer answered.
    pub(super) fn answered(&mut self, spread: f64, now: Duration) {
        self.failures = 0;
        let pause = self.every.mul_f64(1.0 - SPREAD * spread.clamp(0.0, 1.0));
        self.next = (self.asked + pause).max(now);
    }

    /// An answer is missing, or the connection was refused.
    pub(super) fn failed(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.next = if self.is_gone() {
            self.asked + self.every.max(LEAST_PATIENCE)
        } else {
            self.next.min(now + AGAIN)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(1);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Times of the failures of a peer that goes silent just after an answer.
    fn failures_of_silence(until: Duration) -> Vec<Duration> {
        let mut pace = Pace::new(EVERY, 0.0, ms(0));
        pace.asked(patience(Some(0.02), false), ms(0));
        pace.answered(0.0, ms(20));
        let (mut waiting, mut failures) = (Vec::new(), Vec::new());
        for now in (20..).map(ms).take_while(|now| *now < until) {
            if waiting.first().is_some_and(|end| *end <= now) {
                waiting.remove(0);
                pace.failed(now);
                failures.push(now);
            }
            if pace.next() <= now {
                let patience = patience(Some(0.02), false);
                pace.asked(patience, now);
                waiting.push(now + patience);
            }
        }
        failures
    }

    #[test]
    fn three_answers_are_missing_within_three_seconds_of_silence() {
        let failures = failures_of_silence(ms(3000));
        assert_eq!(failures, [ms(2000), ms(2400), ms(2800)]);
    }

    #[test]
    fn a_peer_that_is_gone_is_asked_at_the_usual_pace() {
        let failures = failures_of_silence(ms(60_000));
        assert!(failures.len() < 65, "{}", failures.len());
        let mut slow = Pace::new(ms(30_000), 0.0, ms(0));
        for second in 0..3 {
            slow.asked(LEAST_PATIENCE, ms(second * 1000));
            slow.failed(ms(second * 1000 + 5));
        }
        assert_eq!(slow.next(), ms(32_000));
    }

    #[test]
    fn a_refusal_is_asked_again_soon() {
        let mut pace = Pace::new(EVERY, 0.0, ms(0));
        pace.asked(LEAST_PATIENCE, ms(0));
        pace.failed(ms(1));
        assert_eq!(pace.next(), ms(400));
    }

    #[test]
    fn answers_keep_the_pace_spread_a_little() {
        let mut pace = Pace::new(EVERY, 0.0, ms(0));
        pace.asked(LEAST_PATIENCE, ms(0));
        pace.answered(1.0, ms(300));
        assert_eq!(pace.next(), ms(900));
        pace.asked(LEAST_PATIENCE, ms(900));
        pace.answered(0.0, ms(2500));
        assert_eq!(pace.next(), ms(2500), "a late answer leaves no debt");
    }

    #[test]
    fn patience_follows_the_round_trip_and_blobs() {
        assert_eq!(patience(None, false), ms(1000));
        assert_eq!(patience(Some(0.5), false), ms(2000));
        assert_eq!(patience(Some(0.5), true), ms(6000));
    }
}
