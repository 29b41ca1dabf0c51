//! What becomes of a Placement, in its status and in Events.

use super::deploy::{self, Phase};
use super::memory::PlacementMemory;
use super::plan::{PlanNotice, WAITING, seconds_only};
use super::snapshot::Snapshot;
use super::text::millis;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lamina_crds::compute_node::SliceState;
use lamina_crds::conditions::{
    DEPLOYED, READY, RECONCILING, SOLVED, STALLED, VERIFIED, condition, set,
};
use lamina_crds::dnn_model::Redeploy;
use lamina_crds::placement::{Plan, format_path};
use lamina_crds::{Placement, PlacementStatus, reasons};

/// The measured latency is written at most once in this time.
const MEASURED_PAUSE_SECONDS: f64 = 10.0;

/// The next status of a Placement with what led to it.
pub(crate) struct Report {
    /// The status.
    pub status: PlacementStatus,
    /// What people are told.
    pub notices: Vec<PlanNotice>,
    /// The redeploy that ended, for the model's history.
    pub redeploy: Option<Redeploy>,
}

/// Status of `placement` after `phase`.
pub(crate) fn report(
    snapshot: &Snapshot,
    own: &mut PlacementMemory,
    placement: &Placement,
    phase: &Phase,
) -> Report {
    let mut report = Report {
        status: placement.status.clone().unwrap_or_default(),
        notices: Vec::new(),
        redeploy: None,
    };
    let generation = placement.metadata.generation;
    report.status.observed_generation = generation.unwrap_or_default();
    match phase {
        Phase::Flipped { in_flight_at_flip } => {
            flipped(snapshot, placement, *in_flight_at_flip, &mut report);
        }
        Phase::Failed(failure) => {
            let newest = placement.spec.plan.as_ref().map_or(0, |p| p.revision);
            report.status.failed_revision = newest;
            report.notices.push(PlanNotice {
                warning: true,
                reason: failure.reason,
                action: "Deploy",
                note: format!(
                    "revision {newest}: {}; {}",
                    failure.message,
                    what_serves(placement)
                ),
            });
        }
        _ => {}
    }
    let in_flight = match phase {
        Phase::Loading { .. } | Phase::Verifying | Phase::Flipping(_) => deploy::target(placement),
        _ => None,
    };
    report.status.target_revision = in_flight.map_or(0, |t| t.revision);
    report.status.target_path = in_flight
        .map(|t| format_path(&t.segments))
        .unwrap_or_default();
    figures(snapshot, own, placement, &mut report.status);
    conditions(snapshot, own, placement, phase, &mut report.status);
    report
}

fn what_serves(placement: &Placement) -> String {
    match deploy::active(placement) {
        Some(plan) => format!("revision {} keeps serving", plan.revision),
        None => "nothing serves yet".to_owned(),
    }
}

/// The newest plan has become the active one.
fn flipped(snapshot: &Snapshot, placement: &Placement, in_flight: u32, report: &mut Report) {
    let Some(target) = deploy::target(placement) else {
        return;
    };
    let before = deploy::active(placement);
    let took = snapshot.seconds_since(target.time.0);
    let now = Time(seconds_only(snapshot.now));
    let path = format_path(&target.segments);
    let status = &mut report.status;
    let note = match before {
        None => format!(
            "revision {} serves: {path}, after {took:.0}s",
            target.revision
        ),
        Some(old) => {
            status.redeploys += 1;
            report.redeploy = Some(redeploy(placement, old, target, &now));
            format!(
                "revision {} serves: {path} instead of {}, after {took:.0}s; {in_flight} requests in flight finished on revision {}",
                target.revision,
                format_path(&old.segments),
                old.revision,
            )
        }
    };
    status.active = Some(target.clone());
    status.active_revision = target.revision;
    status.active_since = Some(now);
    status.path = path;
    status.estimated = millis(target.estimated_latency_ms);
    status.measured = String::new();
    report.notices.push(PlanNotice {
        warning: false,
        reason: reasons::REDEPLOY_COMPLETED,
        action: "Deploy",
        note,
    });
}

