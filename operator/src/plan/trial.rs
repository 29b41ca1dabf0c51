//! Judges a move by measurements after it, and reverts it if it is worse than the old path.

use super::judge::figures_of;
use super::{Case, Planned};
use crate::state::memory::{PlacementMemory, Trial};
use crate::state::plans::Phase;
use crate::state::snapshot::{Answer, RequestView};
use crate::state::text;
use lamina_crds::placement::{Cause, Plan, Segment, format_path};
use lamina_crds::reasons;
use lamina_placement::adapt::{self, Measured, Verdict};

/// How long a reverted path is avoided.
const REJECTED_SECONDS: f64 = 1800.0;
/// The first requests queue behind those that the move delayed.
const SETTLE_SECONDS: f64 = 30.0;
/// A trial with too few requests by then ends.
const TRIAL_SECONDS: f64 = 300.0;
/// Requests that the old path must have answered for a comparison.
const LEAST_BEFORE: u64 = 5;
/// Limit of the ratio of measured to estimated time on the old path, either way; estimates are for
/// one row.
const CALIBRATION: f64 = 3.0;
/// If the mean rows per request on the old and the new path differ by more than this factor, they
/// cannot be compared.
const LIKE_ROWS: f64 = 1.25;
/// The 95th percentile of a normal distribution is this many deviations above its median.
const P95_DEVIATIONS: f64 = 1.645;

impl Case<'_> {
    /// Starts to watch a move that was made for a gain.
    pub(super) fn begin_trial(
        &self,
        own: &mut PlacementMemory,
        current: &Plan,
        revision: i64,
        old_path_seconds: Option<f64>,
    ) {
        let before = self.requests_of(current.revision);
        own.trial = before
            .filter(|r| r.answered >= LEAST_BEFORE)
            .zip(old_path_seconds)
            .map(|(before, old_path_seconds)| Trial {
                revision,
                from: current.segments.clone(),
                thresholds: current.thresholds.clone(),
                before: measured(&before),
                rows: before.rows,
                old_path_seconds,
                since: None,
            });
    }

    /// Notes since when the revision on trial has served.
    pub(super) fn watch_trial(&self, own: &mut PlacementMemory) {
        if let Some(trial) = own.trial.as_mut().filter(|t| self.is_on(t)) {
            trial.since.get_or_insert(self.snapshot.now);
        }
    }

    fn requests_of(&self, revision: i64) -> Option<RequestView> {
        let uid = self.site.placement?.metadata.uid.as_ref()?;
        let requests = self.snapshot.requests.get(uid)?;
        (requests.revision == revision).then_some(*requests)
    }

    /// Whether enough was measured to judge a move.
    pub(super) fn trial_ripe(&self, own: &PlacementMemory) -> bool {
        let Some(trial) = own.trial.as_ref().filter(|t| self.is_on(t)) else {
            return false;
        };
        let since = trial.since.map(|t| self.snapshot.seconds_since(t));
        if since.is_none_or(|s| s < SETTLE_SECONDS) {
            return false;
        }
        let requests = self.requests_of(trial.revision);
        requests.is_some_and(|r| r.answered >= self.policy().rollback_requests)
    }

    fn is_on(&self, trial: &Trial) -> bool {
        *self.site.phase == Phase::Serving
            && self.current.is_some_and(|p| p.revision == trial.revision)
    }

    /// Reverts a move that measured worse; `None` if it stands or cannot be judged yet.
    pub(super) fn judge_trial(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
    ) -> Option<Planned> {
        let trial = own.trial.take().filter(|t| {
            self.current.is_some_and(|p| p.revision == t.revision) && self.broken.is_none()
        })?;
        let current = self.current?;
        let since = trial.since.map_or(0.0, |t| self.snapshot.seconds_since(t));
        let is_late = since > TRIAL_SECONDS;
        let is_settled = since >= SETTLE_SECONDS && self.is_on(&trial);
        let after = self.requests_of(trial.revision).filter(|_| is_settled);
        let Some(after) = after else {
            own.trial = (!is_late).then_some(trial);
            return None;
        };
        if (after.rows / trial.rows).max(trial.rows / after.rows) > LIKE_ROWS {
            return None;
        }
        let old_now = self.old_path_now(&trial, answer);
        match adapt::judge(&self.policy(), &trial.before, &measured(&after), old_now) {
            Verdict::Wait { .. } => {
                own.trial = (!is_late).then_some(trial);
                None
            }
            Verdict::Keep { .. } => None,
            Verdict::Rollback {
                after_seconds,
                reference_seconds,
            } => self.take_back(own, current, &trial, after_seconds, reference_seconds),
        }
    }

    /// The old path's latency now: its estimate, corrected by how an earlier estimate compared with
    /// measurements.
    fn old_path_now(&self, trial: &Trial, answer: &Answer) -> Option<f64> {
        let now = figures_of(&answer.problem, &trial.from)?.latency_seconds;
        let calibration = trial.before.mean_seconds / trial.old_path_seconds;
        let calibration = calibration.clamp(1.0 / CALIBRATION, CALIBRATION * trial.rows);
        let reference = now * calibration;
        reference.is_finite().then_some(reference)
    }

    fn take_back(
        &self,
        own: &mut PlacementMemory,
        current: &Plan,
        trial: &Trial,
        after_seconds: f64,
        reference_seconds: f64,
    ) -> Option<Planned> {
        let to = self.reachable(&trial.from)?;
        let until = self.snapshot.now.plus(REJECTED_SECONDS);
        own.rejected.insert(format_path(&current.segments), until);
        own.candidate = None;
        let trigger = format!(
            "revision {} measured {}, where the path before would take {}",
            current.revision,
            text::millis(after_seconds * 1e3),
            text::millis(reference_seconds * 1e3)
        );
        let note = format!("{trigger}; back to {}", format_path(&to));
        let plan = Plan {
            revision: self.next_revision(),
            crossings: self.crossings(&to),
            thresholds: trial.thresholds.clone(),
            segments: to,
            estimated_latency_ms: (reference_seconds * 1e4).round() / 10.0,
            replaced_latency_ms: Some((after_seconds * 1e4).round() / 10.0),
            certificate: "Measured".to_owned(),
            trigger,
            cause: Cause::Rollback,
            time: crate::state::time::seconds_only(self.snapshot.wall),
            ..current.clone()
        };
        self.stage(own, plan.revision);
        Some(self.announce(plan, true, reasons::ROLLED_BACK, "Redeploy", note))
    }

    /// `segments` with current addresses; `None` if a host of them is away.
    fn reachable(&self, segments: &[Segment]) -> Option<Vec<Segment>> {
        segments
            .iter()
            .map(|s| {
                let node = &s.host.node;
                let host = self.snapshot.hop(node);
                Some(Segment {
                    host: host.filter(|_| self.snapshot.is_alive(node))?,
                    blocks: s.blocks.clone(),
                })
            })
            .collect()
    }
}

fn measured(requests: &RequestView) -> Measured {
    let (p50, p95) = (requests.latency_p50_seconds, requests.latency_p95_seconds);
    Measured {
        mean_seconds: p50,
        deviation_seconds: ((p95 - p50) / P95_DEVIATIONS).max(0.0),
        requests: requests.answered,
    }
}
