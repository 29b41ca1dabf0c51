mod gains;
mod many;

use super::*;
use crate::testing::{Bench, change_links};
use lamina_crds::dnn_model::{EarlyExits, Goal, Pin};
use lamina_crds::placement::Cause;

#[test]
fn a_pin_to_a_host_without_agent_is_named() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        m.spec.constraints.pins = vec![Pin {
            first: 1,
            last: 2,
            node: "edge-9".into(),
        }];
    });
    bench.run(8);
    assert_eq!(bench.status().active_revision, 1, "what serves goes on");
    let note = bench.note(reasons::NO_FEASIBLE_PLACEMENT);
    assert!(
        note.contains("blocks 1..2 are pinned to edge-9, which runs no agent"),
        "{note}"
    );
    bench.expect_fixpoint();
}

/// Its first plan is decided, but the API server does not accept it.
fn with_an_unwritten_plan() -> Bench {
    let mut bench = Bench::new();
    bench.look();
    bench.finish_prepare();
    bench.look();
    bench.refuses_plans = true;
    bench.run(12);
    bench
}

#[test]
fn a_plan_that_was_not_written_is_written_by_the_next_look() {
    let mut bench = with_an_unwritten_plan();
    let is_told = |bench: &Bench| {
        let mut reasons = bench.told.iter().map(|n| n.reason);
        reasons.any(|reason| reason == reasons::PLACEMENT_SOLVED)
    };
    assert!(is_told(&bench));
    assert!(bench.snapshot.placements.is_empty());
    bench.refuses_plans = false;
    bench.look_once();
    assert_eq!(
        bench.placement().spec.plan.as_ref().map(|p| p.revision),
        Some(1)
    );
    bench.run(8);
    assert_eq!(bench.status().active_revision, 1);
    bench.expect_fixpoint();
}

#[test]
fn an_unwritten_plan_over_a_host_that_is_lost_is_dropped() {
    let mut bench = with_an_unwritten_plan();
    bench.lose("cloud-1");
    bench.refuses_plans = false;
    bench.run(20);
    assert_eq!(bench.status().path, "edge-1[0-3]");
}

/// Two blocks, with an exit between them with measured thresholds: from strict to permissive 0.819,
/// 0.85 and 0.62 of all are right, and 0.8 if no row leaves.
fn with_exits(strategy: &str, min_accuracy: Option<f64>) -> Bench {
    let mut manifest = crate::testing::manifest_with_exits();
    let rows = [(0.99, 0.1, 0.99), (0.9, 0.5, 0.9), (0.5, 0.9, 0.6)];
    manifest.exits[0].table = rows
        .map(|(threshold, exit_rate, accuracy)| lamina_model::ExitRow {
            threshold,
            exit_rate,
            accuracy,
        })
        .into();
    let mut bench = Bench::new();
    bench.edit(|m| {
        m.spec.strategy.name = strategy.to_owned();
        m.spec.adaptation.horizon_seconds = 7200;
        m.spec.adaptation.cool_down_seconds = 0;
        m.spec.constraints.latency_limit_ms = Some(10_000);
        m.spec.exits = Some(EarlyExits {
            min_accuracy,
            ..EarlyExits::default()
        });
    });
    bench.look();
    bench.finish_prepare_of(manifest);
    bench.run(20);
    assert_eq!(bench.stage(), "Serving", "{strategy}: {:?}", bench.told);
    bench
}

/// The threshold at the entry, and the one in the plan.
fn thresholds(bench: &Bench) -> (Option<f64>, Option<f64>) {
    let route = &bench.snapshot.compute_nodes["cam-1"].spec.routes[0];
    let last = route.revisions.last().unwrap();
    let plan = bench.placement().spec.plan.as_ref().unwrap();
    (
        last.exits.as_ref().unwrap().exits[0].threshold,
        plan.thresholds.get("early").copied(),
    )
}

#[test]
fn a_strategy_chooses_thresholds_that_are_accurate_enough() {
    for (strategy, least, chosen) in [
        ("optimal", 0.83, 0.9),
        ("optimal", 0.6, 0.5),
        ("spinn", 0.83, 0.9),
        ("ddnn", 0.6, 0.5),
        // The most accurate within the deadline.
        ("edgent", 0.0, 0.9),
    ] {
        let mut bench = with_exits(strategy, Some(least));
        let told = thresholds(&bench);
        assert_eq!(told, (Some(chosen), Some(chosen)), "{strategy} {least}");
        bench.expect_fixpoint();
    }
    // Without a limit of accuracy they are the file's.
    assert_eq!(thresholds(&with_exits("optimal", None)), (Some(0.9), None));
}

