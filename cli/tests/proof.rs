//! Answers that `plan` calls optimal or infeasible are, checked against all possible placements.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

#[path = "../../placement/tests/nasty/mod.rs"]
mod nasty;

use kubectl_lamina::plan::{Extras, plan};
use kubectl_lamina::question::Question;
use kubectl_lamina::report::{Outcome, Report};
use lamina_placement::check::evaluate;
use lamina_placement::{Ctx, Placement, Problem, Status, Workload, strategy_names, validate};
use proptest::prelude::*;
use std::time::Duration;

/// Tolerance between a search and the checker.
const AGREEMENT: f64 = 1e-6;

fn planned(problem: &Problem) -> Report {
    let question = Question {
        crossings: Vec::new(),
        problem: problem.clone(),
        strategies: strategy_names().into_iter().map(str::to_owned).collect(),
        deadline: Duration::from_secs(3600),
        seed: 1,
        names: &[],
    };
    plan(
        &question,
        &Extras::default(),
        &Ctx::unlimited(),
        &mut |_| {},
    )
    .unwrap()
}

/// Every placement of one workload, with every choice of thresholds.
fn placements(problem: &Problem, workload: &Workload) -> Vec<Placement> {
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    for _ in &workload.blocks {
        paths = paths
            .iter()
            .flat_map(|path| {
                problem.nodes.iter().map(move |node| {
                    let mut longer = path.clone();
                    longer.push(node.name.clone());
                    longer
                })
            })
            .collect();
    }
    let mut thresholds: Vec<Vec<f64>> = vec![Vec::new()];
    for exit in &workload.exits {
        thresholds = thresholds
            .iter()
            .flat_map(|chosen| {
                exit.table.iter().map(move |row| {
                    let mut longer = chosen.clone();
                    longer.push(row.threshold);
                    longer
                })
            })
            .collect();
    }
    let of = |path: &Vec<String>| {
        let segments = nasty::segments(path);
        let with = |chosen: &Vec<f64>| Placement {
            workload: workload.name.clone(),
            segments: segments.clone(),
            thresholds: chosen.clone(),
        };
        thresholds.iter().map(with).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

/// The smallest objective of all placements.
fn least(problem: &Problem) -> Option<f64> {
    let mut all: Vec<Vec<Placement>> = vec![Vec::new()];
    for workload in &problem.workloads {
        let own = placements(problem, workload);
        all = all
            .iter()
            .flat_map(|before| {
                own.iter().map(move |p| {
                    let mut together = before.clone();
                    together.push(p.clone());
                    together
                })
            })
            .collect();
    }
    let values = all.iter().filter_map(|p| evaluate(problem, p).ok());
    values.map(|m| m.objective).min_by(f64::total_cmp)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    // Ranked objectives (the last feature) may give up a share of the first.
    #[test]
    fn an_optimal_answer_is_the_best_by_the_checker(
        seed in any::<u64>(),
        features in 0u32..1 << (nasty::FEATURES - 1),
    ) {
        let problem = nasty::problem(seed, 3, 4, features);
        prop_assume!(validate(&problem).is_ok());
        let report = planned(&problem);
        let least = least(&problem);
        for row in &report.strategies {
            let certificate = row.solution.certificate;
            match (certificate.status, least) {
                (Status::Optimal, Some(least)) => {
                    let value = evaluate(&problem, &row.solution.placements).unwrap().objective;
                    prop_assert_eq!(Some(value), row.objective());
                    let room = AGREEMENT * least.abs() + 1e-12;
                    prop_assert!((value - least).abs() <= room, "{:?}: {} {}", row, value, least);
                }
                (Status::Optimal, None) => prop_assert!(false, "{:?}", row),
                (Status::Infeasible, _) => prop_assert!(least.is_none(), "{:?}", row),
                (Status::Feasible | Status::Unknown, _) => {}
            }
            if let (Some(bound), Some(least)) = (certificate.lower_bound, least) {
                prop_assert!(bound <= least * (1.0 + AGREEMENT) + 1e-12, "{:?}", row);
            }
        }
        prop_assert_eq!(report.outcome == Outcome::Found, least.is_some());
    }
}
