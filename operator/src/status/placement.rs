//! The status and the Events of a Placement.

use crate::state::ids::{self, ObjectId};
use crate::state::memory::PlacementMemory;
use crate::state::notice::{Notice, Regarding};
use crate::state::plans::{self, Phase, WAITING};
use crate::state::snapshot::Snapshot;
use crate::state::text::millis;
use crate::state::time::seconds_only;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use lamina_crds::compute_node::SliceState;
use lamina_crds::conditions::{
    DEPLOYED, READY, RECONCILING, SERVING, SOLVED, STALLED, VERIFIED, condition, set,
};
use lamina_crds::placement::{Plan, Redeploy, RedeployPhases, format_path};
use lamina_crds::{Placement, PlacementStatus, reasons};

/// Redeploys kept in the history.
const HISTORY_LENGTH: usize = 10;
/// A redeploy is measured once the new path has served for this long.
const MEASURE_SECONDS: f64 = 10.0;
/// After this time a wish that cannot be met counts as stalled.
pub(super) const STALLED_SECONDS: f64 = 30.0;
/// Least time between two writes of the measured latency.
const MEASURED_PAUSE_SECONDS: f64 = 10.0;

/// The next status of a Placement with the Events it leads to.
pub(crate) struct Report {
    /// The status.
    pub status: PlacementStatus,
    /// Events for users.
    pub notices: Vec<Notice>,
    /// The finished redeploy, for the model's history.
    pub redeploy: Option<Redeploy>,
}

/// The input of a status, besides the Placement and its memory.
pub(crate) struct Facts<'a> {
    /// The world.
    pub snapshot: &'a Snapshot,
    /// The DnnModel.
    pub model: &'a ObjectId,
    /// Generation of its spec.
    pub generation: i64,
    /// The state of the newest plan.
    pub phase: &'a Phase,
    /// Why requests are refused, if they are.
    pub refused: Option<&'a str>,
}

/// Status of `placement` after `facts.phase`.
pub(crate) fn report(
    facts: &Facts<'_>,
    own: &mut PlacementMemory,
    placement: &Placement,
) -> Report {
    let mut report = Report {
        status: placement.status.clone().unwrap_or_default(),
        notices: Vec::new(),
        redeploy: None,
    };
    let snapshot = facts.snapshot;
    let generation = placement.metadata.generation;
    report.status.observed_generation = generation.unwrap_or_default();
    note_stage(snapshot, own, placement, facts.phase);
    match facts.phase {
        Phase::Flipped { in_flight_at_flip } => {
            flipped(facts, own, placement, *in_flight_at_flip, &mut report);
        }
        Phase::Failed(failure) => {
            let newest = placement.spec.plan.as_ref().map_or(0, |p| p.revision);
            report.status.failed_revision = newest;
            report.notices.push(facts.warning(
                failure.reason,
                format!(
                    "revision {newest}: {}; {}",
                    failure.message,
                    what_serves(placement)
                ),
            ));
        }
        _ => {}
    }
    if !facts.phase.is_moving()
        && let Some(met) = own.met_generation
    {
        report.status.model_generation = met;
    }
    let in_flight = plans::target(placement).filter(|_| facts.phase.is_moving());
    report.status.target_revision = in_flight.map_or(0, |t| t.revision);
    report.status.target_path = in_flight
        .map(|t| format_path(&t.segments))
        .unwrap_or_default();
    figures(snapshot, own, placement, &mut report.status);
    measure_history(snapshot, own, placement, &mut report.status);
    tell_refusal(facts, own, &mut report.notices);
    conditions(facts, own, placement, &mut report.status);
    report
}

impl Facts<'_> {
    fn warning(&self, reason: &'static str, note: String) -> Notice {
        Notice::warning(Regarding::model(self.model.clone()), reason, "Deploy", note)
    }
}

