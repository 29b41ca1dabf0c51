use super::*;
use crate::nasty::{Dice, FEATURES, problem};
use crate::{Link, Parameters, solve_checked, strategy, validate};

fn options() -> SolveOptions {
    SolveOptions {
        work_limit: None,
        ..SolveOptions::default()
    }
}

/// The problem with every bandwidth changed.
fn scaled(p: &Problem, factor: f64) -> Problem {
    let mut p = p.clone();
    for link in p.links.values_mut().flat_map(|row| row.values_mut()) {
        link.bytes_per_second *= factor;
    }
    p
}

fn optimum(p: &Problem) -> Option<f64> {
    let optimal = strategy("optimal", &Parameters::new()).unwrap();
    let solution = solve_checked(p, optimal.as_ref(), &options(), &Ctx::unlimited()).unwrap();
    solution.metrics.map(|m| m.objective)
}

#[test]
fn everywhere_the_region_is_the_optimum() {
    let (mut several, mut dropped, mut compared) = (0, 0, 0);
    for seed in 0..1500u64 {
        let mut dice = Dice(seed.wrapping_mul(97));
        let features = dice.roll(1 << FEATURES) & dice.roll(1 << FEATURES);
        let mut p = problem(seed, 4, 4, features as u32 | 1 << 4);
        p.objective = Objective::Latency;
        if validate(&p).is_err() {
            continue;
        }
        let found = match regions(&p, &[], 0.1..=4.0, &options(), &Ctx::unlimited()) {
            Ok(found) => found,
            Err(RegionsError::NotApplicable(reason)) => {
                assert!(!reason.is_empty());
                continue;
            }
            Err(e) => panic!("seed {seed}: {e}"),
        };
        several += u32::from(found.regions.len() > 1);
        dropped += u32::from(found.regions.iter().any(|r| r.line.is_none()));
        for pair in found.regions.windows(2) {
            assert_eq!(pair[0].to_factor, pair[1].from_factor, "seed {seed}");
        }
        let grid = (0..23).map(|z| 0.1 * 40.0f64.powf((f64::from(z) + 0.37) / 23.0));
        for factor in grid {
            let region = found.at(factor).unwrap();
            let value = region.line.map(|l| found.lines[l].seconds(factor));
            match (value, optimum(&scaled(&p, factor))) {
                (None, None) => {}
                (Some(a), Some(b)) => {
                    let room = 1e-6 * a.abs().max(b.abs()) + 1e-9;
                    assert!(
                        (a - b).abs() <= room,
                        "seed {seed} at {factor}: {a}, best {b}"
                    );
                }
                (a, b) => panic!("seed {seed} at {factor}: {a:?}, best {b:?}"),
            }
            compared += 1;
        }
    }
    assert!(
        several > 100 && dropped > 30 && compared > 5000,
        "{several} {dropped} {compared}"
    );
}

#[test]
fn breakpoints_are_where_two_lines_meet() {
    let p = crate::testing::chain(
        &[crate::Tier::Device, crate::Tier::Cloud],
        &[&[0.1, 0.01], &[0.1, 0.01]],
        &[1000, 100, 10],
        10,
        Link::new(0.0, 10_000.0),
    );
    let found = regions(&p, &[], 0.01..=100.0, &options(), &Ctx::unlimited()).unwrap();
    let paths: Vec<String> = found
        .regions
        .iter()
        .map(|r| found.lines[r.line.unwrap()].placements[0].path())
        .collect();
    assert_eq!(paths, ["n0[0-1]", "n0[0]→n1[1]", "n1[0-1]"]);
    // Whole on the device 0.2; split 0.11 + 0.011/f; cloud 0.02 + 0.101/f.
    assert!((found.regions[0].to_factor - 0.011 / 0.09).abs() < 1e-9);
    assert!((found.regions[1].to_factor - 0.09 / 0.09).abs() < 1e-9);
    let one = [("n0".to_owned(), "n1".to_owned())];
    let up = regions(&p, &one, 0.01..=100.0, &options(), &Ctx::unlimited()).unwrap();
    assert!(up.regions.len() > 1);
    let odd = [("n0".to_owned(), "n9".to_owned())];
    assert!(regions(&p, &odd, 0.01..=100.0, &options(), &Ctx::unlimited()).is_err());
}
