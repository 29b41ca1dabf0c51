//! `plan`: from a question to a report.

use crate::compare::{Comparison, Limits, compare, proved_infeasible, verdict};
use crate::mistake::{Mistake, Mistakes};
use crate::question::{Question, Refusal};
use crate::report::{
    API_VERSION, Asked, Change, LinkRegion, LinkRegions, Outcome, Report, Row, Sent, WhatIf,
};
use crate::what_if;
use lamina_model::WireType;
use lamina_placement::explain::{explain, why_infeasible};
use lamina_placement::regions::{Line, Regions, regions};
use lamina_placement::{Ctx, Placement, Problem, SolveOptions, validate};
use std::ops::RangeInclusive;

/// Bandwidths considered by `--regions`, as factors of the current one.
const FACTORS: RangeInclusive<f64> = 0.01..=100.0;

/// Results wanted besides the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Explain the best placement.
    pub explain: bool,
    /// Changes to make together.
    pub what_if: Vec<String>,
    /// The link whose bandwidth is swept.
    pub regions: Option<String>,
}

/// Asks all strategies and computes the other wanted results. `watch` is called for
/// each step. If `ctx` is cancelled, the report has what was found.
///
/// # Errors
/// Invalid keys in `extras`; nothing was solved then.
pub fn plan(
    question: &Question,
    extras: &Extras,
    ctx: &Ctx,
    watch: &mut dyn FnMut(&str),
) -> Result<Report, Refusal> {
    let problem = &question.problem;
    let limits = Limits {
        each: question.deadline,
        seed: question.seed,
        ctx: ctx.clone(),
    };
    let changed = changed(problem, &extras.what_if)?;
    let link = match &extras.regions {
        Some(key) => {
            Some(what_if::link_of(problem, key).map_err(|e| refuse("--regions", key, &e))?)
        }
        None => None,
    };
    let Comparison { rows, mut skipped } = compare(problem, &question.strategies, &limits, watch);
    for (field, name) in question.names {
        for skipped in &mut skipped {
            skipped.reason = skipped.reason.replace(field, name);
        }
    }
    let outcome = outcome(&rows);
    let mut report = Report {
        api_version: API_VERSION,
        question: Asked::of(problem),
        outcome,
        verdict: verdict(problem, &rows),
        crossings: sent(question, &rows),
        reasons: reasons(problem, outcome, &limits),
        strategies: rows,
        skipped,
        explanation: None,
        what_if: None,
        regions: None,
        cancelled: false,
    };
    if extras.explain
        && let Some(best) = report.strategies.first()
    {
        watch("the explanation");
        let ctx = ctx.within(limits.each);
        report.explanation = explain(problem, &best.solution, &ctx);
    }
    if let Some((world, changes)) = changed {
        report.what_if = Some(other_world(
            question, &report, &world, changes, &limits, watch,
        ));
    }
    if let Some((a, b)) = link {
        watch("the regions");
        report.regions = Some(by_bandwidth(problem, &a, &b, &limits));
    }
    report.cancelled = ctx.expired();
    Ok(report)
}

fn outcome(rows: &[Row]) -> Outcome {
    if rows.iter().any(|r| r.objective().is_some()) {
        Outcome::Found
    } else if proved_infeasible(rows) {
        Outcome::Infeasible
    } else {
        Outcome::Unknown
    }
}

/// The crossings on the best path of `rows`.
fn sent(question: &Question, rows: &[Row]) -> Vec<Sent> {
    let (Some(best), [workload]) = (rows.first(), question.problem.workloads.as_slice()) else {
        return Vec::new();
    };
    let mut at = workload.entry.as_str();
    let mut found = Vec::new();
    for segment in best.solution.placements.iter().flat_map(|p| &p.segments) {
        let first = segment.blocks.first();
        let crossing = first.and_then(|b| question.crossings.get(*b));
        if let Some(crossing) = crossing.filter(|_| segment.node != at) {
            found.push(Sent {
                from: at.to_owned(),
                to: segment.node.clone(),
                dtype: crossing.dtype.map(WireType::as_str),
                error: crossing.error,
                bytes: crossing.bytes,
                raw_bytes: crossing.raw_bytes,
                reason: crossing.reason.clone(),
            });
        }
        at = &segment.node;
    }
    found
}

fn reasons(problem: &Problem, outcome: Outcome, limits: &Limits) -> Vec<String> {
    match outcome {
        Outcome::Found => Vec::new(),
        _ => why_infeasible(problem, &limits.ctx.within(limits.each)),
    }
}

fn refuse(option: &str, value: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal(vec![Mistakes {
        place: "the options".to_owned(),
        found: vec![Mistake {
            line: None,
            field: format!("{option} {value}"),
            reason: error.to_string(),
        }],
    }])
}

/// The problem with all changes made; `None` if there are none.
fn changed(problem: &Problem, keys: &[String]) -> Result<Option<(Problem, Vec<Change>)>, Refusal> {
    if keys.is_empty() {
        return Ok(None);
    }
    let mut world = problem.clone();
    let mut changes = Vec::new();
    for key in keys {
        let change = what_if::apply(&mut world, key);
        changes.push(change.map_err(|e| refuse("--what-if", key, &e))?);
    }
    validate(&world).map_err(|e| refuse("--what-if", &keys.join(" "), &e))?;
    Ok(Some((world, changes)))
}

fn other_world(
    question: &Question,
    report: &Report,
    world: &Problem,
    changes: Vec<Change>,
    limits: &Limits,
    watch: &mut dyn FnMut(&str),
) -> WhatIf {
    let mut watch_changed = |name: &str| watch(&format!("{name} after the change"));
    let after = compare(world, &question.strategies, limits, &mut watch_changed);
    let reasons = reasons(world, outcome(&after.rows), limits);
    what_if::beside(world, changes, &report.strategies, &after.rows, reasons)
}

fn by_bandwidth(problem: &Problem, a: &str, b: &str, limits: &Limits) -> LinkRegions {
    let both = [(a.to_owned(), b.to_owned()), (b.to_owned(), a.to_owned())];
    let options = SolveOptions {
        seed: limits.seed,
        ..SolveOptions::default()
    };
    let ctx = limits.ctx.within(limits.each);
    let now = problem.link(a, b).map_or(0.0, |l| l.bytes_per_second);
    let mut swept = LinkRegions {
        link: format!("{a}:{b}"),
        bytes_per_second: now,
        regions: Vec::new(),
        why_not: None,
    };
    match regions(problem, &both, FACTORS, &options, &ctx) {
        Ok(found) => swept.regions = in_bytes(&found, now),
        Err(error) => swept.why_not = Some(error.to_string()),
    }
    swept
}

fn in_bytes(found: &Regions, now: f64) -> Vec<LinkRegion> {
    let paths = |l: &Line| l.placements.iter().map(Placement::path).collect();
    let of = |r: &lamina_placement::regions::Region| {
        let line = r.line.and_then(|at| found.lines.get(at));
        LinkRegion {
            from_bytes_per_second: r.from_factor * now,
            to_bytes_per_second: r.to_factor * now,
            paths: line.map(paths).unwrap_or_default(),
            seconds: line.map(|l| [l.seconds(r.from_factor), l.seconds(r.to_factor)]),
        }
    };
    found.regions.iter().map(of).collect()
}
