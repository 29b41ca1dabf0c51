//! Whether a Placement needs another plan, and which.
//!
//! A plan that cannot go on is replaced at once. One that could be better is
//! replaced when the gain pays for the move and the last move is long enough
//! ago. Each decision, taken or suppressed, is told once, with numbers.

use super::deploy::{self, Phase};
use super::memory::{Memory, PlacementMemory, placement_key};
use super::problem::{self, Question, WORKLOAD};
use super::snapshot::Snapshot;
use super::{links, spec, text};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use lamina_crds::dnn_model::AdaptationPolicy;
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_crds::{DnnModel, reasons};
use lamina_placement::adapt::{self, Decision, Policy, Situation, Stay, Switched};
use lamina_placement::check::{Violation, evaluate};
use lamina_placement::explain::explain_infeasible;
use lamina_placement::{
    self as solver, Certificate, Ctx, Metrics, Objective, Problem, Solution, SolveError,
    SolveOptions, solve_checked,
};
use std::collections::{BTreeMap, BTreeSet};

/// A strategy is asked again after so long, though nothing happened.
const RESOLVE_SECONDS: f64 = 10.0;
/// And not more often than this, whatever happens.
const RESOLVE_PAUSE_SECONDS: f64 = 1.0;
/// The first plan waits so long for links to be measured.
const SETTLE_SECONDS: f64 = 10.0;
/// A plan that failed is tried again after this; the pause doubles.
const RETRY_SECONDS: i64 = 60;
/// Longest pause before a failed plan is tried again.
const RETRY_LIMIT_SECONDS: i64 = 900;

/// What is decided about a plan.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Planned {
    /// The plan to write.
    pub plan: Option<Plan>,
    /// What people are told: whether it is bad news, reason, action, note.
    pub notices: Vec<PlanNotice>,
}

/// An Event without its object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlanNotice {
    /// It needs attention.
    pub warning: bool,
    /// A reason of [`reasons`].
    pub reason: &'static str,
    /// What is done, in one word.
    pub action: &'static str,
    /// What happened.
    pub note: String,
}

/// Everything that a decision about one Placement is made from.
struct Case<'a> {
    snapshot: &'a Snapshot,
    model: &'a DnnModel,
    question: &'a Question<'a>,
    phase: &'a Phase,
    /// The plan that serves or is on its way.
    current: Option<&'a Plan>,
}

/// Decides about the plan of one model at one entry.
pub(crate) fn decide(
    snapshot: &Snapshot,
    memory: &mut Memory,
    ctx: &Ctx,
    model: &DnnModel,
    question: &Question<'_>,
    phase: &Phase,
) -> Planned {
    if matches!(phase, Phase::Flipping(_) | Phase::Flipped { .. }) {
        return Planned::default();
    }
    let uid = model.metadata.uid.as_deref().unwrap_or_default();
    let key = placement_key(uid, question.entry);
    let mut own = memory.placements.remove(&key).unwrap_or_default();
    if let Phase::Failed(failure) = phase {
        remember_failure(
            snapshot,
            memory,
            &mut own,
            question,
            failure.node.as_deref(),
        );
    }
    let current = match phase {
        Phase::Failed(_) => question.placement.and_then(deploy::active),
        _ => question
            .placement
            .and_then(|p| deploy::target(p).or_else(|| deploy::active(p))),
    };
    let case = Case {
        snapshot,
        model,
        question,
        phase,
        current,
    };
    let mut planned = case.decide(memory, &mut own, ctx);
    case.tell(&mut own, &mut planned);
    memory.placements.insert(key, own);
    planned
}

fn remember_failure(
    snapshot: &Snapshot,
    memory: &mut Memory,
    own: &mut PlacementMemory,
    question: &Question<'_>,
    node: Option<&str>,
) {
    if let Some(node) = node {
        let key = (node.to_owned(), question.digest.to_owned());
        memory.load_failures.insert(key, snapshot.now);
    }
    let failures = own.retry.map_or(0, |(_, n)| n);
    let pause = RETRY_LIMIT_SECONDS.min(RETRY_SECONDS << failures.min(5));
    own.retry = Some((
        snapshot.now + SignedDuration::from_secs(pause),
        failures + 1,
    ));
    own.solved_at = None;
}

