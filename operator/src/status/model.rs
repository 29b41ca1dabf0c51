//! The status and the Events of a DnnModel.

use super::placement::STALLED_SECONDS;
use crate::state::ids::ObjectId;
use crate::state::memory::ModelMemory;
use crate::state::notice::{Notice, Regarding};
use crate::state::plans::Phase;
use crate::state::preparation::{Preparation, Step};
use crate::state::snapshot::Snapshot;
use crate::state::time::{Moment, seconds_only};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lamina_crds::conditions::{
    FETCHED, PROFILED, READY, RECONCILING, SERVING, SLICED, STALLED, condition, is_true, set,
};
use lamina_crds::dnn_model::{AcceptedSpec, Failure, ProfileSummary, Progress};
use lamina_crds::quantity::format_bytes;
use lamina_crds::{DnnModel, DnnModelStatus, PlacementStatus, reasons};
use lamina_model::Manifest;

/// Moves kept in the history over all entries.
const HISTORY_LENGTH: usize = 10;
/// Least time between two writes of progress alone.
const PROGRESS_PAUSE_SECONDS: f64 = 0.5;

/// One entry of the model after this look.
#[derive(Debug)]
pub(crate) struct EntryState {
    /// Name of the Placement.
    pub name: String,
    /// The node.
    pub entry: String,
    /// The state of its newest plan.
    pub phase: Phase,
    /// Its status; `None` if it is new.
    pub status: Option<PlacementStatus>,
    /// Since when the spec cannot be met there, if it cannot.
    pub unmet_since: Option<Moment>,
}

/// The input of the status.
pub(crate) struct Parts<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// The progress of preparing.
    pub preparation: &'a Preparation,
    /// The entries.
    pub entries: &'a [EntryState],
    /// Why there is no entry, if there is none.
    pub no_entry: Option<String>,
    /// Events about its Placements.
    pub told: &'a [Notice],
    /// Why the spec cannot be read, if it cannot: everything else refers to the previous one.
    pub unreadable: Option<String>,
}

/// The next status of `model`, and the Events about preparation.
pub(crate) fn report(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
    parts: &Parts<'_>,
) -> (DnnModelStatus, Vec<Notice>) {
    let regarding = Regarding::model(ObjectId::of(&model.metadata));
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
        } => notices.push(Notice::warning(
            regarding.clone(),
            reason,
            "Prepare",
            message.clone(),
        )),
        _ => {}
    }
    if let Some(message) = &parts.no_entry
        && !told_before(&before, reasons::NO_ENTRY_NODE, message)
    {
        notices.push(Notice::warning(
            regarding,
            reasons::NO_ENTRY_NODE,
            "Solve",
            message.clone(),
        ));
    }
    remember_failure(snapshot, &mut status, notices.iter().chain(parts.told));
    (status.stage, status.progress) = stage(parts);
    for new in conditions(snapshot, model, parts) {
        set(&mut status.conditions, new);
    }
    accept(model, parts, &mut status);
    history(memory, &mut status);
    hold_back_progress(snapshot, memory, &before, &mut status);
    (status, notices)
}

/// The status of a model that cannot be decided about.
pub(crate) fn set_aside(
    snapshot: &Snapshot,
    before: &DnnModelStatus,
    reason: &str,
    why: String,
) -> DnnModelStatus {
    let mut status = before.clone();
    "Failed".clone_into(&mut status.stage);
    let now = seconds_only(snapshot.wall);
    for (kind, is) in [(READY, false), (STALLED, true)] {
        let new = condition(kind, is, reason, why.clone(), None, now.clone());
        set(&mut status.conditions, new);
    }
    status
}

fn told_before(before: &DnnModelStatus, reason: &str, message: &str) -> bool {
    let is_shown = before
        .conditions
        .iter()
        .any(|c| c.type_ == READY && c.reason == reason && c.message == message);
    // While preparing fails, Ready reports that.
    let is_newest = before
        .last_failure
        .as_ref()
        .is_some_and(|f| f.reason == reason && f.message == message);
    is_shown || is_newest && !is_true(&before.conditions, READY)
}