fn redeploy(placement: &Placement, old: &Plan, new: &Plan, now: &Time) -> Redeploy {
    Redeploy {
        time: now.clone(),
        placement: placement.metadata.name.clone().unwrap_or_default(),
        revision: new.revision,
        trigger: new.trigger.clone(),
        from: format_path(&old.segments),
        to: format_path(&new.segments),
        estimated_before_ms: new.replaced_latency_ms.unwrap_or(old.estimated_latency_ms),
        estimated_after_ms: new.estimated_latency_ms,
        measured_after_ms: None,
    }
}

/// The columns of figures.
fn figures(
    snapshot: &Snapshot,
    own: &mut PlacementMemory,
    placement: &Placement,
    status: &mut PlacementStatus,
) {
    let uid = placement.metadata.uid.as_deref().unwrap_or_default();
    let Some(requests) = snapshot
        .requests
        .get(uid)
        .filter(|r| r.revision == status.active_revision && r.answered > 0)
    else {
        return;
    };
    let due = own
        .measured_written
        .is_none_or(|t| snapshot.seconds_since(t) >= MEASURED_PAUSE_SECONDS);
    if due || status.measured.is_empty() {
        own.measured_written = Some(snapshot.now);
        status.measured = millis(requests.latency_p50_seconds * 1e3);
    }
}

fn conditions(
    snapshot: &Snapshot,
    own: &PlacementMemory,
    placement: &Placement,
    phase: &Phase,
    status: &mut PlacementStatus,
) {
    let now = Time(seconds_only(snapshot.now));
    let generation = placement.metadata.generation;
    let make = |kind: &str, is: bool, reason: &str, message: String| {
        condition(kind, is, reason, message, generation, now.clone())
    };
    let plan = placement.spec.plan.as_ref();
    let mut all = Vec::new();
    // After a restart nothing is known of problems until a strategy was asked.
    let known = own.solved_at.is_some() || own.problem.is_some();
    let solved = match (&own.problem, plan) {
        (Some((reason, message)), _) => Some(make(SOLVED, false, reason, message.clone())),
        (None, Some(p)) => known.then(|| {
            let message = format!(
                "revision {}: {}, est. {}, {}",
                p.revision,
                format_path(&p.segments),
                millis(p.estimated_latency_ms),
                p.certificate
            );
            match &own.remark {
                Some(r) if r.fell_back => {
                    let message = format!("{message}; {}", r.text);
                    make(SOLVED, true, reasons::STRATEGY_FELL_BACK, message)
                }
                Some(r) => {
                    let message = format!("{message}; {}", r.text);
                    make(SOLVED, true, reasons::PLACEMENT_SOLVED, message)
                }
                None => make(SOLVED, true, reasons::PLACEMENT_SOLVED, message),
            }
        }),
        (None, None) => Some(make(SOLVED, false, "Solving", "no plan yet".to_owned())),
    };
    all.extend(solved);
    let (deployed, verified) = progress(placement, phase, &make);
    all.push(deployed);
    all.push(verified);
    if let Some(ready) = ready(snapshot, own, placement, phase, status, &make) {
        all.push(ready);
    }
    let working = matches!(
        phase,
        Phase::Loading { .. } | Phase::Verifying | Phase::Flipping(_)
    );
    let message = phase_message(phase);
    let (is, reason) = (working, if working { "Deploying" } else { "Settled" });
    all.push(make(RECONCILING, is, reason, message));
    let stuck = own
        .problem
        .as_ref()
        .filter(|(reason, _)| *reason == reasons::INVALID_SPEC);
    all.push(match stuck {
        Some((reason, message)) => make(STALLED, true, reason, message.clone()),
        None => make(STALLED, false, "Settled", String::new()),
    });
    for new in all {
        set(&mut status.conditions, new);
    }
}

