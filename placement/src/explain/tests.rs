use super::relief::what_helps;
use super::*;
use crate::testing::chain;
use crate::{Link, Tier};

#[test]
fn the_sentence_counts_every_node_once() {
    let tiers = [
        Tier::Device,
        Tier::Edge,
        Tier::Edge,
        Tier::Edge,
        Tier::Cloud,
    ];
    let row: &[f64] = &[0.1; 5];
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 300 << 20, Link::new(0.01, 1e6));
    p.workloads[0].constraints.allowed_tiers = Some([Tier::Edge, Tier::Cloud].into());
    p.nodes[1].memory_bytes = 100 << 20;
    p.nodes[2].memory_bytes = 299 << 20;
    p.nodes[3].excluded = Some("not ready".into());
    p.links.get_mut("n0").unwrap().remove("n4");
    let found: Vec<String> = explain_infeasible(&p)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "0/5 nodes can host blocks 0..3 (1.2Gi): 2 insufficient memory, 1 link n0→n4 \
          unmeasured, 1 not ready, 1 tier=device excluded"
        ]
    );
}

#[test]
fn a_model_larger_than_all_nodes_together_is_told() {
    let row: &[f64] = &[0.1; 2];
    let tiers = [Tier::Device, Tier::Cloud];
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 100, Link::new(0.01, 1e6));
    p.nodes[0].memory_bytes = 150;
    p.nodes[1].memory_bytes = 150;
    let found = explain_infeasible(&p);
    assert_eq!(
        found[0].to_string(),
        "0/2 nodes can host blocks 0..3 (400): 2 insufficient memory"
    );
    p.nodes[1].memory_bytes = 1000;
    assert!(explain_infeasible(&p).is_empty());
}

#[test]
fn limits_that_are_too_much_together_are_named() {
    let row: &[f64] = &[0.1; 3];
    let tiers = [Tier::Device, Tier::Edge, Tier::Cloud];
    let link = Link::new(0.01, 1e6);
    let mut p = chain(&tiers, &[row; 4], &[9; 5], 100, link);
    for node in &mut p.nodes {
        node.memory_bytes = 200;
    }
    assert!(explain_infeasible(&p).is_empty());
    let ctx = crate::Ctx::unlimited();
    assert_eq!(what_helps(&p, Some(f64::MIN_POSITIVE), &ctx), []);
    p.workloads[0].constraints.latency_limit_seconds = Some(0.405);
    assert_eq!(
        why_infeasible(&p, &ctx),
        [
            "each block fits somewhere, but not all together; there is a placement without the \
          latency limit, or without the memory of the nodes"
        ]
    );
    let helps = what_helps(&p, None, &ctx);
    assert_eq!(helps[1].limit, Limit::Memory);
    assert!((helps[1].objective - 0.4).abs() < 1e-9, "{helps:?}");
    assert!(helps[0].objective > 0.405);
}

#[test]
fn a_switch_for_which_there_is_no_room_is_told() {
    let row: &[f64] = &[0.1; 2];
    let tiers = [Tier::Device, Tier::Cloud];
    let mut p = chain(&tiers, &[row; 2], &[9; 3], 100, Link::new(0.01, 1e6));
    p.nodes[0].memory_bytes = 250;
    p.nodes[1].excluded = Some("not ready".into());
    p.nodes[0].resident_bytes = 200;
    assert_eq!(
        explain_infeasible(&p)[0].to_string(),
        "0/2 nodes can host blocks 0..1 (200): 1 insufficient memory during the switch, 1 not ready"
    );
    p.transition = crate::Transition::Drain;
    assert!(explain_infeasible(&p).is_empty());
}

mod split {
    use crate::explain::explain;
    use crate::explain::queue::waiting_seconds;
    use crate::nasty::{Dice, FEATURES, problem};
    use crate::testing::chain;
    use crate::{
        Ctx, Link, Parameters, Problem, Solution, SolveOptions, Tier, solve_checked, strategy,
        validate,
    };

    fn best(p: &Problem) -> Solution {
        let optimal = strategy("optimal", &Parameters::new()).unwrap();
        solve_checked(
            p,
            optimal.as_ref(),
            &SolveOptions::default(),
            &Ctx::unlimited(),
        )
        .unwrap()
    }

