//! A solution as a plan that can be written.

use super::{Case, PlanNotice, Planned, seconds_only, text};
use crate::controllers::memory::PlacementMemory;
use crate::controllers::plan::weigh::figures;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_crds::reasons;
use lamina_placement::{Certificate, Problem, Solution, Status};

impl Case<'_> {
    pub(super) fn segments(&self, solution: &Solution) -> Option<Vec<Segment>> {
        let placement = solution.placements.first()?;
        placement
            .segments
            .iter()
            .map(|s| {
                Some(Segment {
                    host: self.snapshot.hop(&s.node)?,
                    blocks: s
                        .blocks
                        .iter()
                        .filter_map(|b| u32::try_from(*b).ok())
                        .collect(),
                })
            })
            .collect()
    }

    pub(super) fn first(
        &self,
        own: &mut PlacementMemory,
        solution: &Solution,
        to: Vec<Segment>,
    ) -> Planned {
        own.problem = None;
        own.waiting_since = None;
        let plan = self.plan(solution, to, None, "first placement".to_owned());
        let note = format!(
            "revision {} for {}: {}, est. {}, {}",
            plan.revision,
            self.entry(),
            format_path(&plan.segments),
            text::millis(plan.estimated_latency_ms),
            plan.certificate,
        );
        self.announce(plan, reasons::PLACEMENT_SOLVED, "Solve", note)
    }

    pub(super) fn switch(
        &self,
        own: &mut PlacementMemory,
        built: &Problem,
        solution: &Solution,
        current: &Plan,
        to: Vec<Segment>,
        trigger: String,
    ) -> Planned {
        own.candidate = None;
        own.suppressed = None;
        let before = figures(built, current).map(|m| m.latency_seconds * 1e3);
        let what = moves_or_path(current, &to);
        let plan = self.plan(solution, to, before, trigger);
        let after = text::millis(plan.estimated_latency_ms);
        let estimate = before.map_or_else(
            || format!("est. {after}"),
            |b| format!("est. {} → {after}", text::millis(b)),
        );
        let note = format!("{}; {what} ({estimate})", plan.trigger);
        self.announce(plan, reasons::REDEPLOY_STARTED, "Redeploy", note)
    }

    fn announce(
        &self,
        plan: Plan,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Planned {
        Planned {
            plan: Some(plan),
            notices: vec![PlanNotice {
                warning: false,
                reason,
                action,
                note,
            }],
            ..Planned::default()
        }
    }

    fn plan(
        &self,
        solution: &Solution,
        segments: Vec<Segment>,
        replaced_latency_ms: Option<f64>,
        trigger: String,
    ) -> Plan {
        let placement = self.question.placement;
        let status = placement.and_then(|p| p.status.as_ref());
        let newest = placement.and_then(|p| p.spec.plan.as_ref());
        let last = [
            newest.map_or(0, |p| p.revision),
            status.map_or(0, |s| s.active_revision),
            status.map_or(0, |s| s.failed_revision),
        ];
        let latency = solution.metrics.as_ref().map_or(0.0, |m| m.latency_seconds);
        Plan {
            revision: last.into_iter().max().unwrap_or(0) + 1,
            manifest: self.question.digest.to_owned(),
            segments,
            strategy: solution.strategy.clone(),
            certificate: certificate(&solution.certificate),
            estimated_latency_ms: round(latency * 1e3),
            replaced_latency_ms: replaced_latency_ms.map(round),
            trigger,
            time: Time(seconds_only(self.snapshot.now)),
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

/// Milliseconds with a tenth: more digits say nothing and make every solve differ.
fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
