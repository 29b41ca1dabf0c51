//! `edgent`: right-sizing by exit under a deadline (Li et al., "Edge AI: On-demand accelerating
//! deep neural network inference via edge computing", IEEE TWC 2020). Of the choices of thresholds,
//! the most accurate for which some split between the entry and an edge host meets the deadline; of
//! equally accurate ones, the best by the objective.

use super::parameters::no_parameters;
use super::rows;
use super::turns::{Effort, choices_with_exits, feasible, in_turn, not_applicable};
use crate::dense::Rows;
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Tier;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

#[derive(Debug)]
struct Edgent;

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    no_parameters("edgent", parameters)?;
    Ok(Box::new(Edgent))
}

impl Strategy for Edgent {
    fn name(&self) -> &str {
        "edgent"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let late = |w: &&crate::Workload| w.constraints.latency_limit_seconds.is_none();
        if let Some(workload) = problem.workloads.iter().find(late) {
            let reason = format!(
                "workload `{}` has no deadline; set constraints.latencyLimitSeconds",
                workload.name
            );
            return Err(not_applicable(self.name(), reason));
        }
        if !problem.nodes.iter().any(|n| n.tier == Tier::Edge) {
            return Err(not_applicable(self.name(), "no node is of tier edge"));
        }
        let choices = choices_with_exits(problem, self.name())?;
        let accuracy = |rows: &Vec<Rows>| -> f64 {
            let each = problem.workloads.iter().zip(rows);
            each.map(|(w, rows)| rows::accuracy(w, rows)).sum()
        };
        let mut by_accuracy: Vec<(f64, Vec<Rows>)> = choices
            .into_iter()
            .map(|rows| (accuracy(&rows), rows))
            .collect();
        by_accuracy.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut effort = Effort::new(options, ctx);
        for alike in by_accuracy.chunk_by(|a, b| a.0 - b.0 <= 1e-9) {
            let rows: Vec<Vec<Rows>> = alike.iter().map(|(_, rows)| rows.clone()).collect();
            let answer = in_turn(problem, &rows, "splits", &mut effort, |turn, effort| {
                let hosts = turn.others(|n| n.tier == Tier::Edge);
                turn.best_split(&hosts, 0..=turn.chain().l, effort)
            });
            if !answer.placements.is_empty() || effort.is_over() {
                return Ok(answer);
            }
        }
        Ok(feasible(None, effort.stats("splits", problem)))
    }
}
