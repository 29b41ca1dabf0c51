//! Each pass by itself, forced where the others would be faster.

use super::*;
use crate::nasty::{FEATURES, problem};
use crate::{Objective, validate};

/// Cheapest path of all, by trying them.
fn brute_force(dense: &Dense) -> Option<f64> {
    let total: usize = dense.chains.iter().map(|c| c.l).sum();
    (0..dense.n.pow(total as u32))
        .filter_map(|code| {
            let path: Vec<usize> = (0..total)
                .map(|b| code / dense.n.pow(b as u32) % dense.n)
                .collect();
            dense.evaluate(&path)
        })
        .min_by(f64::total_cmp)
}

/// Solves many nasty problems with a tuning; gives how often each stage ended
/// it.
fn stages(tuning: Tuning, cases: u64) -> std::collections::BTreeMap<&'static str, u32> {
    let ctx = Ctx::unlimited();
    let mut stages = std::collections::BTreeMap::new();
    for seed in 0..cases {
        let mut dice = crate::nasty::Dice(seed);
        let mut mask = || dice.roll(1 << FEATURES) as u32;
        let features = mask() & mask();
        let mut p = problem(seed, 2 + seed as usize % 3, 2 + seed as usize % 4, features);
        p.objective = Objective::Latency;
        if validate(&p).is_err() {
            continue;
        }
        let rows: Vec<Vec<usize>> = p.workloads.iter().map(|w| vec![0; w.exits.len()]).collect();
        let mut dense = Dense::new(&p, &rows);
        for chain in &mut dense.chains {
            chain.previous = None;
        }
        let best = brute_force(&dense);
        let exact = Exact {
            tuning,
            ctx: &ctx,
            max_work: u64::MAX,
            cutoff: f64::INFINITY,
            any: false,
            start: None,
            seed: 1,
        };
        let found = exact.solve(&dense);
        assert!(found.complete, "seed {seed}");
        *stages.entry(found.stage).or_default() += 1;
        // Branch and bound is as exact as its tolerance.
        let room = if found.stage == "milp" { 3e-6 } else { 1e-8 };
        let value = found.best.as_ref().map(|b| b.0);
        match (best, value) {
            (None, None) => {}
            (Some(a), Some(b)) => {
                let close = |x: f64, y: f64| (x - y).abs() <= room * x.abs() + 1e-12;
                assert!(close(a, b), "seed {seed}: {b}, best is {a}");
                assert!(close(a, found.bound), "seed {seed}: bound {}", found.bound);
                let path = found.best.map(|b| b.1).unwrap_or_default();
                assert_eq!(dense.evaluate(&path), value, "seed {seed}");
            }
            (best, found) => panic!("seed {seed}: {found:?}, best is {best:?}"),
        }
    }
    stages
}

#[test]
fn prices_and_labels_agree_with_trying_everything() {
    let tuning = Tuning {
        quick_labels: 0,
        halves: 0,
        wide: usize::MAX,
        ..Tuning::default()
    };
    let stages = stages(tuning, 6_000);
    assert!(stages.get("lagrangian") > Some(&100), "{stages:?}");
    assert!(stages.get("labels") > Some(&100), "{stages:?}");
}

#[test]
fn both_halves_agree_with_trying_everything() {
    let tuning = Tuning {
        rounds: 0,
        wide: usize::MAX,
        ..Tuning::default()
    };
    let stages = stages(tuning, 6_000);
    assert!(stages.get("halves") > Some(&100), "{stages:?}");
}

#[test]
fn the_wide_passes_agree_with_trying_everything() {
    let tuning = Tuning {
        quick_labels: 10,
        wide: 0,
        ..Tuning::default()
    };
    let stages = stages(tuning, 6_000);
    assert!(stages.get("viterbi") > Some(&100), "{stages:?}");
}

#[test]
fn branch_and_bound_takes_over_where_labels_may_not_go_on() {
    let tuning = Tuning {
        quick_labels: 0,
        halves: 0,
        labels: 0,
        wide: usize::MAX,
        ..Tuning::default()
    };
    let stages = stages(tuning, 4_000);
    assert!(stages.get("milp") > Some(&20), "{stages:?}");
}
