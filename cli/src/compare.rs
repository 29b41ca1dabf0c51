//! Asks every strategy, and compares the best answer with the best one that does not split.

use crate::report::{NotWhole, Row, Skipped, Verdict, Whole};
use lamina_placement::check::evaluate;
use lamina_placement::{
    Block, Ctx, Parameters, Placement, Problem, Segment, SolveError, SolveOptions, Status,
    Workload, solve_checked, strategy,
};
use std::time::{Duration, Instant};

/// Relative differences below this rank as equal.
const SAME: f64 = 1e-9;

/// The limits of strategies.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Time of each strategy.
    pub each: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// Has the handle for cancellation.
    pub ctx: Ctx,
}

/// The answers of all strategies, the best first, and those without one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Comparison {
    /// Answers.
    pub rows: Vec<Row>,
    /// The others.
    pub skipped: Vec<Skipped>,
}

/// Asks the strategies one after the other. `watch` is called before each.
pub(crate) fn compare(
    problem: &Problem,
    strategies: &[String],
    limits: &Limits,
    watch: &mut dyn FnMut(&str),
) -> Comparison {
    let mut comparison = Comparison::default();
    for name in strategies {
        if limits.ctx.expired() {
            comparison.skipped.push(Skipped {
                strategy: name.clone(),
                reason: "cancelled".to_owned(),
            });
            continue;
        }
        watch(name);
        let start = Instant::now();
        match ask(problem, name, limits) {
            Ok(solution) => {
                let row = Row::new(solution, start.elapsed().as_secs_f64());
                comparison.rows.push(row);
            }
            Err(error) => comparison.skipped.push(Skipped {
                strategy: name.clone(),
                reason: reason(error),
            }),
        }
    }
    rank(&mut comparison.rows);
    comparison
}

fn ask(
    problem: &Problem,
    name: &str,
    limits: &Limits,
) -> Result<lamina_placement::Solution, SolveError> {
    let strategy = strategy(name, &Parameters::new())?;
    let options = SolveOptions {
        seed: limits.seed,
        // The work limit is the operator's, which also limits the memory.
        ..SolveOptions::default()
    };
    let ctx = limits.ctx.within(limits.each);
    solve_checked(problem, strategy.as_ref(), &options, &ctx)
}

/// Without the strategy's name, which precedes it.
fn reason(error: SolveError) -> String {
    match error {
        SolveError::NotApplicable { reason, .. } | SolveError::Parameter { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// The best objective first; among equals a proof, then the order asked. Those
/// without a placement come last.
fn rank(rows: &mut [Row]) {
    let best = rows
        .iter()
        .filter_map(Row::objective)
        .min_by(f64::total_cmp);
    let scale = best.unwrap_or(0.0).abs().max(f64::MIN_POSITIVE);
    let key = |row: &Row| {
        let steps = row.objective().map(|o| (o / scale / SAME).round());
        (steps.unwrap_or(f64::INFINITY), !row.is_optimal())
    };
    rows.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
    });
}

/// Whether any strategy proved that there is no placement.
pub(crate) fn proved_infeasible(rows: &[Row]) -> bool {
    rows.iter()
        .any(|r| r.solution.certificate.status == Status::Infeasible)
}

/// The best answer and the best unsplit one; `None` without a placement.
pub(crate) fn verdict(problem: &Problem, rows: &[Row]) -> Option<Verdict> {
    let best = rows.first()?;
    let objective = best.objective()?;
    let placements = &best.solution.placements;
    let segments: Vec<Segment> = placements.iter().flat_map(|p| p.segments.clone()).collect();
    let (whole, why_not_whole) = match problem.workloads.as_slice() {
        [only] => match whole(problem, only) {
            Ok(whole) => (Some(whole), None),
            Err(why) => (None, why),
        },
        _ => (None, None),
    };
    let gain = |w: &Whole| (objective > 0.0).then(|| w.objective / objective);
    Some(Verdict {
        strategy: best.solution.strategy.clone(),
        nodes: nodes_of(&segments),
        split: placements.iter().any(|p| nodes_of(&p.segments).len() > 1),
        proved: best.is_optimal(),
        gain: whole.as_ref().and_then(gain),
        whole,
        why_not_whole,
    })
}

/// The nodes of segments, each once, in the order in which a request meets them.
pub(crate) fn nodes_of(segments: &[Segment]) -> Vec<String> {
    let mut nodes: Vec<String> = Vec::new();
    for segment in segments {
        if !nodes.contains(&segment.node) {
            nodes.push(segment.node.clone());
        }
    }
    nodes
}

/// The best node for the whole model, or the obstacle on the node closest to taking it: with the
/// fewest violations, and the fastest of those.
fn whole(problem: &Problem, workload: &Workload) -> Result<Whole, Option<NotWhole>> {
    let choices = threshold_choices(workload);
    let mut best: Option<Whole> = None;
    let mut nearest: Option<(usize, f64, NotWhole)> = None;
    for node in &problem.nodes {
        for thresholds in &choices {
            let placement = Placement {
                workload: workload.name.clone(),
                segments: vec![Segment {
                    node: node.name.clone(),
                    blocks: (0..workload.blocks.len()).collect(),
                }],
                thresholds: thresholds.clone(),
            };
            match evaluate(problem, &[placement]) {
                Ok(metrics)
                    if best
                        .as_ref()
                        .is_none_or(|b| metrics.objective < b.objective) =>
                {
                    best = Some(Whole {
                        node: node.name.clone(),
                        objective: metrics.objective,
                    });
                }
                Ok(_) => {}
                Err(violations) => {
                    let (count, seconds) =
                        (violations.len(), compute_seconds(workload, &node.name));
                    let nearer = |(c, s, _): &(usize, f64, NotWhole)| (count, seconds) < (*c, *s);
                    if nearest.as_ref().is_none_or(nearer)
                        && let Some(first) = violations.first()
                    {
                        let not = NotWhole {
                            node: node.name.clone(),
                            reason: first.to_string(),
                        };
                        nearest = Some((count, seconds, not));
                    }
                }
            }
        }
    }
    best.ok_or_else(|| nearest.map(|(_, _, why)| why))
}

/// Seconds of all blocks on a node; infinite if it cannot run them all.
fn compute_seconds(workload: &Workload, node: &str) -> f64 {
    let seconds = |b: &Block| b.costs.get(node).map_or(f64::INFINITY, |c| c.seconds);
    workload.blocks.iter().map(seconds).sum()
}

/// Every combination of the exits' thresholds.
fn threshold_choices(workload: &Workload) -> Vec<Vec<f64>> {
    let mut choices = vec![Vec::new()];
    for exit in &workload.exits {
        choices = choices
            .iter()
            .flat_map(|chosen: &Vec<f64>| {
                exit.table.iter().map(move |row| {
                    let mut longer = chosen.clone();
                    longer.push(row.threshold);
                    longer
                })
            })
            .collect();
    }
    choices
}