/// Deployed and Verified, which speak of the newest plan.
fn progress(
    placement: &Placement,
    phase: &Phase,
    make: &impl Fn(&str, bool, &str, String) -> Condition,
) -> (Condition, Condition) {
    let message = phase_message(phase);
    let both = |deployed: bool, verified: bool, reason: &str| {
        (
            make(DEPLOYED, deployed, reason, message.clone()),
            make(VERIFIED, verified, reason, message.clone()),
        )
    };
    match phase {
        Phase::Unplanned => both(false, false, "NoPlan"),
        Phase::Loading { .. } => both(false, false, "Loading"),
        Phase::Verifying => both(true, false, "Verifying"),
        Phase::Flipping(_) => both(true, true, "Flipping"),
        Phase::Flipped { .. } => both(true, true, "Serving"),
        Phase::Failed(failure) => {
            let loaded = failure.reason == reasons::VERIFY_FAILED;
            both(loaded, false, failure.reason)
        }
        Phase::Serving | Phase::Nothing => {
            // The reason of a failure stays until another plan is tried.
            let status = placement.status.as_ref();
            let failed = |p: &Plan| status.is_some_and(|s| p.revision <= s.failed_revision);
            let old = |kind: &str| status?.conditions.iter().find(|c| c.type_ == kind).cloned();
            if placement.spec.plan.as_ref().is_some_and(failed)
                && let (Some(deployed), Some(verified)) = (old(DEPLOYED), old(VERIFIED))
            {
                return (deployed, verified);
            }
            both(true, true, "Serving")
        }
    }
}

fn phase_message(phase: &Phase) -> String {
    match phase {
        Phase::Unplanned | Phase::Serving | Phase::Nothing | Phase::Flipped { .. } => String::new(),
        Phase::Loading {
            ready,
            total,
            waiting_for,
        } => format!("{ready}/{total} slices are ready; {waiting_for}"),
        Phase::Verifying => "the probe is on its way through the path".to_owned(),
        Phase::Flipping(Some(v)) => format!(
            "the probe passed in {}; requests in flight finish on the old path",
            millis(v.latency_ms)
        ),
        Phase::Flipping(None) => "requests in flight finish on the old path".to_owned(),
        Phase::Failed(failure) => failure.message.clone(),
    }
}

/// Ready; `None` keeps what it was, for right after a restart nobody knows.
fn ready(
    snapshot: &Snapshot,
    own: &PlacementMemory,
    placement: &Placement,
    phase: &Phase,
    status: &PlacementStatus,
    make: &impl Fn(&str, bool, &str, String) -> Condition,
) -> Option<Condition> {
    let Some(active) = &status.active else {
        let (reason, message) = match (&own.problem, phase) {
            (Some((reason, message)), _) => (*reason, message.clone()),
            (None, Phase::Failed(f)) => (f.reason, f.message.clone()),
            (None, Phase::Verifying) => ("Verifying", phase_message(phase)),
            (None, Phase::Unplanned | Phase::Nothing) => ("Solving", "no plan yet".to_owned()),
            (None, _) => ("Deploying", phase_message(phase)),
        };
        return Some(make(READY, false, reason, message));
    };
    let hosts = std::iter::once(placement.spec.entry.as_str()).chain(deploy::hosts(active));
    if let Some(lost) = hosts.into_iter().find(|h| !snapshot.is_alive(h)) {
        if snapshot.is_starting() {
            return None;
        }
        let message = format!("revision {} runs on {lost}, which is lost", active.revision);
        return Some(make(READY, false, reasons::NODE_LOST, message));
    }
    let uid = placement.metadata.uid.as_deref().unwrap_or_default();
    let not_loaded = active.segments.iter().enumerate().find(|(i, s)| {
        deploy::slice_status(snapshot, &s.host.node, uid, active.revision, *i)
            .is_none_or(|x| x.state != SliceState::Ready)
    });
    if let Some((_, segment)) = not_loaded {
        let message = format!(
            "{} loads its part of revision {} again",
            segment.host.node, active.revision
        );
        return Some(make(READY, false, "Loading", message));
    }
    let message = match &own.problem {
        Some((reason, message)) if *reason != WAITING => {
            format!("revision {} serves; {message}", active.revision)
        }
        _ => format!("revision {} serves: {}", active.revision, status.path),
    };
    Some(make(READY, true, "Serving", message))
}
