//! What becomes of a DnnModel, in its status and in Events.

use super::decision::{Notice, Regarding};
use super::deploy::Phase;
use super::memory::ModelMemory;
use super::models::{Preparation, Step};
use super::plan::{PlanNotice, seconds_only};
use super::snapshot::Snapshot;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lamina_crds::conditions::{
    FETCHED, PROFILED, READY, RECONCILING, SLICED, STALLED, condition, is_true, set,
};
use lamina_crds::dnn_model::{Failure, ProfileSummary, Progress};
use lamina_crds::quantity::format_bytes;
use lamina_crds::{DnnModel, DnnModelStatus, Placement, PlacementStatus, reasons};
use lamina_model::Manifest;
use std::sync::Arc;

/// Redeploys that are kept in the history.
const HISTORY_LENGTH: usize = 10;
/// A redeploy is measured when the new path has served for so long.
const MEASURE_SECONDS: f64 = 10.0;
/// Progress alone is written at most once in this time.
const PROGRESS_PAUSE_SECONDS: f64 = 0.5;

/// One entry of the model, as it is after this look at the world.
#[derive(Debug)]
pub(crate) struct EntryState {
    /// Name of the Placement.
    pub name: String,
    /// The node.
    pub entry: String,
    /// Where its newest plan stands.
    pub phase: Phase,
    /// Its status; `None` before it was made.
    pub status: Option<PlacementStatus>,
}

/// Everything that the status is made from.
pub(crate) struct Parts<'a> {
    /// How far preparing is.
    pub preparation: &'a Preparation,
    /// The entries.
    pub entries: &'a [EntryState],
    /// Why there is no entry, if so.
    pub no_entry: Option<String>,
    /// What was told about its Placements.
    pub told: &'a [PlanNotice],
}

/// An Event about `model`.
pub(crate) fn notice(model: &DnnModel, n: &PlanNotice) -> Notice {
    Notice {
        regarding: Regarding {
            kind: "DnnModel",
            namespace: model.metadata.namespace.clone(),
            name: model.metadata.name.clone().unwrap_or_default(),
            uid: model.metadata.uid.clone().unwrap_or_default(),
        },
        warning: n.warning,
        reason: n.reason,
        action: n.action,
        note: n.note.clone(),
    }
}

/// The next status of `model`, and the Events about preparing it.
pub(crate) fn report(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    parts: &Parts<'_>,
) -> (DnnModelStatus, Vec<PlanNotice>) {
    let before = model.status.clone().unwrap_or_default();
    let mut status = before.clone();
    status.observed_generation = model.metadata.generation.unwrap_or_default();
    status.placements = parts.entries.iter().map(|e| e.name.clone()).collect();
    let mut notices = Vec::new();
    match parts.preparation {
        Preparation::Ready { profile, fresh } => {
            if *fresh && let Some(manifest) = snapshot.manifests.get(&profile.manifest) {
                notices.extend(prepared(model, profile, manifest));
            }
            status.profile = Some(profile.clone());
        }
        Preparation::Failed {
            reason,
            message,
            fresh: true,
            ..
        } => notices.push(PlanNotice {
            warning: true,
            reason,
            action: "Prepare",
            note: message.clone(),
        }),
        _ => {}
    }
    if let Some(message) = &parts.no_entry
        && !told_before(&before, reasons::NO_ENTRY_NODE, message)
    {
        notices.push(PlanNotice {
            warning: true,
            reason: reasons::NO_ENTRY_NODE,
            action: "Solve",
            note: message.clone(),
        });
    }
    remember_failure(snapshot, &mut status, notices.iter().chain(parts.told));
    (status.stage, status.progress) = stage(parts);
    for new in conditions(snapshot, model, &before, parts) {
        set(&mut status.conditions, new);
    }
    let namespace = model.metadata.namespace.as_deref();
    history(snapshot, memory, namespace, parts.entries, &mut status);
    hold_back_progress(snapshot, memory, &before, &mut status);
    (status, notices)
}

fn told_before(before: &DnnModelStatus, reason: &str, message: &str) -> bool {
    let is_shown = before
        .conditions
        .iter()
        .any(|c| c.type_ == READY && c.reason == reason && c.message == message);
    // While preparing fails, that is what Ready speaks of.
    let is_newest = before
        .last_failure
        .as_ref()
        .is_some_and(|f| f.reason == reason && f.message == message);
    is_shown || is_newest && !is_true(&before.conditions, READY)
}