/// Why the present plan must be left.
enum Must {
    /// There is none.
    First,
    /// It cannot go on: why.
    Leave(String),
}

impl Case<'_> {
    fn entry(&self) -> &str {
        self.question.entry
    }

    fn decide(&self, memory: &Memory, own: &mut PlacementMemory, ctx: &Ctx) -> Planned {
        let entry = self.entry();
        if !self.snapshot.is_alive(entry) {
            if !self.snapshot.is_starting() {
                let message = format!("the agent on the entry {entry} is not connected");
                own.problem = Some((reasons::NODE_LOST, message));
            }
            return Planned::default();
        }
        let built = match problem::build(self.snapshot, memory, self.question) {
            Ok(built) => built,
            Err(e) => return self.stop(own, reasons::INVALID_SPEC, e.to_string()),
        };
        let must = self.must_leave(&built);
        let news = self.news(own);
        if !self.is_due(own, must.is_some(), news.is_some()) {
            return Planned::default();
        }
        if matches!(must, Some(Must::First)) && !self.is_settled(own) {
            let message = format!("waiting until the links of {entry} are measured");
            own.problem = Some((WAITING, message));
            return Planned::default();
        }
        own.solved_at = Some(self.snapshot.now);
        own.alive = self.alive().map(str::to_owned).collect();
        own.planned_generation = self.model.metadata.generation;
        match self.solve(&built, ctx) {
            Ok(solution) => self.compare(own, &built, &solution, must, news),
            Err((reason, message)) => self.infeasible(own, must.is_some(), reason, message),
        }
    }

    /// Nothing can be planned until something changes.
    fn stop(&self, own: &mut PlacementMemory, reason: &'static str, message: String) -> Planned {
        own.problem = Some((reason, message));
        Planned::default()
    }

    fn infeasible(
        &self,
        own: &mut PlacementMemory,
        must_move: bool,
        reason: &'static str,
        message: String,
    ) -> Planned {
        let overdue = must_move || self.current.is_none();
        let message = match self.current {
            Some(plan) => format!("{message}; revision {} stays", plan.revision),
            None => message,
        };
        if overdue || reason == reasons::INVALID_SPEC {
            own.problem = Some((reason, message));
        } else if own.told_problem.as_ref() != Some(&message) {
            // It still serves, but nothing that the spec allows keeps up.
            own.problem = None;
            own.told_problem = Some(message.clone());
            return Planned {
                plan: None,
                notices: vec![PlanNotice {
                    warning: true,
                    reason,
                    action: "Solve",
                    note: message,
                }],
            };
        }
        Planned::default()
    }

    /// Why the present plan cannot go on, if so.
    fn must_leave(&self, built: &Problem) -> Option<Must> {
        let Some(plan) = self.current else {
            return Some(Must::First);
        };
        let leave = |why: String| Some(Must::Leave(why));
        if plan.manifest != self.question.digest {
            return leave("the model was prepared anew".to_owned());
        }
        if !self.snapshot.is_starting()
            && let Some(host) = deploy::hosts(plan).find(|h| !self.snapshot.is_alive(h))
        {
            return leave(format!("{host} is lost"));
        }
        let moved = plan.segments.iter().map(|s| &s.host).find(|h| {
            self.snapshot
                .live
                .get(&h.node)
                .is_some_and(|l| l.alive && !l.address.is_empty() && l.address != h.address)
        });
        if let Some(host) = moved {
            return leave(format!("{} has a new address", host.node));
        }
        let down = links::of_path(self.entry(), plan)
            .into_iter()
            .find(|pair| self.snapshot.links.get(pair).is_some_and(|v| !v.reachable));
        if let Some((from, to)) = down {
            return leave(format!("link {from}→{to} is down"));
        }
        let wanted = &self.question.spec.strategy.name;
        if plan.strategy != *wanted {
            return leave(format!("strategy {} → {wanted}", plan.strategy));
        }
        let violation = self
            .violations(built, plan)
            .into_iter()
            .find(is_broken_wish)?;
        leave(format!("the spec no longer allows it: {violation}"))
    }

    /// What is wrong with `plan`; nothing where a link of it is not measured, for
    /// then nobody can say.
    fn violations(&self, built: &Problem, plan: &Plan) -> Vec<Violation> {
        if !links::are_measured(self.snapshot, self.entry(), plan) {
            return Vec::new();
        }
        evaluate(built, &[placement_of(plan)])
            .err()
            .unwrap_or_default()
    }

    /// What has changed since the plan was chosen.
    fn news(&self, own: &mut PlacementMemory) -> Option<String> {
        let plan = self.current?;
        if own
            .planned_generation
            .is_some_and(|g| Some(g) != self.model.metadata.generation)
        {
            return Some("the spec changed".to_owned());
        }
        links::change_since_plan(self.snapshot, own, self.entry(), plan).or_else(|| {
            let came = self.alive().find(|name| !own.alive.contains(*name))?;
            (!own.alive.is_empty()).then(|| format!("{came} joined"))
        })
    }

    /// Hosts that could compute.
    fn alive(&self) -> impl Iterator<Item = &str> {
        self.snapshot
            .live
            .iter()
            .filter(|(_, l)| l.alive)
            .map(|(name, _)| name.as_str())
    }

    /// Whether a strategy is to be asked now.
    fn is_due(&self, own: &mut PlacementMemory, must: bool, news: bool) -> bool {
        let since = own.solved_at.map(|t| self.snapshot.seconds_since(t));
        if since.is_some_and(|s| s < RESOLVE_PAUSE_SECONDS) {
            return false;
        }
        let wishes = &self.question.spec.adaptation;
        if self.current.is_some() && (wishes.paused || !must && self.is_deploying()) {
            return false;
        }
        if self.snapshot.is_starting() && self.current.is_some() && !must {
            return false;
        }
        let candidate_waits = own.candidate.is_some();
        let period = if must && self.current.is_some() || candidate_waits {
            RESOLVE_PAUSE_SECONDS
        } else if self.current.is_none() && own.problem.as_ref().is_some_and(|p| p.0 == WAITING) {
            0.0
        } else if news {
            // A change that led to nothing is looked at again now and then only.
            RESOLVE_PAUSE_SECONDS * 3.0
        } else {
            RESOLVE_SECONDS
        };
        since.is_none_or(|s| s >= period)
    }

    fn is_deploying(&self) -> bool {
        matches!(self.phase, Phase::Loading { .. } | Phase::Verifying)
    }

    /// The first plan waits until agents are here and the entry's links are
    /// measured, or long enough.
    fn is_settled(&self, own: &mut PlacementMemory) -> bool {
        let entry = self.entry();
        let all_here = self
            .snapshot
            .agents
            .iter()
            .all(|a| self.snapshot.is_alive(a));
        let known = |a: &str, b: &str| {
            self.snapshot
                .links
                .get(&(a.to_owned(), b.to_owned()))
                .is_some_and(|v| problem::link(v).is_some())
        };
        let measured = self
            .snapshot
            .compute_nodes
            .keys()
            .filter(|n| *n != entry && self.snapshot.is_alive(n))
            .all(|n| known(entry, n) && known(n, entry));
        let since = *own.waiting_since.get_or_insert(self.snapshot.now);
        let waited = self.snapshot.seconds_since(since) >= SETTLE_SECONDS;
        (all_here && measured) || (waited && !self.snapshot.is_starting())
    }

    fn solve(&self, built: &Problem, ctx: &Ctx) -> Result<Solution, (&'static str, String)> {
        let invalid = |message: String| (reasons::INVALID_SPEC, message);
        if let Some(pin) = self
            .question
            .spec
            .constraints
            .pins
            .iter()
            .find(|p| !self.snapshot.compute_nodes.contains_key(&p.node))
        {
            let message = format!(
                "blocks {}..{} are pinned to {}, which runs no agent",
                pin.first, pin.last, pin.node
            );
            return Err((reasons::NO_FEASIBLE_PLACEMENT, message));
        }
        let strategy = spec::strategy_of(self.question.spec).map_err(|e| invalid(e.to_string()))?;
        let solution = solve_checked(built, strategy.as_ref(), &SolveOptions::default(), ctx)
            .map_err(|e| match e {
                SolveError::UnknownStrategy { .. } | SolveError::Parameter { .. } => {
                    invalid(e.to_string())
                }
                other => (reasons::NO_FEASIBLE_PLACEMENT, other.to_string()),
            })?;
        if solution.placements.is_empty() {
            return Err((
                reasons::NO_FEASIBLE_PLACEMENT,
                why_infeasible(built, &self.question.spec.strategy.name),
            ));
        }
        Ok(solution)
    }

    /// What follows from a solution.
    fn compare(
        &self,
        own: &mut PlacementMemory,
        built: &Problem,
        solution: &Solution,
        must: Option<Must>,
        news: Option<String>,
    ) -> Planned {
        let Some(segments) = self.segments(solution) else {
            let message = "waiting for the address of a host".to_owned();
            own.problem = Some((WAITING, message));
            return Planned::default();
        };
        let digest = self.question.digest;
        let same = |plan: &Plan| plan.manifest == digest && plan.segments == segments;
        if self
            .current
            .is_some_and(|p| same(p) && p.strategy == solution.strategy)
        {
            own.problem = None;
            own.candidate = None;
            own.suppressed = None;
            return Planned::default();
        }
        if let Some(failed) = self.failed_plan().filter(|p| same(p))
            && let Some((again, _)) = own.retry
            && self.snapshot.now < again
        {
            if self.current.is_none() {
                let message = format!(
                    "revision {} failed and nothing else is possible; next try at {}",
                    failed.revision,
                    again.strftime("%H:%M:%SZ")
                );
                own.problem = Some((reasons::NO_FEASIBLE_PLACEMENT, message));
            }
            return Planned::default();
        }
        match (self.current, must) {
            (None, _) | (_, Some(Must::First)) => self.first(own, solution, segments),
            (Some(current), Some(Must::Leave(why))) => {
                own.problem = None;
                self.switch(own, built, solution, current, segments, why)
            }
            (Some(current), None) => {
                own.problem = None;
                self.weigh(own, built, solution, current, segments, news)
            }
        }
    }

    /// The newest plan, if it could not be deployed.
    fn failed_plan(&self) -> Option<&Plan> {
        let placement = self.question.placement?;
        let newest = placement.spec.plan.as_ref()?;
        let failed = placement.status.as_ref().map_or(0, |s| s.failed_revision);
        let fails_now = matches!(self.phase, Phase::Failed(_));
        (fails_now || newest.revision <= failed).then_some(newest)
    }

    fn segments(&self, solution: &Solution) -> Option<Vec<Segment>> {
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

    fn first(&self, own: &mut PlacementMemory, solution: &Solution, to: Vec<Segment>) -> Planned {
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

    fn switch(
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
        }
    }

    /// Moves for a gain, or says why not.
    fn weigh(
        &self,
        own: &mut PlacementMemory,
        built: &Problem,
        solution: &Solution,
        current: &Plan,
        to: Vec<Segment>,
        news: Option<String>,
    ) -> Planned {
        let (Some(now), Some(then)) = (figures(built, current), &solution.metrics) else {
            return Planned::default();
        };
        let goal = |m: &Metrics| match built.objective {
            Objective::Latency => m.latency_seconds,
            Objective::Throughput => m.bottleneck.as_ref().map_or(0.0, |b| b.seconds),
        };
        let busy = self
            .violations(built, current)
            .iter()
            .any(|v| matches!(v, Violation::Busy { .. }));
        let network = now.workloads.first().map_or(0.0, |w| w.network_seconds);
        let rate = self.question.spec.objective.requests_per_second;
        let situation = Situation {
            now_seconds: self.snapshot.now.as_duration().as_secs_f64(),
            // A host or link that cannot keep up lets requests wait for ever.
            current_seconds: if busy { f64::INFINITY } else { goal(&now) },
            best_seconds: goal(then),
            deviation_seconds: self.deviation(&now).hypot(self.deviation(then)),
            rate_per_second: rate,
            // While blocks are on the way, requests share links with them.
            migration_request_seconds: rate * network * self.fetch_seconds(current, &to),
        };
        let path = format_path(&to);
        match adapt::decide(&self.policy(), &situation, &self.moves_made()) {
            Decision::Stay(Stay::SmallGain { .. } | Stay::NothingServes | Stay::Paused) => {
                own.candidate = None;
                Planned::default()
            }
            Decision::Stay(why) => {
                own.candidate = None;
                let kind = std::mem::discriminant(&why);
                let (before, after) = (goal(&now), situation.best_seconds);
                suppress(
                    own,
                    &format!("{path} {kind:?}"),
                    &path,
                    before,
                    after,
                    &why.to_string(),
                )
            }
            Decision::Switch(_) | Decision::Rescue { .. }
                if self.question.spec.adaptation.policy == AdaptationPolicy::Never =>
            {
                let why = "adaptation.policy is Never";
                let (before, after) = (goal(&now), situation.best_seconds);
                suppress(own, &format!("{path} never"), &path, before, after, why)
            }
            Decision::Switch(_) | Decision::Rescue { .. } => {
                // Seen once, a better path may be one bad sample.
                let confirmed = own
                    .candidate
                    .as_ref()
                    .is_some_and(|(p, t)| *p == path && self.snapshot.now > *t);
                if !confirmed {
                    own.candidate = Some((path, self.snapshot.now));
                    return Planned::default();
                }
                let trigger = news.unwrap_or_else(|| "a better placement was found".to_owned());
                self.switch(own, built, solution, current, to, trigger)
            }
        }
    }

    fn policy(&self) -> Policy {
        let wishes = &self.question.spec.adaptation;
        Policy {
            horizon_seconds: f64::from(wishes.horizon_seconds),
            cool_down_seconds: f64::from(wishes.cool_down_seconds),
            paused: wishes.paused,
            ..Policy::default()
        }
    }

    /// Moves of this Placement that the model's history holds, oldest first.
    fn moves_made(&self) -> Vec<Switched> {
        let name = self
            .question
            .placement
            .and_then(|p| p.metadata.name.as_deref());
        let history = self.model.status.as_ref().map_or(&[][..], |s| &s.history);
        history
            .iter()
            .rev()
            .filter(|r| Some(r.placement.as_str()) == name)
            .map(|r| Switched {
                at_seconds: r.time.0.as_duration().as_secs_f64(),
                from: r.from.clone(),
                to: r.to.clone(),
            })
            .collect()
    }

    /// Standard deviation of a path's latency that comes from its links.
    fn deviation(&self, metrics: &Metrics) -> f64 {
        let crossings = metrics.workloads.iter().flat_map(|w| &w.crossings);
        crossings
            .map(|c| {
                let pair = (c.from.clone(), c.to.clone());
                let noise = self.snapshot.links.get(&pair).map_or(0.0, |v| v.noise);
                (c.transfer_seconds * noise).powi(2)
            })
            .sum::<f64>()
            .sqrt()
    }

    /// Time in which hosts fetch what they lack for `to`.
    fn fetch_seconds(&self, current: &Plan, to: &[Segment]) -> f64 {
        let held: BTreeSet<(&str, u32)> = current
            .segments
            .iter()
            .flat_map(|s| s.blocks.iter().map(|b| (s.host.node.as_str(), *b)))
            .collect();
        let mut lacking: BTreeMap<&str, u64> = BTreeMap::new();
        for segment in to {
            let node = segment.host.node.as_str();
            for block in segment
                .blocks
                .iter()
                .filter(|b| !held.contains(&(node, **b)))
            {
                let index = usize::try_from(*block).unwrap_or(usize::MAX);
                let bytes = self
                    .question
                    .manifest
                    .blocks
                    .get(index)
                    .map_or(0, |b| b.file_bytes);
                *lacking.entry(node).or_default() += bytes;
            }
        }
        lacking
            .iter()
            .map(|(node, bytes)| *bytes as f64 / self.inbound(node))
            .fold(0.0, f64::max)
    }

    /// Bytes per second at which `node` fetches: from the operator's host, else
    /// by its slowest measured link.
    fn inbound(&self, node: &str) -> f64 {
        let operator = &self.snapshot.operator_node;
        let rate = |view: &super::snapshot::LinkView| view.bytes_per_second.filter(|r| *r > 0.0);
        let direct = self
            .snapshot
            .links
            .get(&(operator.clone(), node.to_owned()))
            .and_then(rate);
        direct.unwrap_or_else(|| {
            self.snapshot
                .links
                .iter()
                .filter(|((_, to), _)| to == node)
                .filter_map(|(_, view)| rate(view))
                .fold(f64::INFINITY, f64::min)
        })
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

    /// Adds what people should hear of a problem and of the path's links.
    fn tell(&self, own: &mut PlacementMemory, planned: &mut Planned) {
        if planned.plan.is_none()
            && let Some((reason, message)) = own.problem.clone()
            && reason != WAITING
            && own.told_problem.as_ref() != Some(&message)
        {
            own.told_problem = Some(message.clone());
            planned.notices.push(PlanNotice {
                warning: true,
                reason,
                action: "Solve",
                note: message,
            });
        }
        if own.problem.is_none() && planned.plan.is_some() {
            own.told_problem = None;
        }
        let Some(plan) = self.current else { return };
        for (warning, reason, note) in links::news(self.snapshot, own, self.entry(), plan) {
            planned.notices.push(PlanNotice {
                warning,
                reason,
                action: "Measure",
                note,
            });
        }
    }
}

/// Reason of a plan that waits for measurements.
pub(crate) const WAITING: &str = "WaitingForMeasurements";

/// Whether the plan breaks what the spec asks for, rather than being slow or
/// short of memory at this moment.
fn is_broken_wish(violation: &Violation) -> bool {
    match violation {
        Violation::Host { .. }
        | Violation::Blocks { .. }
        | Violation::TierOrder { .. }
        | Violation::Latency { .. }
        | Violation::NoLink { .. } => true,
        Violation::Bytes { what, .. } => *what == "slice limit",
        _ => false,
    }
}

/// Latency and times of `plan` as things are, whatever the limits say of it.
fn figures(built: &Problem, plan: &Plan) -> Option<Metrics> {
    let mut free = built.clone();
    for node in &mut free.nodes {
        node.memory_bytes = u64::MAX;
        node.utilisation_cap = 1.0;
        node.excluded = None;
    }
    for workload in &mut free.workloads {
        workload.constraints = solver::Constraints::default();
        workload.rate_per_second = 0.0;
        workload.previous = None;
    }
    evaluate(&free, &[placement_of(plan)]).ok()
}

fn placement_of(plan: &Plan) -> solver::Placement {
    solver::Placement {
        workload: WORKLOAD.to_owned(),
        segments: problem::segments(plan),
        thresholds: Vec::new(),
    }
}

/// Says once that a better path is not taken.
fn suppress(
    own: &mut PlacementMemory,
    key: &str,
    path: &str,
    before_seconds: f64,
    after_seconds: f64,
    why: &str,
) -> Planned {
    if own.suppressed.as_deref() == Some(key) {
        return Planned::default();
    }
    own.suppressed = Some(key.to_owned());
    let note = format!(
        "{path} would take {} rather than {}, but {why}",
        text::millis(after_seconds * 1e3),
        text::millis(before_seconds * 1e3),
    );
    Planned {
        plan: None,
        notices: vec![PlanNotice {
            warning: false,
            reason: reasons::REDEPLOY_SUPPRESSED,
            action: "Redeploy",
            note,
        }],
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

fn why_infeasible(built: &Problem, strategy: &str) -> String {
    let why: Vec<String> = explain_infeasible(built)
        .iter()
        .map(ToString::to_string)
        .collect();
    if why.is_empty() {
        format!(
            "strategy {strategy} found no placement: each block fits somewhere, but not all of them together"
        )
    } else {
        why.join("; ")
    }
}

/// `Optimal`, or `Feasible, gap 2.9%`.
fn certificate(proof: &Certificate) -> String {
    match (proof.status, proof.gap) {
        (solver::Status::Optimal, _) => "Optimal".to_owned(),
        (_, Some(gap)) => format!("Feasible, gap {:.1}%", gap * 100.0),
        _ => "Feasible".to_owned(),
    }
}

/// Milliseconds with a tenth: more digits say nothing and make every solve differ.
fn round(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

/// Kubernetes keeps whole seconds; anything finer would differ after a write.
pub(crate) fn seconds_only(now: k8s_openapi::jiff::Timestamp) -> k8s_openapi::jiff::Timestamp {
    k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests;