/// Notes when the revision being deployed reaches its next stage.
fn note_stage(
    snapshot: &Snapshot,
    own: &mut PlacementMemory,
    placement: &Placement,
    phase: &Phase,
) {
    let revision = plans::target(placement).map(|p| p.revision);
    let Some(stages) = own.stages.as_mut().filter(|s| Some(s.revision) == revision) else {
        return;
    };
    let now = snapshot.now;
    match phase {
        Phase::Loading { fetched: true, .. } => {
            stages.fetched.get_or_insert(now);
        }
        Phase::Verifying => {
            stages.loaded.get_or_insert(now);
        }
        Phase::Flipping(_) | Phase::Flipped { .. } => {
            stages.verified.get_or_insert(now);
        }
        _ => {}
    }
}

fn tell_refusal(facts: &Facts<'_>, own: &mut PlacementMemory, notices: &mut Vec<Notice>) {
    if own.told_refusal.as_deref() == facts.refused {
        return;
    }
    own.told_refusal = facts.refused.map(str::to_owned);
    if let Some(why) = facts.refused {
        notices.push(facts.warning(reasons::REQUESTS_REFUSED, why.to_owned()));
    }
}

fn what_serves(placement: &Placement) -> String {
    match plans::active(placement) {
        Some(plan) => format!("revision {} keeps serving", plan.revision),
        None => "nothing serves yet".to_owned(),
    }
}

/// The newest plan has become the active one.
fn flipped(
    facts: &Facts<'_>,
    own: &mut PlacementMemory,
    placement: &Placement,
    in_flight: u32,
    report: &mut Report,
) {
    let Some(target) = plans::target(placement) else {
        return;
    };
    let snapshot = facts.snapshot;
    let before = plans::active(placement);
    let stages = own.stages.take().filter(|s| s.revision == target.revision);
    let phases = stages.map(|s| s.phases(snapshot.now));
    let took = phases.map_or_else(
        || snapshot.seconds_since_wall(target.time.0),
        |p| p.fetch_seconds + p.load_seconds + p.verify_seconds + p.flip_seconds,
    );
    let now = seconds_only(snapshot.wall);
    let path = format_path(&target.segments);
    let status = &mut report.status;
    let note = match before {
        None => format!(
            "revision {} serves: {path}, after {took:.0}s{}",
            target.revision,
            phases.map(in_words).unwrap_or_default()
        ),
        Some(old) => {
            status.redeploys += 1;
            let redeploy = redeploy(snapshot, placement, old, target, &now, phases);
            status.history.insert(0, redeploy.clone());
            status.history.truncate(HISTORY_LENGTH);
            report.redeploy = Some(redeploy);
            format!(
                "revision {} serves: {path} instead of {}, after {took:.0}s; {in_flight} requests in flight finished on revision {}{}",
                target.revision,
                format_path(&old.segments),
                old.revision,
                phases.map(in_words).unwrap_or_default()
            )
        }
    };
    status.active = Some(target.clone());
    status.active_revision = target.revision;
    status.model_generation = target.generation;
    own.met_generation = Some(target.generation);
    status.active_since = Some(now);
    status.path = path;
    status.estimated = millis(target.estimated_latency_ms);
    status.measured = String::new();
    own.measured_written = None;
    report.notices.push(Notice::normal(
        Regarding::model(facts.model.clone()),
        reasons::REDEPLOY_COMPLETED,
        "Deploy",
        note,
    ));
}

/// `; decided in 3.1s, fetched in 2.0s, …`
fn in_words(p: RedeployPhases) -> String {
    format!(
        "; decided in {:.1}s, fetched in {:.1}s, loaded in {:.1}s, verified in {:.1}s, flipped in {:.1}s",
        p.decide_seconds, p.fetch_seconds, p.load_seconds, p.verify_seconds, p.flip_seconds
    )
}

fn redeploy(
    snapshot: &Snapshot,
    placement: &Placement,
    old: &Plan,
    new: &Plan,
    now: &Time,
    took: Option<RedeployPhases>,
) -> Redeploy {
    Redeploy {
        time: now.clone(),
        revision: new.revision,
        trigger: new.trigger.clone(),
        cause: new.cause,
        from: format_path(&old.segments),
        to: format_path(&new.segments),
        estimated_before_ms: new.replaced_latency_ms.unwrap_or(old.estimated_latency_ms),
        estimated_after_ms: new.estimated_latency_ms,
        measured_before_ms: measured(snapshot, placement, old.revision),
        measured_after_ms: None,
        judged: false,
        took,
    }
}

