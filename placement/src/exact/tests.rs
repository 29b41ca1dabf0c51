//! Each pass alone, forced even where others would be faster.

use super::*;
use crate::nasty::{FEATURES, problem};
use crate::{Objective, validate};

/// Cheapest path, by trying all.
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

/// Solves many nasty problems with a tuning; returns how often each stage ended it.
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
    let stages = stages(tuning, 8_000);
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

/// Arbitrary prices on some capacities and links.
fn any_prices(dense: &Dense, dice: &mut crate::random::Dice) -> Prices {
    let mut prices = Prices::zero(dense);
    let worst = worst_cost(dense);
    for (kind, all) in prices.node.iter_mut().enumerate() {
        for (at, price) in all.iter_mut().enumerate() {
            let room = dense.room(&dense.chains[0], kind, at);
            if room > 0.0 && room < f64::INFINITY && dice.chance(0.4) {
                *price = dice.share() * 0.3 * worst / room;
            }
        }
    }
    if dense.link_capacity < f64::INFINITY && dice.chance(0.3) {
        let links = dense.n * dense.n;
        prices.link = (0..links).map(|_| dice.share() * 0.1 * worst).collect();
    }
    prices
}

#[test]
fn from_both_ends_no_prices_and_no_limits_make_a_bound_wrong() {
    let ctx = Ctx::unlimited();
    let mut dice = crate::random::Dice::new(5);
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..8_000 {
        let features = (dice.next() & dice.next()) as u32 % (1 << FEATURES);
        let mut p = problem(seed, 2 + dice.below(3), 2 + dice.below(5), features);
        p.objective = Objective::Latency;
        if p.workloads.len() != 1 || validate(&p).is_err() {
            continue;
        }
        let rows = vec![vec![0; p.workloads[0].exits.len()]];
        let mut dense = Dense::new(&p, &rows);
        dense.chains[0].previous = None;
        if !dense.budgets.is_empty() {
            continue;
        }
        let least = brute_force(&dense).unwrap_or(f64::INFINITY);
        let known = if least < f64::INFINITY { least } else { 1.0 };
        let prices = any_prices(&dense, &mut dice);
        let hunt = Hunt {
            dense: &dense,
            prices: &prices,
            bound: [0.0, 0.5, 0.9, 1.0][dice.below(4)] * known.min(least),
            cutoff: [f64::INFINITY, 1.5 * known, 1.01 * known, 0.95 * known][dice.below(4)],
            max_labels: [u64::MAX, dice.below(40) as u64][dice.below(2)],
            ctx: &ctx,
        };
        let caught = hunt.run();
        assert!(caught.labels <= hunt.max_labels, "seed {seed}");
        let most = least.min(hunt.cutoff.max(hunt.bound));
        assert!(caught.bound <= most * (1.0 + 1e-9), "seed {seed}");
        let verdict = match (caught.complete, &caught.best) {
            (false, None) => "cut short",
            (false, Some(_)) => panic!("seed {seed}: found, but not complete"),
            (true, None) => {
                assert!(least >= hunt.cutoff * (1.0 - 1e-9), "seed {seed}");
                "none"
            }
            (true, Some((cost, path))) => {
                assert!(*cost <= least * (1.0 + 1e-9), "seed {seed}");
                match dense.evaluate(path) {
                    Some(true_cost) => {
                        assert!((true_cost - least).abs() <= 1e-9 * least, "seed {seed}");
                        "best"
                    }
                    None => "forbidden",
                }
            }
        };
        *seen.entry(verdict).or_insert(0) += 1;
    }
    for verdict in ["cut short", "none", "best"] {
        assert!(seen.get(verdict) > Some(&100), "{seen:?}");
    }
}
