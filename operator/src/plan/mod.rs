//! Whether a Placement needs another plan, and which.
//!
//! A plan that cannot go on is replaced at once. One that could be better is replaced when
//! the gain pays for the move and the last move was long enough ago. Each decision, taken
//! or suppressed, is reported once, with numbers.
//!
//! A Placement has two wishes: the current spec, and the last one that was met. While the
//! current one is invalid, not prepared yet or cannot be met, the other keeps the model
//! serving.

mod ahead;
mod answer;
mod ask;
mod candidates;
mod crossings;
pub(crate) mod desk;
mod due;
mod judge;
mod learn;
mod links;
mod problem;
mod thresholds;
mod trial;
mod weigh;
mod work;

pub(crate) use learn::learn;

use crate::state::cluster::{Cluster, rate_to_plan_for};
use crate::state::decision::{Ask, Question, Solve};
use crate::state::exits;
use crate::state::ids::{self, ObjectId, PlacementKey};
use crate::state::links::Pair;
use crate::state::memory::{Memory, PlacementMemory};
use crate::state::notice::{Notice, Regarding};
use crate::state::plans::{self, DeployFailure, Phase, WAITING};
use crate::state::reserved::Reserved;
use crate::state::snapshot::{About, Answer, Need, QuestionView, Snapshot};
use crate::state::wish::Wish;
use due::News;
use judge::is_broken_wish;
use lamina_crds::dnn_model::ExitMode;
use lamina_crds::placement::{Plan, Segment};
use lamina_crds::{Placement, reasons};
use lamina_model::Manifest;
use lamina_placement::Solution;
use lamina_plugin_host::{FALLBACK, PREFIX};
use std::sync::Arc;

/// First pause before a failed plan is tried again; it doubles.
const RETRY_SECONDS: f64 = 60.0;
/// Longest pause before a failed plan is tried again.
const RETRY_LIMIT_SECONDS: f64 = 900.0;

/// Rows needed before the observed exit rates replace those of the model's file.
const TELLING_ROWS: u64 = 100;

/// The decision about a plan.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    /// The plan to write.
    pub plan: Option<Plan>,
    /// Events to publish.
    pub notices: Vec<Notice>,
    /// How a strategy answered.
    pub solve: Option<Solve>,
    /// A question for a strategy.
    pub ask: Option<Ask>,
    /// The answer to the last question was used, or is no longer wanted.
    pub answered: bool,
    /// Links of a better path that must be measured first.
    pub wanted_links: Vec<Pair>,
    /// Seconds until a better path can be looked at again.
    pub again_seconds: Option<f64>,
}

/// A wish with the manifest that it places.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Generation of the DnnModel.
    pub generation: i64,
    /// The wish.
    pub wish: Arc<Wish>,
    /// Digest of the manifest.
    pub digest: String,
    /// The prepared model.
    pub manifest: Arc<Manifest>,
}

/// One model at one entry.
pub(crate) struct Site<'a> {
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// Its hosts and links.
    pub cluster: &'a Arc<Cluster>,
    /// The DnnModel.
    pub model: &'a ObjectId,
    /// The entry's node.
    pub entry: &'a str,
    /// The Placement, if it exists.
    pub placement: Option<&'a Placement>,
    /// The state of its newest plan.
    pub phase: &'a Phase,
    /// The current spec's wish, if it is valid and prepared.
    pub asked: Option<Wanted>,
    /// The wish last met.
    pub in_force: Option<Wanted>,
}

/// Everything that a decision about one Placement depends on.
struct Case<'a> {
    site: &'a Site<'a>,
    snapshot: &'a Snapshot,
    /// The wish that counts now.
    wanted: &'a Wanted,
    /// It is the current spec's.
    is_asked: bool,
    /// The plan that serves or is on its way.
    current: Option<&'a Plan>,
    /// Why the present plan cannot go on under any wish.
    broken: Option<String>,
}

/// Why the present plan must be left.
enum Must {
    /// There is no plan.
    First,
    /// It cannot go on, for this reason.
    Leave(String),
}

