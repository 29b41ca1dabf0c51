//! Whether a solution is better than the serving plan by enough.

use super::due::News;
use super::judge::deviation_of_difference;
use super::{Case, Must, Planned, links};
use crate::state::links::Pair;
use crate::state::memory::{Candidate, PlacementMemory};
use crate::state::notice::Notice;
use crate::state::plans::{Phase, WAITING};
use crate::state::snapshot::Answer;
use crate::state::text;
use lamina_crds::dnn_model::AdaptationPolicy;
use lamina_crds::placement::{Cause, Plan, Segment, format_path};
use lamina_crds::reasons;
use lamina_model::Block;
use lamina_placement::adapt::{self, Decision, Policy, Situation, Stay, Switched};
use lamina_placement::check::Violation;
use lamina_placement::{Metrics, Solution};
use std::collections::{BTreeMap, BTreeSet};

/// A link that shares no host with one that became slower is known if it was measured so shortly
/// before.
const RECENT_SECONDS: f64 = 15.0;
/// Links of a better path that nobody measures are waited for no longer than this where
/// requests wait for the move, if they were measured before the change, and than this if never …
const MEASURE_LIMIT_SECONDS: f64 = 3.0;
const UNMEASURED_LIMIT_SECONDS: f64 = 5.0;
/// … and for a path that would only be better: then it is dropped until it is found again, since
/// nothing moves onto an unmeasured link just for a gain.
const CALM_LIMIT_SECONDS: f64 = 10.0;
/// A smaller gain is below measurement accuracy.
const LEAST_GAIN_SECONDS: f64 = 0.001;