/// Median latency of requests of `revision`, in milliseconds to a tenth.
fn measured(snapshot: &Snapshot, placement: &Placement, revision: i64) -> Option<f64> {
    let requests = snapshot.requests.get(ids::uid(&placement.metadata))?;
    let is_of_it = requests.revision == revision && requests.answered > 0;
    is_of_it.then(|| (requests.latency_p50_seconds * 1e4).round() / 10.0)
}

/// Adds measurements since then to the newest redeploy, and whether it stands.
fn measure_history(
    snapshot: &Snapshot,
    own: &mut PlacementMemory,
    placement: &Placement,
    status: &mut PlacementStatus,
) {
    let active = status.active_revision;
    let since = match own.settling {
        Some((of, since)) if of == active => since,
        _ => own.settling.insert((active, snapshot.now)).1,
    };
    let Some(newest) = status.history.first_mut() else {
        return;
    };
    if newest.revision != status.active_revision {
        return;
    }
    let is_settled = snapshot.seconds_since(since) >= MEASURE_SECONDS;
    if newest.measured_after_ms.is_none() && is_settled {
        newest.measured_after_ms = measured(snapshot, placement, newest.revision);
    }
    let is_tried = own
        .trial
        .as_ref()
        .is_some_and(|t| t.revision == newest.revision);
    newest.judged |= newest.measured_after_ms.is_some() && !is_tried;
}

/// The columns with figures.
fn figures(
    snapshot: &Snapshot,
    own: &mut PlacementMemory,
    placement: &Placement,
    status: &mut PlacementStatus,
) {
    let uid = ids::uid(&placement.metadata);
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
    facts: &Facts<'_>,
    own: &PlacementMemory,
    placement: &Placement,
    status: &mut PlacementStatus,
) {
    let phase = facts.phase;
    let now = seconds_only(facts.snapshot.wall);
    let generation = placement.metadata.generation;
    let make = |kind: &str, is: bool, reason: &str, message: String| {
        condition(kind, is, reason, message, generation, now.clone())
    };
    let plan = placement.spec.plan.as_ref();
    let mut all = Vec::new();
    // After a restart problems are unknown until a strategy was asked.
    let known = own.answered_at.is_some() || own.problem.is_some();
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
    let serving = serving(facts, own, placement, status);
    let ready = ready(facts, own, status, &serving);
    all.push(serving.condition(SERVING, generation, now.clone()));
    all.push(ready.condition(READY, generation, now.clone()));
    let (is, reason, message) = reconciling(facts, own, status, &ready);
    all.push(make(RECONCILING, is, reason, message));
    all.push(match stuck(facts, own) {
        Some((reason, message)) => make(STALLED, true, reason, message.clone()),
        None => make(STALLED, false, "Settled", String::new()),
    });
    for new in all {
        set(&mut status.conditions, new);
    }
}

/// Deployed and Verified, which refer to the newest plan.
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
            // A failure's reason stays until another plan is tried.
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
            ..
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

/// A truth value that may be unknown for a while.
struct Truth {
    /// `True`, `False` or `Unknown`.
    status: &'static str,
    reason: String,
    message: String,
}

impl Truth {
    fn new(status: &'static str, reason: &str, message: String) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
            message,
        }
    }

    fn is_true(&self) -> bool {
        self.status == "True"
    }

    fn condition(&self, kind: &str, generation: Option<i64>, now: Time) -> Condition {
        let mut all = condition(
            kind,
            self.is_true(),
            &self.reason,
            self.message.clone(),
            generation,
            now,
        );
        self.status.clone_into(&mut all.status);
        all
    }
}

