//! Asking the strategy that the spec names. A built-in one answers here and now. A
//! plugin is asked by the loop, outside of deciding, and its answer is found in a
//! later snapshot.

use super::{Case, Must, PlanNotice};
use crate::controllers::decision::Ask;
use crate::controllers::memory::{PlacementMemory, placement_key};
use crate::controllers::snapshot::{AnswerView, QuestionView, Remark};
use crate::controllers::spec::{self, Choice};
use crate::metrics::Solve;
use lamina_crds::reasons;
use lamina_placement::check::evaluate;
use lamina_placement::explain::why_infeasible;
use lamina_placement::{
    Ctx, Parameters, Problem, Solution, SolveError, SolveOptions, Strategy, solve_checked,
};
use std::sync::Arc;

/// Why there is nothing to place: a reason and its message.
type Refusal = (&'static str, String);

/// What asking led to.
pub(super) enum Asked {
    /// A plugin is to be asked.
    Question(Ask),
    /// It was asked before.
    Awaited,
    /// The world changed while it computed: its answer breaks something by now.
    Outdated,
    /// There is an answer.
    Solved(Box<Solved>),
}

/// What a strategy says.
pub(super) struct Solved {
    pub(super) solution: Result<Solution, Refusal>,
    pub(super) remark: Option<Remark>,
    pub(super) solve: Solve,
}

impl Case<'_> {
    /// The question to a plugin that is open for this spec.
    pub(super) fn asked(&self) -> Option<&QuestionView> {
        let asked = self.snapshot.questions.get(&self.key())?;
        let is_ours = asked.generation == self.generation()
            && asked.strategy == self.question.spec.strategy.name;
        is_ours.then_some(asked)
    }

    fn key(&self) -> String {
        let uid = self.model.metadata.uid.as_deref().unwrap_or_default();
        placement_key(uid, self.question.entry)
    }

    fn generation(&self) -> i64 {
        self.model.metadata.generation.unwrap_or_default()
    }

    /// Asks, and gives the answer of a built-in strategy.
    pub(super) fn ask(&self, built: &Problem, ctx: &Ctx) -> Asked {
        if let Some(refusal) = self.pinned_to_nobody() {
            return self.solved(Err(refusal), 0.0, None);
        }
        match spec::choice(self.question.spec, &self.snapshot.plugins) {
            Err(e) => {
                let refusal = (reasons::INVALID_SPEC, e.to_string());
                self.solved(Err(refusal), 0.0, None)
            }
            Ok(Choice::Plugin(parameters)) => Asked::Question(self.for_plugin(built, parameters)),
            Ok(Choice::BuiltIn(strategy)) => {
                let began = ctx.remaining();
                let solution = self.solve(built, strategy.as_ref(), ctx);
                let took = began.zip(ctx.remaining()).map(|(a, b)| a.saturating_sub(b));
                let seconds = took.unwrap_or_default().as_secs_f64();
                self.solved(solution, seconds, None)
            }
        }
    }

    fn for_plugin(&self, built: &Problem, parameters: Parameters) -> Ask {
        Ask {
            key: self.key(),
            strategy: self.question.spec.strategy.name.clone(),
            generation: self.generation(),
            problem: Arc::new(built.clone()),
            parameters,
        }
    }

    /// What a plugin, or [`lamina_plugin_host::FALLBACK`] in its place, answered. The
    /// figures are worked out again: the world may be another one by now.
    pub(super) fn heard(&self, question: &QuestionView, built: &Problem, ctx: &Ctx) -> Asked {
        let Some(AnswerView {
            seconds,
            solution,
            remark,
        }) = &question.answer
        else {
            return Asked::Awaited;
        };
        let no_placement = |why: String| (reasons::NO_FEASIBLE_PLACEMENT, why);
        let solution = match solution {
            Err(why) => Err(no_placement(why.clone())),
            Ok(found) if found.placements.is_empty() => Err(no_placement(self.why_infeasible(
                built,
                &found.strategy,
                ctx,
            ))),
            Ok(found) => match evaluate(built, &found.placements) {
                Ok(metrics) => Ok(Solution {
                    metrics: Some(metrics),
                    ..(**found).clone()
                }),
                Err(_) => return Asked::Outdated,
            },
        };
        self.solved(solution, *seconds, remark.clone())
    }

    fn solved(
        &self,
        solution: Result<Solution, Refusal>,
        seconds: f64,
        remark: Option<Remark>,
    ) -> Asked {
        let solve = Solve {
            strategy: self.question.spec.strategy.name.clone(),
            seconds,
            gap: solution.as_ref().ok().and_then(|s| s.certificate.gap),
            fell_back: remark.as_ref().is_some_and(|r| r.fell_back),
        };
        Asked::Solved(Box::new(Solved {
            solution,
            remark,
            solve,
        }))
    }

    fn pinned_to_nobody(&self) -> Option<Refusal> {
        let pins = &self.question.spec.constraints.pins;
        let known = &self.snapshot.compute_nodes;
        let pin = pins.iter().find(|p| !known.contains_key(&p.node))?;
        let message = format!(
            "blocks {}..{} are pinned to {}, which runs no agent",
            pin.first, pin.last, pin.node
        );
        Some((reasons::NO_FEASIBLE_PLACEMENT, message))
    }

    fn solve(
        &self,
        built: &Problem,
        strategy: &dyn Strategy,
        ctx: &Ctx,
    ) -> Result<Solution, Refusal> {
        let solution = solve_checked(built, strategy, &SolveOptions::default(), ctx);
        let solution = solution.map_err(|e| match e {
            SolveError::UnknownStrategy { .. } | SolveError::Parameter { .. } => {
                (reasons::INVALID_SPEC, e.to_string())
            }
            other => (reasons::NO_FEASIBLE_PLACEMENT, other.to_string()),
        })?;
        if solution.placements.is_empty() {
            let why = self.why_infeasible(built, &solution.strategy, ctx);
            return Err((reasons::NO_FEASIBLE_PLACEMENT, why));
        }
        Ok(solution)
    }

    /// Another strategy may find what this one does not.
    fn why_infeasible(&self, built: &Problem, strategy: &str, ctx: &Ctx) -> String {
        let why = why_infeasible(built, &ctx.part(0.5)).join("; ");
        match strategy {
            "optimal" => why,
            name => format!("strategy {name} found no placement: {why}"),
        }
    }

    /// What serves was found in the place of the plugin that answers now.
    pub(super) fn is_back(&self, solution: &Solution) -> Option<Must> {
        let current = self.current?;
        let wanted = &self.question.spec.strategy.name;
        let differs = self.segments(solution)? != current.segments;
        let is_back = solution.strategy == *wanted && current.strategy != *wanted && differs;
        is_back.then(|| Must::Leave(format!("strategy {} → {wanted}", current.strategy)))
    }
}

/// Remembers what is wrong with a plugin. The same fault is told once, and its text
/// stays though its numbers change.
pub(super) fn remark(own: &mut PlacementMemory, remark: Option<Remark>) -> Option<PlanNotice> {
    let fault = |r: &Remark| (r.kind, r.fell_back);
    if own.remark.as_ref().map(fault) == remark.as_ref().map(fault) {
        return None;
    }
    own.remark = remark;
    let told = own.remark.as_ref().filter(|r| r.fell_back)?;
    Some(PlanNotice {
        warning: true,
        reason: reasons::STRATEGY_FELL_BACK,
        action: "Solve",
        note: told.text.clone(),
    })
}

#[cfg(test)]
mod tests;
