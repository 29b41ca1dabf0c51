//! Choices of exit thresholds: every combination that keeps the accuracy.

use crate::dense::Rows;
use crate::problem::{Problem, Workload};
use crate::strategy::SolveError;
use crate::validate::MAX_THRESHOLD_COMBINATIONS;

/// Tolerance for rounding in accuracies; less than the checker's.
const SLACK: f64 = 5e-10;

/// One row per exit and workload, in every combination that is accurate enough.
/// Empty if there is none, which proves that nothing is feasible.
///
/// # Errors
/// Too many combinations over all workloads.
pub(crate) fn choices(problem: &Problem, strategy: &str) -> Result<Vec<Vec<Rows>>, SolveError> {
    let mut all: Vec<Vec<Rows>> = vec![Vec::new()];
    for workload in &problem.workloads {
        let rows = of_workload(workload);
        if all.len().saturating_mul(rows.len()) > MAX_THRESHOLD_COMBINATIONS {
            return Err(SolveError::NotApplicable {
                strategy: strategy.to_owned(),
                reason: format!(
                    "more than {MAX_THRESHOLD_COMBINATIONS} combinations of thresholds over all workloads"
                ),
            });
        }
        all = all
            .into_iter()
            .flat_map(|before| {
                rows.iter().map(move |r| {
                    let mut with = before.clone();
                    with.push(r.clone());
                    with
                })
            })
            .collect();
    }
    Ok(all)
}

/// Every choice of thresholds; `None` if there are too many.
pub(crate) fn threshold_choices(problem: &Problem) -> Option<Vec<Vec<Rows>>> {
    choices(problem, "").ok()
}

fn of_workload(workload: &Workload) -> Vec<Rows> {
    let mut all: Vec<Rows> = vec![Vec::new()];
    for exit in &workload.exits {
        all = all
            .into_iter()
            .flat_map(|before| {
                (0..exit.table.len()).map(move |row| {
                    let mut with = before.clone();
                    with.push(row);
                    with
                })
            })
            .collect();
    }
    let Some(floor) = workload.constraints.min_accuracy else {
        return all;
    };
    all.retain(|rows| accuracy(workload, rows) >= floor - SLACK);
    all
}

/// Expected accuracy under a choice of rows; unknown final accuracy counts as 0.
pub(super) fn accuracy(workload: &Workload, rows: &Rows) -> f64 {
    let (mut left, mut sum) = (1.0, 0.0);
    for (exit, row) in workload.exits.iter().zip(rows) {
        let row = exit.table[*row];
        sum += left * row.rate * row.accuracy;
        left *= 1.0 - row.rate;
    }
    sum + left * workload.final_accuracy.unwrap_or_default()
}