/// Whether requests are answered, possibly by an earlier spec.
fn serving(
    facts: &Facts<'_>,
    own: &PlacementMemory,
    placement: &Placement,
    status: &PlacementStatus,
) -> Truth {
    let (snapshot, phase) = (facts.snapshot, facts.phase);
    let Some(active) = &status.active else {
        let (reason, message) = match (&own.problem, phase) {
            (Some((reason, message)), _) => (*reason, message.clone()),
            (None, Phase::Failed(f)) => (f.reason, f.message.clone()),
            (None, Phase::Verifying) => ("Verifying", phase_message(phase)),
            (None, Phase::Unplanned | Phase::Nothing) => ("Solving", "no plan yet".to_owned()),
            (None, _) => ("Deploying", phase_message(phase)),
        };
        return Truth::new("False", reason, message);
    };
    if let Some(why) = facts.refused {
        return Truth::new("False", reasons::REQUESTS_REFUSED, why.to_owned());
    }
    let hosts = std::iter::once(placement.spec.entry.as_str()).chain(plans::hosts(active));
    if let Some(lost) = hosts.into_iter().find(|h| !snapshot.is_alive(h)) {
        if snapshot.is_starting() {
            // An earlier operator's findings say nothing about now.
            let message = format!("waiting for {lost} to connect to the restarted operator");
            return Truth::new("Unknown", "NotConnected", message);
        }
        let message = format!("revision {} runs on {lost}, which is lost", active.revision);
        return Truth::new("False", reasons::NODE_LOST, message);
    }
    let uid = ids::uid(&placement.metadata);
    let not_loaded = active.segments.iter().enumerate().find(|(i, s)| {
        snapshot
            .slice_status(&s.host.node, uid, active.revision, *i)
            .is_none_or(|x| x.state != SliceState::Ready)
    });
    if let Some((_, segment)) = not_loaded {
        let message = format!(
            "{} is reloading its slice of revision {}",
            segment.host.node, active.revision
        );
        return Truth::new("False", "Loading", message);
    }
    let entry = &placement.spec.entry;
    let route = snapshot.route_status(entry, uid);
    if route.is_none_or(|r| r.active_revision == 0) {
        let message = format!(
            "{entry} has not taken up the route of revision {} yet",
            active.revision
        );
        return Truth::new("False", "Loading", message);
    }
    let message = format!("revision {} serves: {}", active.revision, status.path);
    Truth::new("True", "Serving", message)
}

/// Whether the serving plan satisfies the current spec.
fn ready(
    facts: &Facts<'_>,
    own: &PlacementMemory,
    status: &PlacementStatus,
    serving: &Truth,
) -> Truth {
    if !serving.is_true() {
        return Truth::new(serving.status, &serving.reason, serving.message.clone());
    }
    let problem = own
        .problem
        .as_ref()
        .filter(|(reason, _)| *reason != WAITING);
    if own.unmet_generation == Some(facts.generation)
        && let Some((reason, message)) = problem
    {
        return Truth::new("False", reason, message.clone());
    }
    if status.model_generation != facts.generation {
        let (reason, message) = match problem {
            Some((reason, message)) => (*reason, message.clone()),
            None => (
                "Updating",
                format!(
                    "generation {} of the model is being placed; revision {} of generation {} serves meanwhile",
                    facts.generation, status.active_revision, status.model_generation
                ),
            ),
        };
        return Truth::new("False", reason, message);
    }
    let message = match problem {
        Some((_, message)) => format!("revision {} serves; {message}", status.active_revision),
        None => serving.message.clone(),
    };
    Truth::new("True", "Serving", message)
}

/// Whether work towards the spec is in progress.
fn reconciling(
    facts: &Facts<'_>,
    own: &PlacementMemory,
    status: &PlacementStatus,
    ready: &Truth,
) -> (bool, &'static str, String) {
    if stuck(facts, own).is_some() {
        return (false, "Settled", String::new());
    }
    if facts.phase.is_moving() {
        return (true, "Deploying", phase_message(facts.phase));
    }
    let is_behind = status.active.is_some() && status.model_generation != facts.generation;
    if is_behind && !ready.is_true() {
        return (true, "Updating", ready.message.clone());
    }
    (false, "Settled", String::new())
}

/// A problem that needs a change of the spec or of the hosts.
fn stuck<'a>(facts: &Facts<'_>, own: &'a PlacementMemory) -> Option<&'a (&'static str, String)> {
    let since = own.unmet_since.map(|t| facts.snapshot.seconds_since(t));
    let is_unmet = own.unmet_generation == Some(facts.generation)
        && since.is_some_and(|s| s >= STALLED_SECONDS);
    let problem = own.problem.as_ref()?;
    (problem.0 == reasons::INVALID_SPEC || is_unmet).then_some(problem)
}
