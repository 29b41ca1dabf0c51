use super::*;
use crate::regions::regions;
use crate::testing::chain;
use crate::{Ctx, Link, SolveOptions, Tier};

/// A model whose activations shrink as it goes on, over three tiers; moving
/// costs a pause of 0.3 s and the blocks' bytes.
fn world(slow: f64) -> World {
    let p = chain(
        &[Tier::Device, Tier::Edge, Tier::Cloud],
        &[
            &[0.02 * slow, 0.01, 0.004],
            &[0.03 * slow, 0.012, 0.004],
            &[0.03 * slow, 0.015, 0.005],
            &[0.05 * slow, 0.02, 0.006],
        ],
        &[150_000, 90_000, 50_000, 20_000, 4_000],
        4_000_000,
        Link::new(0.005, 1_500_000.0),
    );
    let found = regions(
        &p,
        &[],
        0.01..=4.0,
        &SolveOptions::default(),
        &Ctx::unlimited(),
    )
    .unwrap();
    let home = |line: &Line, b: usize| -> String {
        let segments = &line.placements[0].segments;
        segments
            .iter()
            .find(|s| s.blocks.contains(&b))
            .unwrap()
            .node
            .clone()
    };
    let rate = 2.0;
    let moving = |a: &Line, b: &Line| {
        let moved = (0..4).filter(|i| home(a, *i) != home(b, *i)).count() as f64;
        if moved == 0.0 {
            0.0
        } else {
            rate * (0.3 + moved * 4e6 / 1.25e7)
        }
    };
    World {
        moving: found
            .lines
            .iter()
            .map(|a| found.lines.iter().map(|b| moving(a, b)).collect())
            .collect(),
        lines: found.lines,
        rate_per_second: rate,
        outage_seconds: 5.0,
    }
}

fn regrets(how: &Wander, rule: &Rule) -> (f64, f64, f64) {
    let mut all = Vec::new();
    let mut moves = 0;
    for slow in [1.0, 2.0, 4.0] {
        let world = world(slow);
        assert!(world.lines.len() > 1);
        for seed in 0..8 {
            let trace = Trace::wander(how, 3000, seed);
            let fare = simulate(&world, &trace, rule).unwrap();
            assert!(fare.regret() >= -1e-9, "nobody beats the clairvoyant");
            moves += fare.moves;
            all.push(fare.regret());
        }
    }
    all.sort_by(f64::total_cmp);
    (
        all[all.len() / 2],
        all[all.len() - 1],
        moves as f64 / all.len() as f64,
    )
}

#[test]
fn rules_that_weigh_the_cost_of_moving_regret_little() {
    // The horizon is about as long as a state holds.
    let cost_aware = Rule::CostAware(Policy {
        horizon_seconds: 33.0,
        min_gain_share: 0.0,
        confidence_deviations: 0.0,
        cool_down_seconds: 0.0,
        flap_returns: 0,
        ..Policy::default()
    });
    let careful = Rule::CostAware(Policy {
        horizon_seconds: 33.0,
        min_gain_share: 0.0,
        confidence_deviations: 1.0,
        cool_down_seconds: 0.0,
        flap_returns: 0,
        ..Policy::default()
    });
    for (name, how) in [("LTE", LTE), ("Wi-Fi", WIFI)] {
        let rules = [
            ("never", Rule::Never),
            ("periodic", Rule::Periodic { seconds: 30.0 }),
            ("threshold", Rule::Threshold { share: 0.35 }),
            ("cost-aware", cost_aware.clone()),
            ("confident", careful.clone()),
            ("default policy", Rule::CostAware(Policy::default())),
            ("work function", Rule::WorkFunction),
        ];
        let told: Vec<(f64, f64, f64)> = rules.iter().map(|(_, r)| regrets(&how, r)).collect();
        for ((rule, _), (median, most, moves)) in rules.iter().zip(&told) {
            let (median, most) = (median * 100.0, most * 100.0);
            println!("{name} {rule}: median {median:.1} %, most {most:.1} %, {moves:.1} moves");
        }
        let median = |z: usize| told[z].0;
        assert!(median(3) < median(1) && median(4) < median(0), "{told:?}");
        assert!(median(3).min(median(4)) <= 0.05, "{told:?}");
    }
}

#[test]
fn a_trace_is_seeded_and_a_bad_world_is_refused() {
    assert_eq!(Trace::wander(&LTE, 100, 3), Trace::wander(&LTE, 100, 3));
    assert_ne!(Trace::wander(&LTE, 100, 3), Trace::wander(&LTE, 100, 4));
    let mut odd = world(1.0);
    odd.moving.pop();
    assert_eq!(
        simulate(&odd, &Trace::wander(&WIFI, 10, 1), &Rule::Never),
        None
    );
}
