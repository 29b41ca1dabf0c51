//! Make before break: how a plan comes to serve.
//!
//! Only clocks are remembered. The state of a deployment is read each time from the
//! Placement and the ComputeNodes, so an operator that is killed at any moment resumes:
//!
//! 1. loading: hosts hold the slices of the serving and of the newest plan side by side;
//! 2. verifying: all slices are loaded, and the entry sends the probe through the newest plan;
//! 3. flipping: the probe passed, and new requests take the newest plan. Once the entry's
//!    route says so, there is no way back;
//! 4. flipped: the entry reports it and no older request is in flight; the old slices are
//!    removed.

use super::room;
use super::slices::RoutePlan;
use crate::state::ids;
use crate::state::memory::Clock;
use crate::state::plans::{DeployFailure, Phase, active, hosts, target};
use crate::state::snapshot::Snapshot;
use lamina_crds::compute_node::{RouteStatus, SliceState, SliceStatus};
use lamina_crds::placement::{Plan, Segment, format_blocks};
use lamina_crds::{Placement, reasons};

/// A slice without progress for this long has failed.
const LOAD_TIMEOUT_SECONDS: f64 = 600.0;
/// A probe without an outcome for this long has failed.
const VERIFY_TIMEOUT_SECONDS: f64 = 60.0;
/// Longest message kept from a host, in characters.
const TOLD_CHARACTERS: usize = 1000;
/// Requests that are still in flight on the old plan after this time are left
/// to their retries.
const DRAIN_TIMEOUT_SECONDS: f64 = 30.0;

/// The state of the newest plan of `placement`. `clock` measures how long the present step has made
/// no progress.
pub(crate) fn phase(snapshot: &Snapshot, placement: &Placement, clock: &mut Clock) -> Phase {
    let uid = ids::uid(&placement.metadata);
    let Some(target) = target(placement) else {
        *clock = Clock::default();
        return match (active(placement), &placement.spec.plan) {
            (Some(_), _) => Phase::Serving,
            (None, Some(_)) => Phase::Nothing,
            (None, None) => Phase::Unplanned,
        };
    };
    let entry = &placement.spec.entry;
    let route = snapshot.route_status(entry, uid);
    let committed = snapshot
        .route_on(entry, uid)
        .is_some_and(|r| r.active_revision == target.revision);
    let verified = route
        .and_then(|r| r.verified.as_ref())
        .filter(|v| v.revision == target.revision);
    let all_there = hosts(target).all(|h| snapshot.is_alive(h));
    if committed || (all_there && verified.is_some_and(|v| v.passed)) {
        return flip(snapshot, placement, target, route, clock);
    }
    if let Some(v) = verified.filter(|v| !v.passed) {
        return Phase::Failed(DeployFailure {
            reason: reasons::VERIFY_FAILED,
            message: format!("the probe failed: {}", told(&v.message)),
            node: None,
        });
    }
    load(snapshot, placement, target, clock)
        .unwrap_or_else(|| verify(snapshot, entry, target, clock))
}

fn flip(
    snapshot: &Snapshot,
    placement: &Placement,
    target: &Plan,
    route: Option<&RouteStatus>,
    clock: &mut Clock,
) -> Phase {
    let waited = clock.seconds(snapshot, format!("flip {}", target.revision));
    let verified = route.and_then(|r| r.verified.clone());
    let Some(route) = route.filter(|r| r.active_revision == target.revision) else {
        return Phase::Flipping(verified);
    };
    // If a host is gone, waiting for requests on it only delays the next move.
    let host_lost = active(placement)
        .into_iter()
        .chain([target])
        .flat_map(hosts)
        .any(|h| !snapshot.is_starting() && !snapshot.is_alive(h));
    let drained = route.oldest_in_flight >= target.revision;
    if drained || host_lost || waited >= DRAIN_TIMEOUT_SECONDS {
        Phase::Flipped {
            in_flight_at_flip: route.in_flight_at_flip,
        }
    } else {
        Phase::Flipping(verified)
    }
}

