//! Whether a Placement needs another plan, and which.
//!
//! A plan that cannot go on is replaced at once. One that could be better is
//! replaced when the gain pays for the move and the last move is long enough
//! ago. Each decision, taken or suppressed, is told once, with numbers.

use super::decision::Ask;
use super::deploy::{self, Phase};
use super::memory::{Memory, PlacementMemory, placement_key};
use super::problem::{self, Question, WORKLOAD};
use super::snapshot::Snapshot;
use super::{links, spec, text};
use crate::metrics::Solve;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lamina_crds::placement::Plan;
use lamina_crds::{DnnModel, reasons};
use lamina_placement::check::{Violation, evaluate};
use lamina_placement::{self as solver, Ctx, Problem};

mod answer;
mod ask;
mod weigh;

use ask::{Asked, Solved, remark};

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
    /// How a strategy was asked.
    pub solve: Option<Solve>,
    /// A question for a plugin.
    pub ask: Option<Ask>,
    /// The answer to the last one was taken.
    pub answered: bool,
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
    let newest = question.placement.and_then(|p| p.spec.plan.as_ref());
    let newest = newest.map_or(0, |p| p.revision);
    // Seen again, its status could not be written meanwhile.
    if let Phase::Failed(failure) = phase
        && own.failed_revision < newest
    {
        own.failed_revision = newest;
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
        own.problem = own
            .problem
            .take()
            .filter(|(reason, _)| *reason != reasons::NODE_LOST);
        let built = match problem::build(self.snapshot, memory, self.question) {
            Ok(built) => built,
            Err(e) => return self.stop(own, reasons::INVALID_SPEC, e.to_string()),
        };
        let must = self.must_leave(&built);
        let news = self.news(own);
        let asked = self.asked();
        if asked.is_none() {
            if !self.is_due(own, must.is_some(), news.is_some()) {
                return Planned::default();
            }
            if matches!(must, Some(Must::First)) && !self.is_settled(own) {
                let message = format!("waiting until the links of {entry} are measured");
                own.problem = Some((WAITING, message));
                return Planned::default();
            }
            own.solved_at = Some(self.snapshot.now);
        }
        let solved = match asked {
            None => self.ask(&built, ctx),
            Some(question) => self.heard(question, &built, ctx),
        };
        match solved {
            Asked::Question(ask) => {
                own.problem = own.problem.take().filter(|(reason, _)| *reason != WAITING);
                Planned {
                    ask: Some(ask),
                    ..Planned::default()
                }
            }
            Asked::Awaited => Planned::default(),
            // The next look asks again.
            Asked::Outdated => Planned {
                answered: true,
                ..Planned::default()
            },
            Asked::Solved(solved) => Planned {
                answered: asked.is_some(),
                ..self.conclude(own, &built, *solved, must, news)
            },
        }
    }

    /// What follows from what a strategy says.
    fn conclude(
        &self,
        own: &mut PlacementMemory,
        built: &Problem,
        solved: Solved,
        must: Option<Must>,
        news: Option<String>,
    ) -> Planned {
        own.alive = self.alive().map(str::to_owned).collect();
        own.planned_generation = self.model.metadata.generation;
        let notice = remark(own, solved.remark);
        let planned = match solved.solution {
            Ok(solution) => {
                let must = must.or_else(|| self.is_back(&solution));
                self.compare(own, built, &solution, must, news)
            }
            Err((reason, message)) => self.infeasible(own, must.is_some(), reason, message),
        };
        Planned {
            solve: Some(solved.solve),
            notices: notice.into_iter().chain(planned.notices).collect(),
            ..planned
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
                notices: vec![PlanNotice {
                    warning: true,
                    reason,
                    action: "Solve",
                    note: message,
                }],
                ..Planned::default()
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
        // Replies travel the path back.
        let down = links::of_path(self.entry(), plan)
            .into_iter()
            .flat_map(|(from, to)| [(from.clone(), to.clone()), (to, from)])
            .find(|pair| self.snapshot.links.get(pair).is_some_and(|v| !v.reachable));
        if let Some((from, to)) = down {
            return leave(format!("link {from}→{to} is down"));
        }
        let wanted = &self.question.spec.strategy.name;
        if !spec::answers_for(&plan.strategy, wanted) {
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
        if own
            .planned_generation
            .is_some_and(|g| Some(g) != self.model.metadata.generation)
        {
            return Some("the spec changed".to_owned());
        }
        self.current
            .and_then(|plan| links::change_since_plan(self.snapshot, own, self.entry(), plan))
            .or_else(|| {
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

fn placement_of(plan: &Plan) -> solver::Placement {
    solver::Placement {
        workload: WORKLOAD.to_owned(),
        segments: problem::segments(plan),
        thresholds: Vec::new(),
    }
}

/// Kubernetes keeps whole seconds; anything finer would differ after a write.
pub(crate) fn seconds_only(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests;