fn prepared(model: &DnnModel, p: &ProfileSummary, manifest: &Manifest) -> [PlanNotice; 3] {
    let make = |reason, note| PlanNotice {
        warning: false,
        reason,
        action: "Prepare",
        note,
    };
    let seconds: f64 = manifest.blocks.iter().map(|b| b.time.p50).sum();
    let reason = p.rung_reason.as_deref().map(|r| format!(": {r}"));
    [
        make(
            reasons::MODEL_FETCHED,
            format!(
                "{} on {}, sha256 {}",
                model.spec.source.uri,
                p.node,
                manifest.source.short()
            ),
        ),
        make(
            reasons::MODEL_SLICED,
            format!(
                "{} blocks ({}{}); {} boundary values differ from the whole model by at most {}",
                p.blocks,
                p.rung,
                reason.unwrap_or_default(),
                manifest.check.compared,
                p.max_abs_diff
            ),
        ),
        make(
            reasons::MODEL_PROFILED,
            format!(
                "{} of weights, {:.2} GFLOP and {} for one request on {}",
                format_bytes(p.weight_bytes),
                p.flops as f64 / 1e9,
                super::text::millis(seconds * 1e3),
                p.node
            ),
        ),
    ]
}

fn remember_failure<'a>(
    snapshot: &Snapshot,
    status: &mut DnnModelStatus,
    notices: impl Iterator<Item = &'a PlanNotice>,
) {
    let grave = |n: &&PlanNotice| n.warning && n.reason != reasons::LINK_DEGRADED;
    if let Some(n) = notices.filter(grave).last() {
        status.last_failure = Some(Failure {
            time: Time(seconds_only(snapshot.now)),
            reason: n.reason.to_owned(),
            message: n.note.clone(),
        });
    }
}

fn stage(parts: &Parts<'_>) -> (String, Option<Progress>) {
    match parts.preparation {
        Preparation::Working { step, progress, .. } => {
            return (step.name().to_owned(), progress.clone());
        }
        Preparation::Failed { .. } => return ("Failed".to_owned(), None),
        Preparation::Ready { .. } => {}
    }
    if parts.no_entry.is_some() {
        return ("Failed".to_owned(), None);
    }
    let mut progress = None;
    let mut stage = "Serving";
    for entry in parts.entries {
        let at = match &entry.phase {
            Phase::Loading { ready, total, .. } => {
                progress.get_or_insert(Progress {
                    done: *ready as u64,
                    total: *total as u64,
                    text: format!("{ready}/{total}"),
                });
                "Deploying"
            }
            Phase::Verifying | Phase::Flipping(_) => "Verifying",
            _ if entry.status.as_ref().is_none_or(|s| s.active.is_none()) => "Solving",
            _ => continue,
        };
        if stage == "Serving" {
            stage = at;
        }
    }
    (stage.to_owned(), progress)
}

/// Fetched, Sliced and Profiled, as far as preparing has come.
fn steps(parts: &Parts<'_>) -> [(&'static str, bool, String, String); 3] {
    let order = [
        (FETCHED, Step::Fetching, reasons::MODEL_FETCHED),
        (SLICED, Step::Slicing, reasons::MODEL_SLICED),
        (PROFILED, Step::Profiling, reasons::MODEL_PROFILED),
    ];
    order.map(|(kind, step, done)| match parts.preparation {
        Preparation::Ready { .. } => (kind, true, done.to_owned(), String::new()),
        Preparation::Working {
            step: at, message, ..
        } => match at.cmp(&step) {
            std::cmp::Ordering::Greater => (kind, true, done.to_owned(), String::new()),
            std::cmp::Ordering::Equal => (kind, false, step.name().to_owned(), message.clone()),
            std::cmp::Ordering::Less => (kind, false, "Pending".to_owned(), String::new()),
        },
        Preparation::Failed {
            reason, message, ..
        } => {
            let failed_at = match *reason {
                reasons::INVALID_MODEL | reasons::INPUT_MISMATCH => Step::Slicing,
                _ => Step::Fetching,
            };
            if failed_at > step {
                (kind, true, done.to_owned(), String::new())
            } else {
                (kind, false, (*reason).to_owned(), message.clone())
            }
        }
    })
}

fn conditions(
    snapshot: &Snapshot,
    model: &DnnModel,
    before: &DnnModelStatus,
    parts: &Parts<'_>,
) -> Vec<Condition> {
    let now = Time(seconds_only(snapshot.now));
    let generation = model.metadata.generation;
    let make = |kind: &str, is: bool, reason: &str, message: String| {
        condition(kind, is, reason, message, generation, now.clone())
    };
    let mut all: Vec<Condition> = steps(parts)
        .into_iter()
        .map(|(kind, is, reason, message)| make(kind, is, &reason, message))
        .collect();
    let (ready, reason, message) = readiness(parts);
    let mut condition = make(READY, ready, &reason, message);
    if ready && !matches!(parts.preparation, Preparation::Ready { .. }) {
        // What serves is what an earlier spec asked for.
        condition.observed_generation = before.profile.as_ref().map(|p| p.generation);
    }
    let work = match parts.preparation {
        Preparation::Working { message, .. } => Some(message.clone()),
        Preparation::Failed {
            permanent: false,
            message,
            ..
        } => Some(message.clone()),
        Preparation::Failed { .. } => None,
        Preparation::Ready { .. } => parts
            .entries
            .iter()
            .find(|e| is_moving(&e.phase) || e.status.is_none())
            .map(|e| format!("{} is being deployed", e.name)),
    };
    all.push(condition);
    all.push(match work {
        Some(message) => make(RECONCILING, true, "InProgress", message),
        None => make(RECONCILING, false, "Settled", String::new()),
    });
    let stuck = match parts.preparation {
        Preparation::Failed {
            permanent: true,
            reason,
            message,
            ..
        } => make(STALLED, true, reason, message.clone()),
        _ => make(STALLED, false, "Settled", String::new()),
    };
    all.push(stuck);
    all
}

