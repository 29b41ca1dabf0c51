//! Promises of every strategy and of the calling interface, for any problem.

mod nasty;

use lamina_placement::{
    Answer, Certificate, Ctx, Parameters, Placement, Previous, Problem, Segment, SolveError,
    SolveOptions, Stats, Status, Strategy, ValidProblem, solve_checked, strategy, strategy_names,
    validate,
};
use nasty::{Dice, FEATURES, problem};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Valid nasty problems.
fn problems(count: u64, n: usize, l: usize) -> impl Iterator<Item = Problem> {
    (0..count)
        .map(move |seed| {
            let mut dice = Dice(seed.wrapping_mul(77));
            let features = dice.roll(1 << FEATURES) & dice.roll(1 << FEATURES);
            problem(seed, n, l, features as u32)
        })
        .filter(|p| validate(p).is_ok())
}

fn named(name: &str) -> Result<Box<dyn Strategy>, SolveError> {
    strategy(name, &Parameters::new())
}

#[test]
fn the_order_of_nodes_does_not_change_the_cost() {
    let optimal = named("optimal").unwrap();
    let (options, ctx) = (SolveOptions::default(), Ctx::unlimited());
    let mut feasible = 0;
    for p in problems(400, 4, 5) {
        let mut turned = p.clone();
        turned.nodes.reverse();
        turned.nodes.rotate_left(1);
        let value = |p: &Problem| {
            let solution = solve_checked(p, optimal.as_ref(), &options, &ctx).unwrap();
            solution.metrics.map(|m| m.objective)
        };
        match (value(&p), value(&turned)) {
            (Some(a), Some(b)) => {
                assert!((a - b).abs() <= 1e-7 * a.abs() + 1e-12, "{a} {b}");
                feasible += 1;
            }
            (a, b) => assert_eq!(a, b),
        }
    }
    assert!(feasible > 100, "{feasible}");
}

#[test]
fn the_same_question_gets_the_same_answer() {
    let (options, ctx) = (SolveOptions::default(), Ctx::unlimited());
    for p in problems(40, 4, 5) {
        for name in strategy_names() {
            let solve = || {
                let chosen = named(name).unwrap();
                solve_checked(&p, chosen.as_ref(), &options, &ctx).ok()
            };
            assert_eq!(solve(), solve(), "{name}");
        }
    }
}

#[test]
fn no_strategy_beats_the_optimum_and_none_is_refuted() {
    let (options, ctx) = (SolveOptions::default(), Ctx::unlimited());
    for p in problems(300, 3, 4) {
        let best = solve_checked(&p, named("optimal").unwrap().as_ref(), &options, &ctx).unwrap();
        for name in strategy_names() {
            let chosen = named(name).unwrap();
            let other = match solve_checked(&p, chosen.as_ref(), &options, &ctx) {
                Ok(other) => other,
                Err(SolveError::NotApplicable { reason, .. }) => {
                    assert!(!reason.is_empty());
                    continue;
                }
                Err(e) => panic!("{name}: {e}"),
            };
            let Some(value) = other.metrics.map(|m| m.objective) else {
                continue;
            };
            // Of ranked criteria, the first may give up its tolerance to the others.
            let given_up = p.objective.ranks().first().map_or(0.0, |r| r.tolerance);
            let least = best.metrics.as_ref().map(|m| m.objective).unwrap() / (1.0 + given_up);
            assert!(value >= least - 1e-6 * least.abs() - 1e-12, "{name}");
        }
    }
}

/// More workloads than can be solved to proof, on nodes that hold little more than all of them.
fn crowded(seed: u64) -> Problem {
    const RATED: u32 = 1 << 4;
    let (nodes, workloads) = (7, 6);
    let mut p = problem(seed, nodes, 6, RATED);
    let first = p.workloads[0].clone();
    p.workloads = (0..workloads)
        .map(|k| {
            let mut workload = first.clone();
            workload.name = format!("w{k}");
            workload.entry = format!("n{}", k % nodes);
            workload.weight = 1.0 + k as f64 / 2.0;
            workload
        })
        .collect();
    let bytes: u64 = first.blocks.iter().map(|b| b.memory_bytes).sum();
    for node in &mut p.nodes {
        node.memory_bytes = bytes * workloads as u64 / nodes as u64 + 2;
    }
    p
}

#[test]
fn workloads_placed_together_stay_where_they_are_and_are_the_same_by_seed() {
    let options = SolveOptions {
        work_limit: Some(60_000),
        ..SolveOptions::default()
    };
    let optimal = named("optimal").unwrap();
    let solve = |p: &Problem| solve_checked(p, optimal.as_ref(), &options, &Ctx::unlimited());
    let mut found = 0;
    for p in (0..12).map(crowded).filter(|p| validate(p).is_ok()) {
        let first = solve(&p).unwrap();
        assert_eq!(first, solve(&p).unwrap());
        let Some(metrics) = &first.metrics else {
            continue;
        };
        found += 1;
        let bound = first.certificate.lower_bound.unwrap();
        assert!(bound <= metrics.objective * (1.0 + 1e-9), "{first:?}");
        let mut again = p.clone();
        for (workload, placement) in again.workloads.iter_mut().zip(&first.placements) {
            workload.previous = Some(Previous {
                segments: placement.segments.clone(),
                on_disk: Vec::new(),
                move_seconds_per_byte: 0.0,
            });
        }
        let second = solve(&again).unwrap();
        let value = second.metrics.unwrap().objective;
        assert!(value <= metrics.objective * (1.0 + 1e-9), "{value}");
        if first.certificate.status == Status::Optimal {
            assert_eq!(first.placements, second.placements);
        }
    }
    assert!(found > 5, "{found}");
}