/// Loading or Failed; `None` once every slice is ready.
fn load(
    snapshot: &Snapshot,
    placement: &Placement,
    target: &Plan,
    clock: &mut Clock,
) -> Option<Phase> {
    let uid = ids::uid(&placement.metadata);
    let statuses: Vec<(&Segment, Option<&SliceStatus>)> = target
        .segments
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let status = snapshot.slice_status(&s.host.node, uid, target.revision, i);
            (s, status)
        })
        .collect();
    let failed = statuses
        .iter()
        .find_map(|(s, status)| Some((s, status.filter(|x| x.state == SliceState::Failed)?)));
    if let Some((segment, status)) = failed {
        return Some(load_failed(segment, &status.message));
    }
    let is_ready = |(segment, status): &(&Segment, Option<&SliceStatus>)| {
        status.is_some_and(|s| s.state == SliceState::Ready)
            && snapshot.is_alive(&segment.host.node)
    };
    let ready = statuses.iter().filter(|s| is_ready(s)).count();
    let (segment, status) = statuses.iter().find(|s| !is_ready(s))?;
    if status.is_none()
        && let Some(failure) = room::crowded(snapshot, placement, target)
    {
        return Some(Phase::Failed(failure));
    }
    let waiting_for = waiting_for(segment, *status);
    let waited = clock.seconds(
        snapshot,
        format!("load {} {ready} {waiting_for}", target.revision),
    );
    if waited >= LOAD_TIMEOUT_SECONDS {
        let message = format!("no progress for {LOAD_TIMEOUT_SECONDS:.0}s; {waiting_for}");
        return Some(load_failed(segment, &message));
    }
    let has_blocks =
        |status: &Option<&SliceStatus>| status.is_some_and(|s| s.state != SliceState::Fetching);
    Some(Phase::Loading {
        ready,
        total: statuses.len(),
        fetched: statuses.iter().all(|(_, status)| has_blocks(status)),
        waiting_for,
    })
}

fn load_failed(segment: &Segment, message: &str) -> Phase {
    let node = &segment.host.node;
    let blocks = format_blocks(&segment.blocks);
    let message = told(message);
    Phase::Failed(DeployFailure {
        reason: reasons::SEGMENT_LOAD_FAILED,
        message: format!("{node} cannot load blocks {blocks}: {message}"),
        node: Some(node.clone()),
    })
}

/// A host's message, shortened.
fn told(message: &str) -> String {
    message.chars().take(TOLD_CHARACTERS).collect()
}

fn waiting_for(segment: &Segment, status: Option<&SliceStatus>) -> String {
    let node = &segment.host.node;
    match status {
        None => format!("{node} has not started"),
        Some(s) => {
            let doing = match s.state {
                SliceState::Fetching => "fetches",
                SliceState::Loading => "loads",
                SliceState::Ready => "is away",
                SliceState::Failed => "failed",
            };
            if s.message.is_empty() {
                format!("{node} {doing}")
            } else {
                format!("{node} {doing}: {}", told(&s.message))
            }
        }
    }
}

fn verify(snapshot: &Snapshot, entry: &str, target: &Plan, clock: &mut Clock) -> Phase {
    let waited = clock.seconds(
        snapshot,
        format!("verify {} {}", target.revision, snapshot.is_alive(entry)),
    );
    if snapshot.is_alive(entry) && waited >= VERIFY_TIMEOUT_SECONDS {
        return Phase::Failed(DeployFailure {
            reason: reasons::VERIFY_FAILED,
            message: format!("{entry} reported no result of the probe within {waited:.0}s"),
            node: None,
        });
    }
    Phase::Verifying
}

/// What hosts should hold in `phase`: the plans side by side, the one for new requests, and the one
/// for the entry to verify.
pub(crate) fn wanted<'a>(placement: &'a Placement, phase: &Phase) -> (RoutePlan<'a>, Option<i64>) {
    let active = active(placement);
    let target = target(placement);
    let only = |plan: Option<&'a Plan>| RoutePlan {
        active_revision: plan.map_or(0, |p| p.revision),
        plans: plan.into_iter().collect(),
    };
    let both = |serving: Option<&'a Plan>| RoutePlan {
        active_revision: serving.map_or(0, |p| p.revision),
        plans: active.into_iter().chain(target).collect(),
    };
    match phase {
        Phase::Unplanned | Phase::Serving | Phase::Nothing | Phase::Failed(_) => {
            (only(active), None)
        }
        Phase::Loading { .. } => (both(active), None),
        Phase::Verifying => (both(active), target.map(|t| t.revision)),
        Phase::Flipping(_) => (both(target), None),
        Phase::Flipped { .. } => (only(target), None),
    }
}

#[cfg(test)]
mod tests;
