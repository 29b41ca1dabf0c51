//! Turns a solution into a plan that can be written.

use super::{Case, Planned};
use crate::state::decision::Solve;
use crate::state::memory::{PlacementMemory, Stages};
use crate::state::notice::Notice;
use crate::state::snapshot::{Answer, Remark};
use crate::state::text;
use crate::state::time::seconds_only;
use lamina_crds::placement::{Cause, Plan, Segment, format_path};
use lamina_crds::reasons;
use lamina_placement::{Certificate, Solution, Status};

impl Case<'_> {
    pub(super) fn first(
        &self,
        own: &mut PlacementMemory,
        solution: &Solution,
        to: Vec<Segment>,
    ) -> Planned {
        own.problem = None;
        own.waiting_since = None;
        own.candidate = None;
        let trigger = "first placement".to_owned();
        let plan = self.plan(solution, to, None, (Cause::Required, trigger));
        self.stage(own, plan.revision);
        let note = format!(
            "revision {} for {}: {}, est. {}, {}",
            plan.revision,
            self.entry(),
            format_path(&plan.segments),
            text::millis(plan.estimated_latency_ms),
            plan.certificate,
        );
        self.announce(plan, false, reasons::PLACEMENT_SOLVED, "Solve", note)
    }

    pub(super) fn switch(
        &self,
        own: &mut PlacementMemory,
        before_seconds: Option<f64>,
        solution: &Solution,
        current: &Plan,
        to: Vec<Segment>,
        why: (Cause, String),
    ) -> Planned {
        own.candidate = None;
        own.suppressed = None;
        own.trial = None;
        let before = before_seconds.map(|s| s * 1e3);
        let what = moves_or_path(current, &to);
        let plan = self.plan(solution, to, before, why);
        self.stage(own, plan.revision);
        let after = text::millis(plan.estimated_latency_ms);
        let estimate = before.map_or_else(
            || format!("est. {after}"),
            |b| format!("est. {} → {after}", text::millis(b)),
        );
        let note = format!("{}; {what} ({estimate})", plan.trigger);
        self.announce(plan, false, reasons::REDEPLOY_STARTED, "Redeploy", note)
    }

    /// Notes when the deployment of a revision began, and why.
    pub(super) fn stage(&self, own: &mut PlacementMemory, revision: i64) {
        let now = self.snapshot.now;
        own.stages = Some(Stages {
            revision,
            noticed: own.noticed.take().unwrap_or(now),
            decided: now,
            fetched: None,
            loaded: None,
            verified: None,
        });
    }

    pub(super) fn announce(
        &self,
        plan: Plan,
        warning: bool,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Planned {
        let notice = Notice {
            regarding: self.site.regarding(),
            warning,
            reason,
            action,
            note,
        };
        Planned {
            plan: Some(plan),
            notices: vec![notice],
            ..Planned::default()
        }
    }

    /// A revision that no plan of this Placement has had.
    pub(super) fn next_revision(&self) -> i64 {
        let placement = self.site.placement;
        let status = placement.and_then(|p| p.status.as_ref());
        let newest = placement.and_then(|p| p.spec.plan.as_ref());
        let last = [
            newest.map_or(0, |p| p.revision),
            status.map_or(0, |s| s.active_revision),
            status.map_or(0, |s| s.failed_revision),
        ];
        last.into_iter().max().unwrap_or(0) + 1
    }

    fn plan(
        &self,
        solution: &Solution,
        segments: Vec<Segment>,
        replaced_latency_ms: Option<f64>,
        (cause, trigger): (Cause, String),
    ) -> Plan {
        let latency = solution.metrics.as_ref().map_or(0.0, |m| m.latency_seconds);
        Plan {
            revision: self.next_revision(),
            generation: self.wanted.generation,
            manifest: self.wanted.digest.clone(),
            crossings: self.crossings(&segments),
            thresholds: self.thresholds(solution),
            segments,
            strategy: solution.strategy.clone(),
            certificate: certificate(&solution.certificate),
            estimated_latency_ms: round(latency * 1e3),
            replaced_latency_ms: replaced_latency_ms.map(round),
            trigger,
            cause,
            time: seconds_only(self.snapshot.wall),
        }
    }

    /// Remembers a plugin's fault. The same fault is reported once, and its text stays even if its
    /// numbers change.
    pub(super) fn remark(&self, own: &mut PlacementMemory, answer: &Answer) -> Option<Notice> {
        let fault = |r: &Remark| (r.kind, r.fell_back);
        if own.remark.as_ref().map(fault) == answer.remark.as_ref().map(fault) {
            return None;
        }
        own.remark.clone_from(&answer.remark);
        let told = own.remark.as_ref().filter(|r| r.fell_back)?;
        Some(Notice::warning(
            self.site.regarding(),
            reasons::STRATEGY_FELL_BACK,
            "Solve",
            told.text.clone(),
        ))
    }

    pub(super) fn solve_of(&self, answer: &Answer) -> Solve {
        let solution = answer.solution.as_ref().ok();
        Solve {
            strategy: self.wanted.wish.strategy.name.clone(),
            seconds: answer.seconds,
            gap: solution.and_then(|s| s.certificate.gap),
            fell_back: answer.remark.as_ref().is_some_and(|r| r.fell_back),
        }
    }
}

fn moves_or_path(current: &Plan, to: &[Segment]) -> String {
    let moves = text::moves(&current.segments, to);
    if moves.is_empty() {
        format!("deploying {}", format_path(to))
    } else {
        moves
    }
}

/// `Optimal`, or `Feasible, gap 2.9%`.
fn certificate(proof: &Certificate) -> String {
    match (proof.status, proof.gap) {
        (Status::Optimal, _) => "Optimal".to_owned(),
        (_, Some(gap)) => format!("Feasible, gap {:.1}%", gap * 100.0),
        _ => "Feasible".to_owned(),
    }
}

/// Milliseconds to a tenth: more digits mean nothing and would make every solve differ.
fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