/// Limits may cost the answer or its proof, but never make a claim wrong.
#[test]
fn whatever_is_claimed_under_limits_is_so() {
    let (full, free) = (SolveOptions::default(), Ctx::unlimited());
    let mut cut_short = 0;
    for p in problems(400, 4, 5) {
        let optimal = named("optimal").unwrap();
        let truth = solve_checked(&p, optimal.as_ref(), &full, &free).unwrap();
        let value = truth.metrics.as_ref().map(|m| m.objective);
        let over = Ctx::until(Instant::now());
        let limits = [(Some(0), &free), (Some(40), &free), (None, &over)];
        let names = strategy_names().into_iter();
        for (name, (limit, ctx)) in names.flat_map(|n| limits.map(|l| (n, l))) {
            let options = SolveOptions {
                work_limit: limit,
                ..full
            };
            let chosen = named(name).unwrap();
            let found = match solve_checked(&p, chosen.as_ref(), &options, ctx) {
                Ok(found) => found,
                Err(SolveError::NotApplicable { .. }) => continue,
                Err(e) => panic!("{name}: {e}"),
            };
            let close = |a: f64, b: f64| (a - b).abs() <= 2e-6 * a.abs().max(b.abs()) + 1e-12;
            match found.certificate.status {
                Status::Infeasible => assert_eq!(value, None, "{name}"),
                // For ranked criteria, proved means all of them, of which the first gave way.
                Status::Optimal if p.objective.ranks().len() > 1 => {}
                Status::Optimal => {
                    let found = found.metrics.map(|m| m.objective);
                    assert!(
                        value.zip(found).is_some_and(|(a, b)| close(a, b)),
                        "{name}: {found:?}, best is {value:?}"
                    );
                }
                Status::Feasible | Status::Unknown => {
                    cut_short += 1;
                    if let (Some(bound), Some(value)) = (found.certificate.lower_bound, value) {
                        assert!(bound <= value || close(bound, value), "{name}");
                    }
                }
            }
        }
    }
    assert!(cut_short > 100, "{cut_short}");
}

#[test]
fn a_deadline_holds_on_a_large_problem_and_a_cancel_is_heard() {
    let mut p = problem(3, 40, 30, 1 << 4);
    let capacity: u64 = p.workloads[0].blocks.iter().map(|b| b.memory_bytes).sum();
    for node in &mut p.nodes {
        node.memory_bytes = capacity / 12;
    }
    let options = SolveOptions {
        work_limit: None,
        ..SolveOptions::default()
    };
    for name in strategy_names() {
        let chosen = named(name).unwrap();
        let begin = Instant::now();
        let ctx = Ctx::until(begin + Duration::from_millis(300));
        let result = solve_checked(&p, chosen.as_ref(), &options, &ctx);
        assert!(answers_or_declines(&result), "{name}: {result:?}");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(3), "{name} took {took:?}");
        let ctx = Ctx::unlimited();
        ctx.cancel_handle().store(true, Ordering::Relaxed);
        let begin = Instant::now();
        let result = solve_checked(&p, chosen.as_ref(), &options, &ctx);
        assert!(answers_or_declines(&result), "{name}: {result:?}");
        assert!(begin.elapsed() < Duration::from_secs(3), "{name}");
    }
}

fn answers_or_declines(result: &Result<lamina_placement::Solution, SolveError>) -> bool {
    matches!(result, Ok(_) | Err(SolveError::NotApplicable { .. }))
}

/// Gives a fixed answer.
struct Fixed(Answer);

impl Strategy for Fixed {
    fn name(&self) -> &str {
        "fixed"
    }

    fn solve(
        &self,
        _problem: &ValidProblem<'_>,
        _options: &SolveOptions,
        _ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_strategy_that_lies_is_an_error_that_says_what_is_wrong() {
    let p = problem(1, 2, 3, 0);
    let honest = Placement {
        workload: "w0".into(),
        segments: vec![Segment {
            node: "n0".into(),
            blocks: vec![0, 1, 2],
        }],
        thresholds: Vec::new(),
    };
    let lie = Fixed(Answer {
        placements: vec![honest],
        objective: Some(0.001),
        certificate: Certificate::of(0.001, Some(0.001), 0.0),
        stats: Stats::default(),
    });
    let error = solve_checked(&p, &lie, &SolveOptions::default(), &Ctx::unlimited()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("strategy `fixed` gave a wrong answer") && text.contains("objective"),
        "{text}"
    );
}

#[test]
fn errors_name_what_would_be_right() {
    let text = |r: Result<Box<dyn Strategy>, SolveError>| r.err().map(|e| e.to_string());
    assert_eq!(
        text(named("optimum")),
        Some(format!(
            "unknown strategy `optimum`; use one of: {}",
            strategy_names().join(", ")
        ))
    );
    let odd = Parameters::from([("speed".to_owned(), serde_json::Value::from(1))]);
    assert_eq!(
        text(strategy("optimal", &odd)).as_deref(),
        Some("strategy `optimal`: unknown parameter `speed`; it takes none")
    );
    let mut p = problem(1, 2, 3, 0);
    p.workloads[0].entry = "nowhere".into();
    p.nodes[0].load_share = -1.0;
    let error = solve_checked(
        &p,
        named("optimal").unwrap().as_ref(),
        &SolveOptions::default(),
        &Ctx::unlimited(),
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "the problem is invalid; correct these fields: nodes[n0].loadShare: -1 is not a number of \
         at least zero; workloads[w0].entry: unknown node `nowhere`"
    );
}