const fn is_moving(phase: &Phase) -> bool {
    matches!(
        phase,
        Phase::Loading { .. } | Phase::Verifying | Phase::Flipping(_)
    )
}

/// Ready of the whole model: status, reason, message.
fn readiness(parts: &Parts<'_>) -> (bool, String, String) {
    let serves = parts
        .entries
        .iter()
        .any(|e| e.status.as_ref().is_some_and(|s| s.active.is_some()));
    // A failed update takes nothing from what an earlier spec made ready.
    if let Preparation::Failed {
        reason, message, ..
    } = parts.preparation
        && !serves
    {
        return (false, (*reason).to_owned(), message.clone());
    }
    if let Some(message) = &parts.no_entry {
        let reason = reasons::NO_ENTRY_NODE.to_owned();
        return (false, reason, message.clone());
    }
    if let Preparation::Working { step, message, .. } = parts.preparation
        && !serves
    {
        return (false, step.name().to_owned(), message.clone());
    }
    let ready = |e: &EntryState| {
        let conditions = &e.status.as_ref()?.conditions;
        conditions.iter().find(|c| c.type_ == READY).cloned()
    };
    let several = parts.entries.len() > 1;
    for entry in parts.entries {
        let Some(condition) = ready(entry) else {
            return (false, "Solving".to_owned(), "no plan yet".to_owned());
        };
        if condition.status != "True" {
            let message = if several {
                format!("{}: {}", entry.name, condition.message)
            } else {
                condition.message
            };
            return (false, condition.reason, message);
        }
    }
    let message = match (parts.preparation, parts.entries) {
        (Preparation::Working { message, .. } | Preparation::Failed { message, .. }, _) => {
            format!("{message}; the last good placement keeps serving")
        }
        (_, [one]) => ready(one).map(|c| c.message).unwrap_or_default(),
        (_, all) => {
            let names: Vec<&str> = all.iter().map(|e| e.entry.as_str()).collect();
            format!("serves at {}", names.join(", "))
        }
    };
    (true, "Serving".to_owned(), message)
}

/// Adds the redeploys that ended, and what was measured of them since.
fn history(
    snapshot: &Snapshot,
    memory: &mut ModelMemory,
    namespace: Option<&str>,
    entries: &[EntryState],
    status: &mut DnnModelStatus,
) {
    let kept = &status.history;
    memory.redeploys.retain(|new| {
        !kept
            .iter()
            .any(|r| r.placement == new.placement && r.revision == new.revision)
    });
    for new in &memory.redeploys {
        status.history.insert(0, new.clone());
    }
    status.history.truncate(HISTORY_LENGTH);
    for redeploy in &mut status.history {
        let serving = entries
            .iter()
            .filter(|e| e.name == redeploy.placement)
            .any(|e| {
                e.status
                    .as_ref()
                    .is_some_and(|s| s.active_revision == redeploy.revision)
            });
        let old_enough = snapshot.seconds_since(redeploy.time.0) >= MEASURE_SECONDS;
        if redeploy.measured_after_ms.is_none() && serving && old_enough {
            redeploy.measured_after_ms =
                measured(snapshot, namespace, &redeploy.placement, redeploy.revision);
        }
    }
}

fn measured(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    placement: &str,
    revision: i64,
) -> Option<f64> {
    let is_it = |p: &&Arc<Placement>| {
        p.metadata.name.as_deref() == Some(placement)
            && p.metadata.namespace.as_deref() == namespace
    };
    let uid = snapshot
        .placements
        .iter()
        .find(is_it)?
        .metadata
        .uid
        .as_ref()?;
    let requests = snapshot
        .requests
        .get(uid)
        .filter(|r| r.revision == revision && r.answered > 0)?;
    Some((requests.latency_p50_seconds * 1e4).round() / 10.0)
}

/// Keeps the old progress where nothing else changed and it was written just now.
fn hold_back_progress(
    snapshot: &Snapshot,
    memory: &mut ModelMemory,
    before: &DnnModelStatus,
    status: &mut DnnModelStatus,
) {
    let held = DnnModelStatus {
        progress: before.progress.clone(),
        ..status.clone()
    };
    let recent = memory
        .progress_written
        .is_some_and(|t| snapshot.seconds_since(t) < PROGRESS_PAUSE_SECONDS);
    if recent && held == *before {
        *status = held;
    } else if *status != *before {
        memory.progress_written = Some(snapshot.now);
    }
}