    #[test]
    fn a_split_is_told_with_its_times_limits_and_alternatives() {
        let mut p = chain(
            &[Tier::Device, Tier::Edge, Tier::Cloud, Tier::Cloud],
            &[
                &[0.01, 0.01, 0.005, 0.005],
                &[0.5, 0.1, 0.01, 0.2],
                &[0.5, 0.1, 0.01, 0.2],
            ],
            &[1000, 100, 100, 10],
            100,
            Link::new(0.005, 10_000.0),
        );
        p.workloads[0].rate_per_second = 1.0;
        p.nodes[2].memory_bytes = 220;
        p.nodes[3].excluded = Some("cordoned".into());
        let solution = best(&p);
        let why = explain(&p, &solution, &Ctx::unlimited()).unwrap();
        assert_eq!(why.workloads[0].path, "n0[0]→n2[1-2]");
        let [first, second] = why.workloads[0].stretches.as_slice() else {
            panic!("{why:?}");
        };
        assert_eq!((first.bytes, second.bytes), (0, 100));
        let sum: f64 = [first, second]
            .iter()
            .map(|s| s.compute_seconds + s.transfer_seconds + s.round_trip_seconds)
            .sum();
        assert!((sum - why.objective).abs() < 1e-12);
        assert!(why.workloads[0].queue_seconds.unwrap() > 0.0);
        assert!(
            why.tight
                .iter()
                .any(|t| t.place == "n2" && t.what == "memory")
        );
        let without = why.alternatives.iter().find(|a| a.change == "without n2");
        assert!(without.is_some_and(|a| a.proved && a.objective > why.objective));
        assert!(why.alternatives.iter().any(|a| a.change.contains("cut 1")));
        let tiers: Vec<Tier> = why.baselines.iter().map(|b| b.tier).collect();
        assert_eq!(tiers, [Tier::Device, Tier::Edge, Tier::Cloud]);
        let cloud = &why.baselines[2];
        assert!(
            cloud
                .why_not
                .as_ref()
                .is_some_and(|w| w.contains("memory") || w.contains("cordoned"))
        );
        let edge = why.unused.iter().find(|u| u.node == "n1").unwrap();
        assert!(edge.at_least.is_some_and(|b| b >= why.objective));
        let closed = why.unused.iter().find(|u| u.node == "n3").unwrap();
        assert_eq!(closed.reason, "cordoned");
        let text = why.to_string();
        assert!(
            text.contains("without n2") && text.contains("not n3: cordoned"),
            "{text}"
        );
        let json = serde_json::to_string(&why).unwrap();
        let read: crate::explain::Explanation = serde_json::from_str(&json).unwrap();
        assert_eq!(read.to_string(), text);
    }

    /// The bounds of unused nodes hold: pinning any block there never goes below them, and the
    /// limits reported as binding are.
    #[test]
    fn what_is_said_of_unused_nodes_holds() {
        let mut held = 0;
        for seed in 0..250 {
            let mut dice = Dice(seed * 31);
            let features = dice.roll(1 << FEATURES) & dice.roll(1 << FEATURES);
            let p = problem(seed, 3, 3, features as u32);
            if validate(&p).is_err() {
                continue;
            }
            let solution = best(&p);
            let Some(why) = explain(&p, &solution, &Ctx::unlimited()) else {
                continue;
            };
            if p.objective.ranks().len() > 1 {
                continue;
            }
            for unused in &why.unused {
                let Some(bound) = unused.at_least else {
                    continue;
                };
                for k in 0..p.workloads.len() {
                    for block in 0..p.workloads[k].blocks.len() {
                        let mut pinned = p.clone();
                        pinned.workloads[k].constraints.pins = vec![crate::BlockOnNode {
                            block,
                            node: unused.node.clone(),
                        }];
                        pinned.workloads[k].constraints.keep_first_on_entry = 0;
                        if !p.workloads[k].constraints.pins.is_empty()
                            || p.workloads[k].constraints.keep_first_on_entry > 0
                            || validate(&pinned).is_err()
                        {
                            continue;
                        }
                        if let Some(m) = best(&pinned).metrics {
                            let room = 1e-9 * bound.abs() + 1e-12;
                            assert!(m.objective >= bound - room, "seed {seed}");
                            held += 1;
                        }
                    }
                }
            }
            for relief in &why.binding {
                assert!(relief.objective < why.objective, "seed {seed}");
            }
        }
        assert!(held > 100, "{held}");
    }

    #[test]
    fn waiting_grows_with_load_and_shrinks_with_lanes() {
        assert_eq!(waiting_seconds(0.1, 0.0, 1), 0.0);
        // One lane, constant service: rho / (2 (1 - rho)) services.
        assert!((waiting_seconds(0.1, 0.5, 1) - 0.05).abs() < 1e-12);
        assert!(waiting_seconds(0.1, 0.5, 4) < waiting_seconds(0.1, 0.5, 1));
        assert_eq!(waiting_seconds(0.1, 1.0, 1), f64::INFINITY);
    }
}