#[test]
fn thresholds_follow_the_spec() {
    let mut bench = with_exits("optimal", Some(0.83));
    let edit = |bench: &mut Bench, change: fn(&mut EarlyExits)| {
        bench.told.clear();
        bench.edit(|m| change(m.spec.exits.as_mut().unwrap()));
        bench.run(40);
        bench.expect_fixpoint();
        (bench.status().active_revision, thresholds(bench))
    };
    let looser = edit(&mut bench, |exits| exits.min_accuracy = Some(0.6));
    assert_eq!(looser.1, (Some(0.5), Some(0.5)), "a gain");
    let stricter = edit(&mut bench, |exits| exits.min_accuracy = Some(0.84));
    assert_eq!(stricter, (3, (Some(0.9), Some(0.9))), "it must be left");
    // Thresholds of the spec are not chosen; the entry gets them from the spec.
    let named = edit(&mut bench, |exits| {
        exits.thresholds.insert("early".into(), 0.99);
        exits.min_accuracy = Some(0.81);
    });
    assert_eq!(named, (4, (Some(0.9), None)));
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(note.contains("spec.exits"), "{note}");
    let nothing = edit(&mut bench, |exits| exits.min_accuracy = Some(0.99));
    assert_eq!(nothing, (4, (Some(0.9), None)));
    let note = bench.note(reasons::NO_FEASIBLE_PLACEMENT);
    assert!(note.contains("accuracy"), "{note}");
}

#[test]
fn a_latency_that_nobody_keeps_is_said() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.constraints.latency_limit_ms = Some(1));
    bench.run(8);
    assert_eq!(bench.status().active_revision, 1, "what serves goes on");
    let note = bench.note(reasons::NO_FEASIBLE_PLACEMENT);
    assert!(note.contains("latency"), "{note}");
}

#[test]
fn another_strategy_is_taken_at_once() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.strategy.name = "device-only".into());
    bench.run(8);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(
        note.starts_with("strategy optimal → device-only; "),
        "{note}"
    );
    bench.expect_fixpoint();
}

#[test]
fn a_link_down_on_the_way_back_is_named() {
    let mut bench = Bench::serving();
    let old = bench.status().path;
    bench.set_reachable("cloud-1", "cam-1", false);
    bench.run(8);
    assert_ne!(bench.status().path, old);
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(note.starts_with("link cloud-1→cam-1 is down; "), "{note}");
    bench.expect_fixpoint();
}

#[test]
fn one_odd_look_moves_nothing() {
    let mut bench = Bench::serving();
    bench.run(12);
    bench.links_of("cam-1", 1e4);
    bench.look();
    bench.links_of("cam-1", 12.5e6);
    bench.run(30);
    assert_eq!(bench.status().active_revision, 1);
    bench.expect_fixpoint();
}

#[test]
fn a_link_that_comes_and_goes_does_not_drag_blocks_along_for_ever() {
    let mut bench = Bench::serving();
    for _ in 0..10 {
        bench.links_of("cam-1", 1e4);
        bench.run(25);
        bench.links_of("cam-1", 12.5e6);
        bench.run(25);
    }
    let moves = bench.status().redeploys;
    assert!((2..=8).contains(&moves), "{moves} moves");
    let held: Vec<&str> = bench
        .told
        .iter()
        .filter(|n| n.reason == reasons::REDEPLOY_SUPPRESSED)
        .map(|n| n.note.as_str())
        .collect();
    assert!(
        held.iter().any(|n| n.contains("back and forth")),
        "{held:?}"
    );
}

#[test]
fn moves_that_had_to_be_made_are_no_flapping() {
    let mut bench = Bench::serving();
    for _ in 0..3 {
        for strategy in ["device-only", "optimal"] {
            bench.edit(|m| m.spec.strategy.name = strategy.into());
            bench.run(12);
        }
    }
    // A new process reads earlier moves from the status.
    bench.restart();
    bench.run(12);
    let before = bench.status();
    assert_eq!(before.redeploys, 6);
    bench.links_of("cam-1", 1e4);
    bench.run(25);
    let after = bench.status();
    assert_eq!(after.path, "cam-1[0-3]", "{:?}", bench.told.last());
    assert_eq!(after.history[0].cause, Cause::Gain);
    assert_eq!(after.history[1].cause, Cause::Required);
}

