//! Checks a strategy's claims about its answer.

use super::{Answer, Metrics, Placement, Problem, Segment, Status, Violation, evaluate};

/// Relative tolerance between a strategy's arithmetic and ours.
const AGREEMENT: f64 = 1e-6;
/// Most simple placements tried as witnesses against a claim.
const MAX_WITNESSES: usize = 64;

/// Checks placement, objective, bound and status of an answer. Returns the
/// checker's metrics, `None` if the answer has no placement.
///
/// # Errors
/// Everything that is wrong with it.
pub fn check_answer(problem: &Problem, answer: &Answer) -> Result<Option<Metrics>, Vec<Violation>> {
    let status = answer.certificate.status;
    if answer.placements.is_empty() {
        return match status {
            Status::Optimal | Status::Feasible => Err(vec![claim(format!(
                "status {status:?} without a placement"
            ))]),
            Status::Infeasible => no_witness(problem).map(|()| None),
            Status::Unknown => Ok(None),
        };
    }
    let metrics = evaluate(problem, &answer.placements)?;
    let mut wrong = Vec::new();
    if matches!(status, Status::Infeasible | Status::Unknown) {
        wrong.push(claim(format!("status {status:?} with a placement")));
    }
    let value = metrics.objective;
    match answer.objective {
        Some(claimed) if close(claimed, value) => {}
        claimed => wrong.push(claim(format!("objective {claimed:?}, it is {value}"))),
    }
    let bound = answer.certificate.lower_bound;
    if let Some(bound) = bound {
        let limit = best_witness(problem).map_or(value, |w| w.min(value));
        if bound.is_nan() || bound > limit && !close(bound, limit) {
            wrong.push(claim(format!(
                "lower bound {bound}, but {limit} can be had"
            )));
        }
    }
    // Of ranked criteria, the first may give up its tolerance to the others.
    let given_up = problem
        .objective
        .ranks()
        .first()
        .map_or(0.0, |r| r.tolerance);
    let reached = |b: f64| close(b, value) || value <= b * (1.0 + given_up) * (1.0 + AGREEMENT);
    if status == Status::Optimal && !bound.is_some_and(reached) {
        wrong.push(claim(format!(
            "optimal with objective {value} and lower bound {bound:?}"
        )));
    }
    if wrong.is_empty() {
        Ok(Some(metrics))
    } else {
        Err(wrong)
    }
}

fn claim(text: String) -> Violation {
    Violation::Claim(text)
}

fn close(a: f64, b: f64) -> bool {
    // Relative to infinity everything would be close.
    a.is_finite() && b.is_finite() && (a - b).abs() <= AGREEMENT * a.abs().max(b.abs()) + 1e-12
}

fn no_witness(problem: &Problem) -> Result<(), Vec<Violation>> {
    match best_witness(problem) {
        Some(value) => Err(vec![claim(format!(
            "infeasible, but a placement with objective {value} can be had"
        ))]),
        None => Ok(()),
    }
}

/// Objective of the best placement that needs no search: the current one, and for a single workload
/// the whole model on one node.
fn best_witness(problem: &Problem) -> Option<f64> {
    let thresholds: Vec<Vec<f64>> = problem
        .workloads
        .iter()
        .map(|w| {
            let first = |e: &crate::Exit| e.table.first().map_or(0.0, |r| r.threshold);
            w.exits.iter().map(first).collect()
        })
        .collect();
    let current: Option<Vec<Placement>> = problem
        .workloads
        .iter()
        .zip(&thresholds)
        .map(|(w, t)| {
            Some(Placement {
                workload: w.name.clone(),
                segments: w.previous.as_ref()?.segments.clone(),
                thresholds: t.clone(),
            })
        })
        .collect();
    let mut tries: Vec<Vec<Placement>> = current.into_iter().collect();
    if let [only] = problem.workloads.as_slice() {
        for node in problem.nodes.iter().take(MAX_WITNESSES) {
            tries.push(vec![Placement {
                workload: only.name.clone(),
                segments: vec![Segment {
                    node: node.name.clone(),
                    blocks: (0..only.blocks.len()).collect(),
                }],
                thresholds: thresholds[0].clone(),
            }]);
        }
    }
    tries
        .iter()
        .filter_map(|t| evaluate(problem, t).ok())
        .map(|m| m.objective)
        .min_by(f64::total_cmp)
}
