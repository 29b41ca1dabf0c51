//! Whether a solution is better than what serves, by enough.

use super::{Case, Must, PlanNotice, Planned, WAITING, placement_of, text};
use crate::controllers::deploy::Phase;
use crate::controllers::memory::{Candidate, PlacementMemory};
use crate::controllers::snapshot::LinkView;
use lamina_crds::dnn_model::AdaptationPolicy;
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_crds::reasons;
use lamina_placement::adapt::{self, Decision, Policy, Situation, Stay, Switched};
use lamina_placement::check::{Violation, evaluate};
use lamina_placement::{Constraints, Metrics, Problem, Solution};
use std::collections::{BTreeMap, BTreeSet};

/// A link that was measured so shortly before a change was seen was measured
/// after it came: seeing it takes a few samples.
const FRESH_SECONDS: f64 = 1.0;
/// Links of a better path that nobody measures are waited for no longer than this.
const MEASURE_LIMIT_SECONDS: f64 = 8.0;

impl Case<'_> {
    /// What follows from a solution.
    pub(super) fn compare(
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
        let goal = |m: &Metrics| m.goal(&built.objective);
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
                let known = own.candidate.take().filter(|c| c.path == path);
                let candidate = Candidate {
                    found: known.as_ref().map_or(self.snapshot.now, |c| c.found),
                    trigger: news.or(known.and_then(|c| c.trigger)),
                    path,
                };
                if !self.is_sure(&candidate, then) {
                    own.candidate = Some(candidate);
                    return Planned::default();
                }
                let trigger = candidate
                    .trigger
                    .unwrap_or_else(|| "a better placement was found".to_owned());
                self.switch(own, built, solution, current, to, trigger)
            }
        }
    }

    /// Whether a better path may be taken now. Seen once, it may be one bad sample.
    /// And where something changed, links that it would use may have changed, too:
    /// they are waited for until they were measured since, but not for ever.
    fn is_sure(&self, candidate: &Candidate, then: &Metrics) -> bool {
        let waited = self.snapshot.seconds_since(candidate.found);
        let crossings = then.workloads.iter().flat_map(|w| &w.crossings);
        let is_fresh = |from: &str, to: &str| {
            let view = self.snapshot.links.get(&(from.to_owned(), to.to_owned()));
            view.is_some_and(|v| v.bandwidth_age_seconds <= waited + FRESH_SECONDS)
        };
        let all_fresh = crossings.into_iter().all(|c| is_fresh(&c.from, &c.to));
        waited > 0.0
            && (candidate.trigger.is_none() || all_fresh || waited >= MEASURE_LIMIT_SECONDS)
    }

    fn policy(&self) -> Policy {
        let wishes = &self.question.spec.adaptation;
        Policy {
            horizon_seconds: f64::from(wishes.horizon_seconds),
            cool_down_seconds: f64::from(wishes.cool_down_seconds),
            paused: wishes.paused,
            // The library's own figures are for moves that are made as soon as they
            // are wanted. Here a move takes seconds in which blocks share the link
            // with requests, and its gain is an estimate from a few samples.
            confidence_deviations: 1.0,
            flap_window_seconds: 600.0,
            flap_returns: 2,
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
        let rate = |view: &LinkView| view.bytes_per_second.filter(|r| *r > 0.0);
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
}

/// Latency and times of `plan` as things are, whatever the limits say of it.
pub(super) fn figures(built: &Problem, plan: &Plan) -> Option<Metrics> {
    let mut free = built.clone();
    for node in &mut free.nodes {
        node.memory_bytes = u64::MAX;
        node.utilisation_cap = 1.0;
        node.excluded = None;
    }
    for workload in &mut free.workloads {
        workload.constraints = Constraints::default();
        workload.rate_per_second = 0.0;
        workload.previous = None;
    }
    evaluate(&free, &[placement_of(plan)]).ok()
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
        notices: vec![PlanNotice {
            warning: false,
            reason: reasons::REDEPLOY_SUPPRESSED,
            action: "Redeploy",
            note,
        }],
        ..Planned::default()
    }
}