#[test]
fn a_host_that_joins_is_used_when_it_pays() {
    let mut bench = Bench::new();
    bench.lose("cloud-1");
    bench.snapshot.agents.remove("cloud-1");
    bench.look();
    bench.finish_prepare();
    bench.run(15);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    bench.snapshot.agents.insert("cloud-1".into());
    bench.snapshot.live.get_mut("cloud-1").unwrap().alive = true;
    bench.run(15);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    assert!(
        bench
            .note(reasons::REDEPLOY_STARTED)
            .starts_with("cloud-1 joined; ")
    );
}

#[test]
fn throughput_is_judged_by_the_slowest_stage() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        m.spec.objective.goal = Goal::Throughput;
        m.spec.objective.requests_per_second = 60.0;
    });
    bench.run(20);
    let path = bench.status().path;
    assert!(path.contains('→') && path.contains("cloud-1"), "{path}");
    bench.expect_fixpoint();
}

#[test]
fn a_strategy_is_not_asked_at_every_look() {
    let mut bench = Bench::serving();
    let before = bench.solves;
    for _ in 0..100 {
        bench.look();
        bench.pass(100);
    }
    let asked = bench.solves - before;
    assert!((1..=2).contains(&asked), "{asked}");
}

#[test]
fn a_better_path_is_looked_at_again_as_soon_as_it_may_be() {
    let mut bench = Bench::serving();
    // Slow links of the active host only.
    bench.links_of("cloud-1", 2e4);
    let mut again = Vec::new();
    for _ in 0..20 {
        let looked = bench.look_once();
        again.extend(looked.again_seconds);
        if bench.placement().spec.plan.as_ref().unwrap().revision > 1 {
            break;
        }
        bench.pass(100);
    }
    assert!(!again.is_empty(), "nothing was found");
    assert!(again.iter().all(|s| *s > 0.0 && *s <= 1.0), "{again:?}");
    // Once decided, there is nothing to speed up.
    bench.run(8);
    assert_eq!(bench.look_once().again_seconds, None);
}

#[test]
fn a_gain_moves_nothing_onto_a_link_that_nobody_has_measured() {
    let mut bench = Bench::serving();
    bench.links_of("cloud-1", 1e4);
    bench.run(30);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    // It is estimated to be fast again, but not measured.
    let recover = |bench: &mut Bench, estimated: bool| {
        bench.links_of("cloud-1", 12.5e6);
        change_links(&mut bench.snapshot.links, |a, b, view| {
            view.estimated = estimated && (a == "cloud-1" || b == "cloud-1");
        });
    };
    recover(&mut bench, true);
    bench.run(120);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    recover(&mut bench, false);
    bench.run(60);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
}

#[test]
fn no_second_move_goes_over_a_link_that_shares_a_host_with_the_slow_one() {
    let mut bench = Bench::serving();
    // All links of the camera are slow; those to the edge were measured before.
    let slow = |bench: &mut Bench, stale_seconds: f64| {
        change_links(&mut bench.snapshot.links, |a, b, view| {
            let is_edge = a == "edge-1" || b == "edge-1";
            match a == "cam-1" || b == "cam-1" {
                true if is_edge => view.bandwidth_age_seconds = stale_seconds,
                true => view.bytes_per_second = Some(1e4),
                false => {}
            }
        });
    };
    for second in 0..100 {
        slow(&mut bench, 5.0 + f64::from(second));
        bench.run(1);
        assert!(!bench.status().path.contains("edge-1"), "{second}");
    }
    assert_eq!(bench.status().path, "cam-1[0-3]");
    // It was fast after all.
    slow(&mut bench, 0.0);
    bench.run(30);
    assert!(bench.status().path.contains("edge-1"));
}

#[test]
fn requests_that_leave_at_other_exits_are_a_reason_to_ask() {
    let mut bench = with_exits("optimal", None);
    let uid = bench.placement().metadata.uid.clone().unwrap();
    // It is asked because time passed; for a while after that, time is no reason.
    let before = bench.solves;
    while bench.solves == before {
        bench.run(1);
    }
    bench.run(2);
    let before = bench.solves;
    let as_expected = vec![50, 50];
    bench.snapshot.exit_rows.insert(uid.clone(), as_expected);
    bench.look();
    assert_eq!(bench.solves, before);
    bench.snapshot.exit_rows.insert(uid, vec![90, 10]);
    bench.look();
    assert_eq!(bench.solves, before + 1);
    // Once is enough.
    bench.run(3);
    assert_eq!(bench.solves, before + 1);
}