fn prepared(model: &DnnModel, p: &ProfileSummary, manifest: &Manifest) -> [Notice; 3] {
    let regarding = Regarding::model(ObjectId::of(&model.metadata));
    let make = |reason, note| Notice::normal(regarding.clone(), reason, "Prepare", note);
    let seconds: f64 = manifest.blocks.iter().map(|b| b.time.p50).sum();
    let reason = p.rung_reason.as_deref().map(|r| format!(": {r}"));
    let first = manifest.blocks.first();
    let ahead = match first.is_none_or(|block| block.kind.is_torch_script()) {
        true => "",
        false => ", the first of which prepares images",
    };
    [
        make(
            reasons::MODEL_FETCHED,
            format!(
                "{} on {}, sha256 {}",
                crate::text::without_secrets(&model.spec.source.uri),
                p.node,
                manifest.source.short()
            ),
        ),
        make(
            reasons::MODEL_SLICED,
            format!(
                "{} blocks{ahead} ({}{}); {} boundary values differ from the whole model by at most {}",
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
                crate::state::text::millis(seconds * 1e3),
                p.node
            ),
        ),
    ]
}

fn remember_failure<'a>(
    snapshot: &Snapshot,
    status: &mut DnnModelStatus,
    notices: impl Iterator<Item = &'a Notice>,
) {
    let grave = |n: &&Notice| n.warning && n.reason != reasons::LINK_DEGRADED;
    if let Some(n) = notices.filter(grave).last() {
        status.last_failure = Some(Failure {
            time: seconds_only(snapshot.wall),
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
    if stage == "Serving" && parts.entries.iter().any(|e| e.unmet_since.is_some()) {
        stage = "Failed";
    }
    (stage.to_owned(), progress)
}

/// Fetched, Sliced and Profiled, according to the progress of preparing.
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

fn conditions(snapshot: &Snapshot, model: &DnnModel, parts: &Parts<'_>) -> Vec<Condition> {
    let now = seconds_only(snapshot.wall);
    let generation = model.metadata.generation;
    let make = |kind: &str, is: bool, reason: &str, message: String| {
        condition(kind, is, reason, message, generation, now.clone())
    };
    let mut all: Vec<Condition> = steps(parts)
        .into_iter()
        .map(|(kind, is, reason, message)| make(kind, is, &reason, message))
        .collect();
    for (kind, verdict) in [(SERVING, serving(parts)), (READY, readiness(parts))] {
        let Verdict {
            status,
            reason,
            message,
        } = verdict;
        let mut condition = make(kind, false, &reason, message);
        condition.status = status;
        all.push(condition);
    }
    all.push(match work(snapshot, parts) {
        Some(message) => make(RECONCILING, true, "InProgress", message),
        None => make(RECONCILING, false, "Settled", String::new()),
    });
    all.push(match stuck(snapshot, parts) {
        Some((reason, message)) => make(STALLED, true, &reason, message),
        None => make(STALLED, false, "Settled", String::new()),
    });
    all
}

/// Current work towards the spec.
fn work(snapshot: &Snapshot, parts: &Parts<'_>) -> Option<String> {
    if parts.unreadable.is_some() {
        return None;
    }
    match parts.preparation {
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
            .filter(|e| !is_stuck(snapshot, e))
            .find(|e| e.phase.is_moving() || e.status.is_none() || e.is(RECONCILING))
            .map(|e| format!("{} is being deployed", e.name)),
    }
}

/// A problem that needs a change of the spec or of the hosts.
fn stuck(snapshot: &Snapshot, parts: &Parts<'_>) -> Option<(String, String)> {
    if let Some(why) = &parts.unreadable {
        return Some((reasons::UNREADABLE.to_owned(), why.clone()));
    }
    if let Preparation::Failed {
        permanent: true,
        reason,
        message,
        ..
    } = parts.preparation
    {
        return Some(((*reason).to_owned(), message.clone()));
    }
    let entry = parts.entries.iter().find(|e| is_stuck(snapshot, e))?;
    let ready = entry.condition(READY)?;
    Some((ready.reason.clone(), ready.message.clone()))
}

fn is_stuck(snapshot: &Snapshot, entry: &EntryState) -> bool {
    let since = entry.unmet_since.map(|t| snapshot.seconds_since(t));
    since.is_some_and(|s| s >= STALLED_SECONDS)
}

impl EntryState {
    fn condition(&self, kind: &str) -> Option<&Condition> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether the serving plan meets the current spec.
    fn meets(&self, parts: &Parts<'_>) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|s| s.active.is_some() && s.model_generation == parts.generation)
    }

    fn is(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }
}

/// A condition's status, reason and message.
struct Verdict {
    status: String,
    reason: String,
    message: String,
}

impl Verdict {
    fn no(reason: &str, message: impl Into<String>) -> Self {
        Self {
            status: "False".to_owned(),
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// Whether requests are answered at every entry, by whatever spec.
fn serving(parts: &Parts<'_>) -> Verdict {
    of_entries(parts, SERVING)
}

/// Whether every entry satisfies the current spec.
fn readiness(parts: &Parts<'_>) -> Verdict {
    if let Some(why) = &parts.unreadable {
        return Verdict::no(reasons::UNREADABLE, why);
    }
    let is_serving = !parts.entries.is_empty() && parts.entries.iter().all(|e| e.is(SERVING));
    let but = |message: &str| {
        if is_serving {
            format!("{message}; the last good placement keeps serving")
        } else {
            message.to_owned()
        }
    };
    // Lost blocks do not concern users while the model serves as the spec asks.
    let is_met = !parts.entries.is_empty() && parts.entries.iter().all(|e| e.meets(parts));
    match parts.preparation {
        Preparation::Failed { reason, .. } if is_met && *reason != reasons::INVALID_SPEC => {
            of_entries(parts, READY)
        }
        Preparation::Working { .. } if is_met => of_entries(parts, READY),
        Preparation::Failed {
            reason, message, ..
        } => Verdict::no(reason, but(message)),
        _ if parts.no_entry.is_some() => of_entries(parts, READY),
        Preparation::Working { step, message, .. } => Verdict::no(step.name(), but(message)),
        Preparation::Ready { .. } => of_entries(parts, READY),
    }
}

/// The condition `kind` of all entries together.
fn of_entries(parts: &Parts<'_>, kind: &str) -> Verdict {
    if let Some(message) = &parts.no_entry {
        return Verdict::no(reasons::NO_ENTRY_NODE, message);
    }
    let several = parts.entries.len() > 1;
    for entry in parts.entries {
        let Some(condition) = entry.condition(kind) else {
            return Verdict::no("Solving", "no plan yet");
        };
        if condition.status != "True" {
            let message = if several {
                format!("{}: {}", entry.name, condition.message)
            } else {
                condition.message.clone()
            };
            return Verdict {
                status: condition.status.clone(),
                reason: condition.reason.clone(),
                message,
            };
        }
    }
    let message = match parts.entries {
        [one] => one.condition(kind).map(|c| c.message.clone()),
        all => {
            let names: Vec<&str> = all.iter().map(|e| e.entry.as_str()).collect();
            Some(format!("serves at {}", shortened(&names)))
        }
    };
    Verdict {
        status: "True".to_owned(),
        reason: "Serving".to_owned(),
        message: message.unwrap_or_default(),
    }
}

/// `cam-1, cam-2 and 198 more`
fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    if names.len() <= SHOWN {
        return names.join(", ");
    }
    let (shown, more) = names.split_at(SHOWN);
    format!("{} and {} more", shown.join(", "), more.len())
}

/// Stores the spec once every entry meets it.
fn accept(model: &DnnModel, parts: &Parts<'_>, status: &mut DnnModelStatus) {
    let generation = model.metadata.generation.unwrap_or_default();
    let is_known = status.accepted.as_ref().map(|a| a.generation) == Some(generation);
    if is_known || parts.entries.is_empty() || !parts.entries.iter().all(|e| e.meets(parts)) {
        return;
    }
    if matches!(parts.preparation, Preparation::Ready { .. }) {
        let mut spec = model.spec.clone();
        // Statuses have more readers than specs.
        spec.source.uri = crate::text::without_secrets(&spec.source.uri);
        if let Some(samples) = &mut spec.samples {
            samples.uri = crate::text::without_secrets(&samples.uri);
        }
        status.accepted = Some(AcceptedSpec {
            generation,
            spec: Box::new(spec),
        });
    }
}

/// Adds finished moves.
fn history(memory: &mut ModelMemory, status: &mut DnnModelStatus) {
    let kept = &status.history;
    memory.moves.retain(|new| {
        !kept
            .iter()
            .any(|r| r.placement == new.placement && r.revision == new.revision)
    });
    for new in &memory.moves {
        status.history.insert(0, new.clone());
    }
    status.history.truncate(HISTORY_LENGTH);
}

/// Keeps the old progress if nothing else changed and it was written just now.
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