impl Case<'_> {
    /// Acts on a solution.
    pub(super) fn compare(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        must: Option<Must>,
        news: Option<News>,
    ) -> Planned {
        let must = must.or_else(|| self.is_back(solution));
        let Some(segments) = self.segments(solution) else {
            let message = "waiting for the address of a host".to_owned();
            own.problem = Some((WAITING, message));
            return Planned::default();
        };
        let digest = &self.wanted.digest;
        let same = |plan: &Plan| {
            plan.manifest == *digest
                && plan.segments == segments
                && !self.is_sent_otherwise(plan)
                && self.has_thresholds_of(plan, solution)
        };
        if let Some(plan) = self.current.filter(|p| same(p))
            && plan.strategy == solution.strategy
        {
            self.met(own);
            self.count_work(own, answer);
            own.problem = None;
            own.candidate = None;
            own.suppressed = None;
            own.noticed = None;
            return Planned::default();
        }
        if let Some(failed) = self.failed_plan().filter(|p| same(p))
            && let Some((again, failures)) = own.retry
            && self.snapshot.now < again
        {
            if self.current.is_none() {
                let message = format!(
                    "revision {} failed and nothing else is possible; it is tried again after a pause ({} so far)",
                    failed.revision, failures
                );
                own.problem = Some((reasons::NO_FEASIBLE_PLACEMENT, message));
            }
            return Planned::default();
        }
        match (self.current, must) {
            (None, _) | (_, Some(Must::First)) => {
                let path = format_path(&segments);
                if self.waits_for_links(own, solution, path, None) {
                    return Planned::default();
                }
                self.first(own, solution, segments)
            }
            (Some(current), Some(Must::Leave(why))) => {
                self.leave(own, answer, solution, current, segments, why)
            }
            (Some(current), None) => {
                self.met(own);
                own.problem = None;
                self.weigh(own, answer, solution, current, segments, news)
            }
        }
    }

    /// Leaves a plan that cannot go on, or that the spec no longer allows.
    fn leave(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        current: &Plan,
        segments: Vec<Segment>,
        why: String,
    ) -> Planned {
        if self.wanted.wish.adaptation.paused {
            // Asked only because the spec changed: the change waits until adaptation is no longer
            // paused.
            let message = format!("{why}, and spec.adaptation.paused keeps everything in place");
            own.problem = Some((reasons::REDEPLOY_SUPPRESSED, message));
            return Planned::default();
        }
        own.problem = None;
        let before = answer.standing.as_ref().and_then(|s| s.metrics.as_ref());
        let before = before.map(|m| m.latency_seconds);
        self.switch(
            own,
            before,
            solution,
            current,
            segments,
            (Cause::Required, why),
        )
    }

    /// The serving plan was found in place of the plugin that answers now.
    fn is_back(&self, solution: &Solution) -> Option<Must> {
        let current = self.current?;
        let wanted = &self.wanted.wish.strategy.name;
        let differs = self.segments(solution)? != current.segments;
        let is_back = solution.strategy == *wanted && current.strategy != *wanted && differs;
        is_back.then(|| Must::Leave(format!("strategy {} → {wanted}", current.strategy)))
    }

    /// The newest plan, if it could not be deployed.
    fn failed_plan(&self) -> Option<&Plan> {
        let placement = self.site.placement?;
        let newest = placement.spec.plan.as_ref()?;
        let failed = placement.status.as_ref().map_or(0, |s| s.failed_revision);
        let fails_now = matches!(self.site.phase, Phase::Failed(_));
        (fails_now || newest.revision <= failed).then_some(newest)
    }

    /// Moves for a gain, or says why not.
    fn weigh(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        current: &Plan,
        to: Vec<Segment>,
        news: Option<News>,
    ) -> Planned {
        let standing = answer.standing.as_ref();
        let now = standing.and_then(|s| s.metrics.as_ref());
        let (Some(standing), Some(now), Some(then)) = (standing, now, &solution.metrics) else {
            return Planned::default();
        };
        let to_be_on = self.count_work(own, answer);
        let goal = |m: &Metrics| m.goal(&answer.problem.objective);
        let (before, after) = (goal(now), goal(then));
        let path = format_path(&to);
        let busy = standing.violations.iter();
        let busy = busy.clone().any(|v| matches!(v, Violation::Busy { .. }));
        if !busy && before - after < LEAST_GAIN_SECONDS {
            own.candidate = None;
            return Planned::default();
        }
        let adaptation = &self.wanted.wish.adaptation;
        if !busy && self.is_rejected(own, &path) {
            let why = "it measured worse than it was expected to";
            return self.suppress(own, &path, "rejected", before, after, why);
        }
        if adaptation.policy == AdaptationPolicy::WorkFunction && !busy {
            return self.by_work(own, answer, solution, current, to, to_be_on);
        }
        let situation = Situation {
            now_seconds: self.snapshot.now.seconds(),
            // If a host or link cannot keep up, requests wait forever.
            current_seconds: if busy { f64::INFINITY } else { before },
            best_seconds: after,
            deviation_seconds: deviation_of_difference(
                &self.snapshot.links,
                &answer.problem,
                now,
                then,
            ),
            rate_per_second: self.rate_per_second(),
            migration_request_seconds: self.moving(answer, &current.segments, &to),
        };
        match adapt::decide(&self.policy(), &situation, &self.moves_made(own)) {
            Decision::Stay(Stay::SmallGain { .. } | Stay::NothingServes | Stay::Paused) => {
                own.candidate = None;
                own.noticed = None;
                Planned::default()
            }
            Decision::Stay(why) => {
                let kind = format!("{:?}", std::mem::discriminant(&why));
                self.suppress(own, &path, &kind, before, after, &why.to_string())
            }
            Decision::Switch(_) | Decision::Rescue { .. }
                if adaptation.policy == AdaptationPolicy::Never =>
            {
                let why = "adaptation.policy is Never";
                self.suppress(own, &path, "never", before, after, why)
            }
            Decision::Switch(_) | Decision::Rescue { .. } => {
                if self.waits_for_links(own, solution, path, news) {
                    return Planned::default();
                }
                self.go(own, answer, solution, current, to)
            }
        }
    }

    /// Makes a move for a gain that a second look confirmed.
    pub(super) fn go(
        &self,
        own: &mut PlacementMemory,
        answer: &Answer,
        solution: &Solution,
        current: &Plan,
        to: Vec<Segment>,
    ) -> Planned {
        let candidate = own.candidate.take();
        let trigger = candidate.and_then(|c| c.trigger);
        let trigger = trigger.unwrap_or_else(|| "a better placement was found".to_owned());
        let before = answer.standing.as_ref().and_then(|s| s.metrics.as_ref());
        let before = before.map(|m| m.latency_seconds);
        let planned = self.switch(own, before, solution, current, to, (Cause::Gain, trigger));
        if let Some(plan) = &planned.plan {
            let promised = current.estimated_latency_ms / 1e3;
            let promised = Some(promised).filter(|s| *s > 0.0);
            self.begin_trial(own, current, plan.revision, promised);
            self.remember_move(own, current, plan);
        }
        planned
    }

    /// Whether a better path must be looked at again. Seen once, it may be due to one bad sample.
    /// And after a change, the links that it would use may have changed too, or were only ever
    /// estimated: wait until they have been measured since, but not forever.
    pub(super) fn waits_for_links(
        &self,
        own: &mut PlacementMemory,
        solution: &Solution,
        path: String,
        news: Option<News>,
    ) -> bool {
        let is_first = self.current.is_none();
        // Where requests wait, for the first plan or for a better one than what became worse,
        // they have been waiting, whichever path it will be.
        let known = own.candidate.take();
        let known = known.filter(|c| is_first || !c.is_calm || c.path == path);
        let is_calm = !is_first
            && news.as_ref().is_none_or(|news| news.is_calm)
            && known.as_ref().is_none_or(|c| c.is_calm);
        let candidate = Candidate {
            found: known.as_ref().map_or(self.snapshot.now, |c| c.found),
            trigger: news.map(|news| news.why).or(known.and_then(|c| c.trigger)),
            is_calm,
            links: crossings(solution),
            path,
        };
        let waited = self.snapshot.seconds_since(candidate.found);
        let view = |(from, to): &Pair| self.snapshot.links.get(from, to);
        // A link that was only pinged is no better known than an unmeasured one.
        let is_measured = |pair| view(pair).is_some_and(|v| v.is_measured());
        let is_recent = |pair| {
            let age = view(pair).map(|v| v.bandwidth_age_seconds);
            age.is_some_and(|age| age <= waited + RECENT_SECONDS)
        };
        // One whose host has a link that became slower may have become slower with it.
        let doubt = links::standing_doubt(self.snapshot, own);
        let is_doubted = |pair: &Pair| {
            let doubt = doubt.as_ref();
            doubt.is_some_and(|d| d.is_about(&pair.0, &pair.1, view(pair).as_ref()))
        };
        let is_known = |pair| {
            let is_old = !is_calm && !is_recent(pair);
            is_measured(pair) && (is_first || !is_doubted(pair) && !is_old)
        };
        let all_known = candidate.links.iter().all(is_known);
        let limit = match is_first || candidate.links.iter().all(is_measured) {
            true => MEASURE_LIMIT_SECONDS,
            false => UNMEASURED_LIMIT_SECONDS,
        };
        let is_over = waited >= limit;
        let waits = !all_known && (is_calm || !is_over) || !is_first && waited <= 0.0;
        let is_given_up = waits && is_calm && waited >= CALM_LIMIT_SECONDS;
        own.candidate = (!is_given_up).then_some(candidate);
        waits
    }

    /// The policy that the spec asks for.
    pub(super) fn policy(&self) -> Policy {
        let wishes = &self.wanted.wish.adaptation;
        Policy {
            horizon_seconds: f64::from(wishes.horizon_seconds),
            cool_down_seconds: f64::from(wishes.cool_down_seconds),
            paused: wishes.paused,
            // The library's defaults are for moves that take effect at once. Here a move takes
            // seconds in which blocks share the link with requests, and its gain is an estimate
            // from a few samples.
            confidence_deviations: 1.0,
            flap_window_seconds: 600.0,
            flap_returns: 2,
            ..Policy::default()
        }
    }

    /// Moves for a gain of this Placement, oldest first, on this process's clock. A forced move (a
    /// host was lost, the spec was edited) says nothing about how steady gains are.
    fn moves_made(&self, own: &mut PlacementMemory) -> Vec<Switched> {
        let moves = own.moves.get_or_insert_with(|| {
            let status = self.site.placement.and_then(|p| p.status.as_ref());
            let history = status.map_or(&[][..], |s| &s.history);
            let at = |r: &lamina_crds::placement::Redeploy| {
                let ago = self.snapshot.seconds_since_wall(r.time.0);
                self.snapshot.now.plus(-ago).seconds()
            };
            let history = history.iter().rev().filter(|r| r.cause == Cause::Gain);
            history
                .map(|r| Switched {
                    at_seconds: at(r),
                    from: r.from.clone(),
                    to: r.to.clone(),
                })
                .collect()
        });
        moves.clone()
    }

    fn remember_move(&self, own: &mut PlacementMemory, from: &Plan, to: &Plan) {
        let mut moves = self.moves_made(own);
        let window = self.policy().flap_window_seconds;
        let now = self.snapshot.now.seconds();
        moves.retain(|m| now - m.at_seconds <= window);
        moves.push(Switched {
            at_seconds: now,
            from: format_path(&from.segments),
            to: format_path(&to.segments),
        });
        own.moves = Some(moves);
    }

    fn is_rejected(&self, own: &mut PlacementMemory, path: &str) -> bool {
        let now = self.snapshot.now;
        own.rejected.retain(|_, until| now < *until);
        own.rejected.contains_key(path)
    }

    /// What a move costs all requests together, in request-seconds: while blocks are on the
    /// way, requests share links with them.
    pub(super) fn moving(&self, answer: &Answer, from: &[Segment], to: &[Segment]) -> f64 {
        let standing = answer.standing.as_ref().and_then(|s| s.metrics.as_ref());
        let workload = standing.and_then(|m| m.workloads.first());
        let network = workload.map_or(0.0, |w| w.network_seconds);
        self.rate_per_second() * network * self.fetch_seconds(from, to)
    }

    /// Time in which hosts fetch what they lack for `to`.
    fn fetch_seconds(&self, from: &[Segment], to: &[Segment]) -> f64 {
        let held: BTreeSet<(&str, u32)> = from
            .iter()
            .flat_map(|s| s.blocks.iter().map(|b| (s.host.node.as_str(), *b)))
            .collect();
        let mut lacking: BTreeMap<&str, u64> = BTreeMap::new();
        for segment in to {
            let node = segment.host.node.as_str();
            let blocks = segment.blocks.iter();
            for block in blocks.filter(|b| !held.contains(&(node, **b))) {
                let index = usize::try_from(*block).unwrap_or(usize::MAX);
                let block = self.wanted.manifest.blocks.get(index);
                let on_disk = |b: &&Block| self.snapshot.held.holds(node, &b.digest);
                let block = block.filter(|b| !on_disk(b));
                *lacking.entry(node).or_default() += block.map_or(0, |b| b.file_bytes);
            }
        }
        lacking
            .iter()
            .map(|(node, bytes)| *bytes as f64 / self.inbound(node))
            .fold(0.0, f64::max)
    }

    /// Bytes per second at which `node` fetches: from the operator's host, else over its slowest
    /// measured link.
    fn inbound(&self, node: &str) -> f64 {
        let links = &self.snapshot.links;
        let rate = |from: &str| links.get(from, node)?.bytes_per_second.filter(|r| *r > 0.0);
        rate(&self.snapshot.operator_node).unwrap_or_else(|| {
            let hosts = self.site.cluster.hosts.iter();
            hosts
                .filter_map(|h| rate(&h.name))
                .fold(f64::INFINITY, f64::min)
        })
    }

    /// Reports once that a better path is not taken.
    fn suppress(
        &self,
        own: &mut PlacementMemory,
        path: &str,
        kind: &str,
        before_seconds: f64,
        after_seconds: f64,
        why: &str,
    ) -> Planned {
        own.candidate = None;
        let key = format!("{path} {kind}");
        if own.suppressed.as_ref() == Some(&key) {
            return Planned::default();
        }
        own.suppressed = Some(key);
        let note = format!(
            "{path} would take {} rather than {}, but {why}",
            text::millis(after_seconds * 1e3),
            text::millis(before_seconds * 1e3),
        );
        Planned {
            notices: vec![Notice::normal(
                self.site.regarding(),
                reasons::REDEPLOY_SUPPRESSED,
                "Redeploy",
                note,
            )],
            ..Planned::default()
        }
    }
}

fn crossings(solution: &Solution) -> Vec<Pair> {
    let workloads = solution.metrics.iter().flat_map(|m| &m.workloads);
    let crossings = workloads.flat_map(|w| &w.crossings);
    crossings.map(|c| (c.from.clone(), c.to.clone())).collect()
}
