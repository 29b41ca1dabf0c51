//! Puts a question to a strategy and judges its answer. Pure except for the deadline; `super::desk`
//! decides where and when it runs.

use super::judge::standing;
use super::problem;
use crate::state::decision::{Question, Supposed};
use crate::state::snapshot::{Ahead, Answer, Remark};
use crate::state::wish::Choice;
use lamina_crds::reasons;
use lamina_placement::explain::why_infeasible;
use lamina_placement::{
    Ctx, Problem, Solution, SolveError, SolveOptions, Status, Strategy, solve_checked, strategy,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Why there is nothing to place: a reason and its message.
type Refusal = (&'static str, String);

/// The answer of a built-in strategy.
pub(crate) fn solve(question: &Question, ctx: &Ctx) -> Answer {
    let problem = problem::build(question);
    let began = Instant::now();
    let solution = pinned_to_nobody(question)
        .map_or_else(|| built_in(&question.wish.strategy, &problem, ctx), Err);
    let seconds = began.elapsed().as_secs_f64();
    judged(question, Arc::new(problem), solution, seconds, None, ctx)
}

/// The blocks that hosts would lack in each of the question's scenarios. Scenarios without a
/// solution in time are skipped.
pub(crate) fn ahead(question: &Question, ctx: &Ctx) -> Ahead {
    let mut lacking = Ahead::new();
    for (done, supposed) in question.supposed.iter().enumerate() {
        let left = question.supposed.len() - done;
        let one = Question {
            supposed: vec![supposed.clone()],
            // If requests wait for blocks, blocks that hosts already have count for more.
            is_urgent: matches!(supposed, Supposed::Lost(_)),
            ..question.clone()
        };
        let problem = problem::build(&one);
        let ctx = ctx.part(1.0 / left as f64);
        let Ok(solution) = built_in(&one.wish.strategy, &problem, &ctx) else {
            continue;
        };
        for segment in solution.placements.iter().flat_map(|p| &p.segments) {
            let runs = running_on(question, &segment.node);
            let blocks = segment.blocks.iter().filter(|b| !runs.contains(b));
            let mut blocks = blocks.copied().peekable();
            if blocks.peek().is_some() {
                lacking
                    .entry(segment.node.clone())
                    .or_default()
                    .extend(blocks);
            }
        }
    }
    lacking
}

/// The blocks that the present plan has on `node`.
fn running_on(question: &Question, node: &str) -> BTreeSet<usize> {
    let segments = question.current.iter().flat_map(|plan| &plan.segments);
    segments
        .filter(|s| s.host.node == node)
        .flat_map(|s| problem::block_indices(s, &question.manifest))
        .collect()
}

/// Judges an answer; that of a plugin was checked by its host already.
pub(crate) fn judged(
    question: &Question,
    problem: Arc<Problem>,
    solution: Result<Solution, Refusal>,
    seconds: f64,
    remark: Option<Remark>,
    ctx: &Ctx,
) -> Answer {
    let solution = solution.and_then(|found| {
        if found.placements.is_empty() {
            let why = why_nothing(&problem, &found, ctx);
            return Err((reasons::NO_FEASIBLE_PLACEMENT, why));
        }
        Ok(Arc::new(found))
    });
    let current = question.current.as_ref();
    let same_model = current.filter(|plan| plan.manifest == question.digest);
    Answer {
        seconds,
        standing: same_model.map(|plan| standing(&problem, plan)),
        problem,
        solution,
        remark,
    }
}

fn built_in(choice: &Choice, problem: &Problem, ctx: &Ctx) -> Result<Solution, Refusal> {
    let known = |e: SolveError| match e {
        SolveError::UnknownStrategy { .. } | SolveError::Parameter { .. } => {
            (reasons::INVALID_SPEC, e.to_string())
        }
        other => (reasons::NO_FEASIBLE_PLACEMENT, other.to_string()),
    };
    let by: Box<dyn Strategy> = strategy(&choice.name, &choice.parameters).map_err(known)?;
    solve_checked(problem, by.as_ref(), &SolveOptions::default(), ctx).map_err(known)
}

/// A pin to a host without an agent, which no strategy can satisfy.
pub(crate) fn pinned_to_nobody(question: &Question) -> Option<Refusal> {
    let mut pins = question.wish.pins.iter();
    let pin = pins.find(|p| question.cluster.host(&p.node).is_none())?;
    let message = format!(
        "blocks {}..{} are pinned to {}, which runs no agent",
        pin.first, pin.last, pin.node
    );
    Some((reasons::NO_FEASIBLE_PLACEMENT, message))
}

/// Another strategy may find a placement where this one does not, and so may this one with more
/// time.
fn why_nothing(problem: &Problem, found: &Solution, ctx: &Ctx) -> String {
    let strategy = found.strategy.as_str();
    if found.certificate.status == Status::Unknown && ctx.expired() {
        return format!(
            "strategy {strategy} found no placement within its time, nor that there is none; it is asked again"
        );
    }
    let why = why_infeasible(problem, &ctx.part(0.5)).join("; ");
    match strategy {
        "optimal" => why,
        name => format!("strategy {name} found no placement: {why}"),
    }
}

#[cfg(test)]
mod tests;