/// Decides about the plan of one model at one entry.
pub(crate) fn decide(site: &Site<'_>, memory: &mut Memory) -> Planned {
    if matches!(site.phase, Phase::Flipping(_) | Phase::Flipped { .. }) {
        return Planned::default();
    }
    let key = site.key();
    let mut own = memory.placements.remove(&key).unwrap_or_default();
    site.note_failure(memory, &mut own);
    let mut planned = match site.unwritten(&mut own) {
        Some(plan) => Planned {
            plan: Some(plan),
            ..Planned::default()
        },
        None => site.decide(memory, &mut own),
    };
    let asks_ahead = planned.ask.as_ref().is_some_and(|a| a.need == Need::Ahead);
    if asks_ahead {
        memory.asked_ahead = Some(site.snapshot.now);
    }
    own.unwritten.clone_from(&planned.plan);
    site.tell(&mut own, &mut planned);
    let candidate = own.candidate.iter().flat_map(|c| &c.links);
    planned.wanted_links.extend(candidate.cloned());
    let is_asked =
        planned.ask.is_some() || !planned.answered && site.snapshot.questions.contains_key(&key);
    if own.candidate.is_some() && !is_asked {
        planned.again_seconds = due::pause_left(site.snapshot, &own);
    }
    memory.placements.insert(key, own);
    planned
}

impl<'a> Site<'a> {
    fn key(&self) -> PlacementKey {
        PlacementKey::new(&self.model.uid, self.entry)
    }

    fn regarding(&self) -> Regarding {
        Regarding::model(self.model.clone())
    }

    /// Counts a plan that could not be deployed. If it was counted before, its status could not be
    /// written meanwhile.
    fn note_failure(&self, memory: &mut Memory, own: &mut PlacementMemory) {
        let newest = self.placement.and_then(|p| p.spec.plan.as_ref());
        let (Phase::Failed(failure), Some(newest)) = (self.phase, newest) else {
            return;
        };
        if own.failed_revision >= newest.revision {
            return;
        }
        own.failed_revision = newest.revision;
        remember_failure(self.snapshot, memory, own, newest, failure);
    }

    /// A plan that was decided but is not in the object yet, if it is still valid.
    fn unwritten(&self, own: &mut PlacementMemory) -> Option<Plan> {
        let plan = own.unwritten.take()?;
        let newest = self.placement.and_then(|p| p.spec.plan.as_ref());
        let is_written = newest.is_some_and(|newest| newest.revision >= plan.revision);
        let is_broken = self.current().is_some_and(|p| self.broken(p).is_some());
        let is_wanted = self
            .wanted(own, is_broken)
            .is_some_and(|(w, _)| w.generation == plan.generation && w.digest == plan.manifest);
        let stands = !is_written && is_wanted && self.broken(&plan).is_none();
        stands.then_some(plan)
    }

    /// The plan that serves or is on its way.
    fn current(&self) -> Option<&'a Plan> {
        let placement = self.placement?;
        match self.phase {
            Phase::Failed(_) => plans::active(placement),
            _ => plans::target(placement).or_else(|| plans::active(placement)),
        }
    }

    fn decide(&self, memory: &Memory, own: &mut PlacementMemory) -> Planned {
        if !self.snapshot.is_alive(self.entry) {
            if !self.snapshot.is_starting() {
                let message = format!("the agent on the entry {} is not connected", self.entry);
                own.problem = Some((reasons::NODE_LOST, message));
            }
            return Planned::default();
        }
        let is_lost = |p: &(&str, String)| p.0 == reasons::NODE_LOST;
        own.problem = own.problem.take().filter(|p| !is_lost(p));
        let current = self.current();
        let broken = current.and_then(|plan| self.broken(plan));
        let Some((wanted, is_asked)) = self.wanted(own, broken.is_some()) else {
            return Planned::default();
        };
        let case = Case {
            site: self,
            snapshot: self.snapshot,
            wanted,
            is_asked,
            current,
            broken,
        };
        case.decide(memory, own)
    }

    /// The wish that counts: the spec's own, unless it cannot be met and the serving plan must be
    /// left.
    fn wanted(&self, own: &PlacementMemory, is_broken: bool) -> Option<(&Wanted, bool)> {
        let in_force = self.in_force.as_ref();
        match (&self.asked, in_force) {
            (Some(asked), Some(in_force))
                if is_broken && own.unmet_generation == Some(asked.generation) =>
            {
                let is_same = asked.generation == in_force.generation;
                Some((in_force, is_same))
            }
            (Some(asked), _) => Some((asked, true)),
            (None, Some(in_force)) => Some((in_force, false)),
            (None, None) => None,
        }
    }

    /// Why `plan` cannot go on under any wish.
    fn broken(&self, plan: &Plan) -> Option<String> {
        let snapshot = self.snapshot;
        if !snapshot.is_starting()
            && let Some(host) = plans::hosts(plan).find(|h| !snapshot.is_alive(h))
        {
            return Some(format!("{host} is lost"));
        }
        let moved = plan.segments.iter().map(|s| &s.host).find(|h| {
            let live = snapshot.live.get(&h.node);
            live.is_some_and(|l| l.alive && !l.address.is_empty() && l.address != h.address)
        });
        if let Some(host) = moved {
            return Some(format!("{} has a new address", host.node));
        }
        // Replies travel back along the path.
        let (from, to) = plans::links(self.entry, plan)
            .into_iter()
            .flat_map(|(from, to)| [(from.clone(), to.clone()), (to, from)])
            .find(|(a, b)| snapshot.links.get(a, b).is_some_and(|v| !v.reachable))?;
        Some(format!("link {from}→{to} is down"))
    }

    /// Adds Events about problems and about the path's links.
    fn tell(&self, own: &mut PlacementMemory, planned: &mut Planned) {
        if planned.plan.is_none()
            && let Some((reason, message)) = own.problem.clone()
            && reason != WAITING
            && own.told_problem.as_ref() != Some(&message)
        {
            own.told_problem = Some(message.clone());
            let notice = Notice::warning(self.regarding(), reason, "Solve", message);
            planned.notices.push(notice);
        }
        if own.problem.is_none() && planned.plan.is_some() {
            own.told_problem = None;
        }
        let Some(plan) = self.current() else { return };
        for (warning, reason, note) in links::news(self.snapshot, own, self.entry, plan) {
            planned.notices.push(Notice {
                regarding: self.regarding(),
                warning,
                reason,
                action: "Measure",
                note,
            });
        }
    }
}

