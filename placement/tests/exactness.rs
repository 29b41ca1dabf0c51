//! Every answer of the exact strategies against trying everything.

mod nasty;

use lamina_placement::check::evaluate;
use lamina_placement::{
    Ctx, Parameters, Placement, Previous, Problem, Solution, SolveError, SolveOptions, Status,
    Workload, solve_checked, strategy, validate,
};
use nasty::{FEATURES, problem, segments};
use proptest::prelude::*;

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()) + 1e-12
}

fn solve(problem: &Problem, name: &str) -> Result<Solution, TestCaseError> {
    let wrong = |e: SolveError| TestCaseError::fail(format!("{name}: {e}"));
    let strategy = strategy(name, &Parameters::new()).map_err(wrong)?;
    solve_checked(
        problem,
        strategy.as_ref(),
        &SolveOptions::default(),
        &Ctx::unlimited(),
    )
    .map_err(wrong)
}

/// The objective of the best placement there is, by trying all of them.
fn brute_force(problem: &Problem) -> Option<f64> {
    let per_workload: Vec<Vec<Placement>> =
        problem.workloads.iter().map(|w| all(problem, w)).collect();
    let mut best: Option<f64> = None;
    let mut chosen: Vec<usize> = vec![0; per_workload.len()];
    loop {
        let placements: Vec<Placement> = chosen
            .iter()
            .zip(&per_workload)
            .map(|(c, all)| all[*c].clone())
            .collect();
        if let Ok(metrics) = evaluate(problem, &placements) {
            best = Some(best.map_or(metrics.objective, |b| b.min(metrics.objective)));
        }
        let mut w = 0;
        loop {
            if w == chosen.len() {
                return best;
            }
            chosen[w] += 1;
            if chosen[w] < per_workload[w].len() {
                break;
            }
            chosen[w] = 0;
            w += 1;
        }
    }
}

fn all(problem: &Problem, workload: &Workload) -> Vec<Placement> {
    let (n, l) = (problem.nodes.len(), workload.blocks.len());
    let mut thresholds: Vec<Vec<f64>> = vec![Vec::new()];
    for exit in &workload.exits {
        thresholds = thresholds
            .iter()
            .flat_map(|t| {
                exit.table.iter().map(|row| {
                    let mut with = t.clone();
                    with.push(row.threshold);
                    with
                })
            })
            .collect();
    }
    let mut placements = Vec::new();
    for code in 0..n.pow(l as u32) {
        let path: Vec<String> = (0..l)
            .map(|b| problem.nodes[code / n.pow(b as u32) % n].name.clone())
            .collect();
        for t in &thresholds {
            placements.push(Placement {
                workload: workload.name.clone(),
                segments: segments(&path),
                thresholds: t.clone(),
            });
        }
    }
    placements
}

/// Value, bound and verdict of `name` are those of `best`.
fn agrees(problem: &Problem, name: &str, best: Option<f64>) -> Result<Solution, TestCaseError> {
    let solution = solve(problem, name)?;
    match (best, &solution.metrics) {
        (None, None) => {
            prop_assert_eq!(solution.certificate.status, Status::Infeasible);
        }
        (Some(best), Some(metrics)) => {
            let value = metrics.objective;
            prop_assert!(
                close(value, best),
                "{} found {}, best is {}",
                name,
                value,
                best
            );
            prop_assert_eq!(solution.certificate.status, Status::Optimal);
            let bound = solution.certificate.lower_bound.unwrap_or(-1.0);
            prop_assert!(
                close(bound, best),
                "{} bound {}, best is {}",
                name,
                bound,
                best
            );
        }
        (best, found) => {
            return Err(TestCaseError::fail(format!(
                "{name} found {:?} with {:?}, best is {best:?}",
                found.as_ref().map(|m| m.objective),
                solution.certificate,
            )));
        }
    }
    Ok(solution)
}

/// Placing again with the answer as what runs now gives the answer. (Where
/// something else ran before, its memory is free now: another world.)
fn is_fixpoint(problem: &Problem, solution: &Solution) -> Result<(), TestCaseError> {
    if problem.workloads.iter().any(|w| w.previous.is_some()) {
        return Ok(());
    }
    let mut again = problem.clone();
    for (workload, placement) in again.workloads.iter_mut().zip(&solution.placements) {
        workload.previous = Some(Previous {
            segments: placement.segments.clone(),
            move_seconds_per_byte: 0.0,
        });
    }
    let second = solve(&again, "optimal")?;
    for (a, b) in second.placements.iter().zip(&solution.placements) {
        prop_assert_eq!(&a.segments, &b.segments);
    }
    Ok(())
}

/// A problem that shows itself as JSON.
struct Case(Problem);

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(&self.0).unwrap_or_default())
    }
}

fn instance() -> impl Strategy<Value = Case> {
    // A quarter of the features at a time leaves most problems feasible.
    let mask = || 0u32..1 << FEATURES;
    (any::<u64>(), 1usize..=4, 1usize..=5, mask(), mask())
        .prop_map(|(seed, n, l, a, b)| Case(problem(seed, n, l, a & b)))
        .prop_filter("must be valid", |case| validate(&case.0).is_ok())
}

/// Ten thousand cases, or as many as the environment asks for.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let usual = ProptestConfig::default();
    ProptestConfig {
        cases: if asked { usual.cases } else { 10_000 },
        failure_persistence: None,
        max_global_rejects: 10_000_000,
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn optimal_agrees_with_trying_everything(Case(problem) in instance()) {
        let best = brute_force(&problem);
        let solution = agrees(&problem, "optimal", best)?;
        is_fixpoint(&problem, &solution)?;
    }

    #[test]
    fn milp_agrees_with_trying_everything(Case(problem) in instance()) {
        let best = brute_force(&problem);
        agrees(&problem, "milp", best)?;
    }
}