fn remember_failure(
    snapshot: &Snapshot,
    memory: &mut Memory,
    own: &mut PlacementMemory,
    failed: &Plan,
    failure: &DeployFailure,
) {
    if let Some(node) = &failure.node {
        let key = (node.clone(), failed.manifest.clone());
        let learned = Arc::make_mut(&mut memory.learned);
        learned.load_failures.insert(key, snapshot.now);
    }
    let failures = own.retry.map_or(0, |(_, n)| n);
    let pause = (RETRY_SECONDS * f64::from(1_u32 << failures.min(5))).min(RETRY_LIMIT_SECONDS);
    own.retry = Some((snapshot.now.plus(pause), failures + 1));
    own.solved_at = None;
}

/// Whether a plan of strategy `by` satisfies `wanted`, or replaces a plugin's.
fn answers_for(by: &str, wanted: &str) -> bool {
    by == wanted || wanted.starts_with(PREFIX) && by == FALLBACK
}

impl Case<'_> {
    fn entry(&self) -> &str {
        self.site.entry
    }

    fn decide(&self, memory: &Memory, own: &mut PlacementMemory) -> Planned {
        let news = self.news(own);
        let is_news = self.broken.is_some() || news.is_some();
        if is_news && self.current.is_some() {
            own.noticed.get_or_insert(self.snapshot.now);
        } else if own.candidate.is_none() {
            own.noticed = None;
        }
        self.watch_trial(own);
        match self.snapshot.questions.get(&self.site.key()) {
            Some(question) if question.about != self.about() => {
                // Nobody waits for it any more; the next look asks again.
                Planned {
                    answered: true,
                    ..Planned::default()
                }
            }
            Some(question) if question.need == Need::Ahead => {
                self.heard_ahead(memory, own, question, news.is_some())
            }
            Some(question) => self.heard(memory, own, question, news),
            None => {
                let planned = self.ask_when_due(memory, own, news.is_some());
                if planned.ask.is_some() {
                    return planned;
                }
                self.ask_ahead_when_due(memory, own)
            }
        }
    }

    fn ask_when_due(&self, memory: &Memory, own: &mut PlacementMemory, news: bool) -> Planned {
        let Some(need) = self.due(own, news) else {
            return Planned::default();
        };
        if need == Need::First && !self.is_settled(own) {
            let message = format!("waiting until the links of {} are measured", self.entry());
            own.problem = Some((WAITING, message));
            return Planned::default();
        }
        self.ask(memory, own, need)
    }

    fn ask(&self, memory: &Memory, own: &mut PlacementMemory, need: Need) -> Planned {
        own.solved_at = Some(self.snapshot.now);
        own.problem = own.problem.take().filter(|(reason, _)| *reason != WAITING);
        let question = self.question(memory, own, need);
        Planned {
            ask: Some(self.ask_about(need, question)),
            ..Planned::default()
        }
    }

    fn ask_about(&self, need: Need, question: Question) -> Ask {
        Ask {
            key: self.site.key(),
            about: self.about(),
            need,
            question: Arc::new(question),
        }
    }

    fn heard(
        &self,
        memory: &Memory,
        own: &mut PlacementMemory,
        question: &QuestionView,
        news: Option<News>,
    ) -> Planned {
        let Some(answer) = &question.answer else {
            // The serving plan broke after the question was asked for another reason.
            let need = self.need(own, news.is_some());
            let is_overtaken = need >= Need::Leave && question.need < need;
            return if is_overtaken {
                self.ask(memory, own, need)
            } else {
                Planned::default()
            };
        };
        if let Ok(solution) = &answer.solution
            && self.is_overtaken(solution)
        {
            // The world changed during the computation; the next look asks again.
            own.solved_at = None;
            return Planned {
                answered: true,
                ..Planned::default()
            };
        }
        own.answered_at = Some(self.snapshot.now);
        let mut considered: Vec<_> = answer.problem.nodes.iter().map(|n| &n.name).collect();
        considered.sort_unstable();
        own.considered = considered.into_iter().cloned().collect();
        // What came after the question was asked is still to be answered.
        own.faster_link = own.faster_link.take().filter(|l| Some(l.0) > own.solved_at);
        own.fit = Arc::clone(&self.site.cluster.fit);
        own.exit_shares = self.exit_shares();
        own.planned_generation = Some(self.wanted.generation);
        let remark = self.remark(own, answer);
        let planned = self.conclude(own, answer, news);
        Planned {
            answered: true,
            solve: Some(self.solve_of(answer)),
            notices: remark.into_iter().chain(planned.notices).collect(),
            ..planned
        }
    }

    /// Whether a host or a link of `solution` is gone by now.
    fn is_overtaken(&self, solution: &Solution) -> bool {
        let mut hosts = solution.placements.iter().flat_map(|p| &p.segments);
        let is_away = |node: &str| {
            let host = self.site.cluster.host(node);
            host.is_none_or(|h| h.unfit.is_some())
        };
        let crossings = solution.metrics.iter().flat_map(|m| &m.workloads);
        let mut crossings = crossings.flat_map(|w| &w.crossings);
        let links = &self.snapshot.links;
        let is_down = |from: &str, to: &str| links.get(from, to).is_some_and(|v| !v.reachable);
        hosts.any(|s| is_away(&s.node))
            || crossings.any(|c| is_down(&c.from, &c.to) || is_down(&c.to, &c.from))
    }

    fn about(&self) -> About {
        About {
            strategy: self.wanted.wish.strategy.name.clone(),
            generation: self.wanted.generation,
            manifest: self.wanted.digest.clone(),
            revision: self.current.map_or(0, |p| p.revision),
        }
    }

    fn question(&self, memory: &Memory, own: &mut PlacementMemory, need: Need) -> Question {
        let placement = self.site.placement;
        // A question ahead supposes links of its own.
        let doubted = self.current.filter(|_| need != Need::Ahead);
        let doubt = doubted.and_then(|plan| links::doubt(self.snapshot, own, self.entry(), plan));
        Question {
            wish: Arc::clone(&self.wanted.wish),
            manifest: Arc::clone(&self.wanted.manifest),
            digest: self.wanted.digest.clone(),
            entry: self.entry().to_owned(),
            placement_uid: placement.map_or("", |p| ids::uid(&p.metadata)).to_owned(),
            namespace: self.site.model.namespace.clone(),
            current: self.current.cloned(),
            serving: placement.and_then(plans::active).cloned(),
            is_urgent: need >= Need::Leave,
            rate_per_second: self.rate_per_second(),
            exit_shares: self.exit_shares(),
            doubt,
            supposed: Vec::new(),
            held: self.snapshot.held.clone(),
            reserved: Reserved::default(),
            cluster: Arc::clone(self.site.cluster),
            learned: Arc::clone(&memory.learned),
        }
    }

    /// Requests per second to plan for.
    fn rate_per_second(&self) -> f64 {
        let uid = self.site.placement.map_or("", |p| ids::uid(&p.metadata));
        rate_to_plan_for(self.snapshot, uid, self.wanted.wish.rate_per_second)
    }

    /// Share of requests that leave at each exit: as entries count them, else as measured when the
    /// model was exported.
    fn exit_shares(&self) -> Vec<f64> {
        let (manifest, wish) = (&*self.wanted.manifest, &*self.wanted.wish);
        let early = wish.exits.as_ref();
        if early.is_some_and(|e| e.mode == ExitMode::All) || exits::of(manifest).is_none() {
            return Vec::new();
        }
        let placement = self.site.placement;
        let seen = placement.and_then(|p| self.snapshot.exit_rows.get(ids::uid(&p.metadata)));
        let seen = seen.filter(|rows| rows.len() == manifest.exits.len());
        if let Some(rows) = seen {
            let all: u64 = rows.iter().sum();
            if all >= TELLING_ROWS {
                return rows.iter().map(|rows| *rows as f64 / all as f64).collect();
            }
        }
        let chosen = self.current.map(|plan| &plan.thresholds);
        lamina_profile::expected_shares(manifest, |exit| {
            thresholds::of(wish, chosen, exit).threshold
        })
    }

    /// Acts on a strategy's answer.
    fn conclude(&self, own: &mut PlacementMemory, answer: &Answer, news: Option<News>) -> Planned {
        if let Some(back) = self.judge_trial(own, answer) {
            return back;
        }
        let must = self.must_leave(answer);
        match &answer.solution {
            Ok(solution) => self.compare(own, answer, solution, must, news),
            Err((reason, message)) => self.infeasible(own, answer, reason, message),
        }
    }

    /// Why the present plan must be left, if it must.
    fn must_leave(&self, answer: &Answer) -> Option<Must> {
        let Some(plan) = self.current else {
            return Some(Must::First);
        };
        if let Some(why) = &self.broken {
            return Some(Must::Leave(why.clone()));
        }
        if plan.manifest != self.wanted.digest {
            return Some(Must::Leave("the model was prepared anew".to_owned()));
        }
        let wanted = &self.wanted.wish.strategy.name;
        if !answers_for(&plan.strategy, wanted) {
            return Some(Must::Leave(format!(
                "strategy {} → {wanted}",
                plan.strategy
            )));
        }
        if self.is_sent_otherwise(plan) {
            let why = "values are to be sent otherwise (spec.activations)";
            return Some(Must::Leave(why.to_owned()));
        }
        if self.is_chosen_otherwise(plan) {
            let why = "thresholds of exits are to be chosen otherwise (spec.exits)";
            return Some(Must::Leave(why.to_owned()));
        }
        let violation = self.broken_wish(answer)?;
        Some(Must::Leave(format!(
            "the spec no longer allows it: {violation}"
        )))
    }

    /// Which constraint of the wish the present plan breaks.
    fn broken_wish(&self, answer: &Answer) -> Option<String> {
        let violations = &answer.standing.as_ref()?.violations;
        let violation = violations.iter().find(|v| is_broken_wish(v))?;
        Some(violation.to_string())
    }

    /// Notes that the serving plan meets the current spec.
    fn met(&self, own: &mut PlacementMemory) {
        if self.is_asked {
            own.met_generation = Some(self.wanted.generation);
            own.unmet_generation = None;
            own.unmet_since = None;
        }
    }

    fn infeasible(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        reason: &'static str,
        message: &str,
    ) -> Planned {
        let is_unmet = self.must_leave(answer).is_some() || reason == reasons::INVALID_SPEC;
        let message = match self.current {
            Some(plan) => format!("{message}; revision {} stays", plan.revision),
            None => message.to_owned(),
        };
        if is_unmet {
            if self.is_asked && own.unmet_generation != Some(self.wanted.generation) {
                own.unmet_generation = Some(self.wanted.generation);
                own.unmet_since = Some(self.snapshot.now);
                own.met_generation = None;
            }
            own.problem = Some((reason, message));
            return Planned::default();
        }
        // It still serves as the spec asks, but no allowed placement keeps up.
        self.met(own);
        own.problem = None;
        if own.told_problem.as_ref() == Some(&message) {
            return Planned::default();
        }
        own.told_problem = Some(message.clone());
        let notice = Notice::warning(self.site.regarding(), reason, "Solve", message);
        Planned {
            notices: vec![notice],
            ..Planned::default()
        }
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
}

#[cfg(test)]
mod tests;
