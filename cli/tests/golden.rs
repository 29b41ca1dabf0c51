//! Output for users: tables, explanation, change, JSON.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

mod common;

use common::report;
use insta::assert_snapshot;
use kubectl_lamina::Dress;
use kubectl_lamina::plan::{Extras, plan};
use kubectl_lamina::question;
use kubectl_lamina::render::render;
use kubectl_lamina::report::Outcome;
use lamina_placement::Ctx;
use std::sync::atomic::Ordering;

/// Six blocks on three hosts.
const SMALL: &str = "--profile tests/files/model.yaml --topology tests/files/world.yaml";

fn shown(options: &str) -> String {
    let report = report(&format!("{SMALL} {options}")).unwrap();
    render(&report, &Dress::default())
}

#[test]
fn every_strategy_side_by_side() {
    assert_snapshot!(shown("--rate 10/s"));
}

#[test]
fn a_split_is_named_with_its_reason() {
    assert_snapshot!(shown("--rate 20/s --entry-blocks 1 --strategy optimal"));
}

#[test]
fn other_objectives_have_their_own_units() {
    assert_snapshot!(shown(
        "--objective energy --slo 200ms --strategy optimal --strategy cloud-only --strategy energy"
    ));
    assert_snapshot!(shown(
        "--objective throughput --strategy optimal --strategy first-fit"
    ));
}

#[test]
fn a_narrow_terminal_cuts_the_path() {
    let report = report(&format!(
        "{SMALL} --pin 0=cam-1 --pin 2=edge-1 --pin 5=cloud-1 --rate 2/s --strategy optimal"
    ));
    let narrow = Dress {
        colour: false,
        width: Some(80),
    };
    let text = render(&report.unwrap(), &narrow);
    let row = text.lines().find(|l| l.starts_with("optimal ")).unwrap();
    assert!(row.chars().count() <= 80, "{text}");
    assert_snapshot!(text);
}

#[test]
fn explain_says_why_and_why_not() {
    assert_snapshot!(shown(
        "--rate 20/s --entry-blocks 1 --strategy optimal --explain"
    ));
}

#[test]
fn exits_have_their_share_of_the_requests() {
    let options = "--profile ../examples/plan/early-exit.yaml \
                   --topology ../examples/plan/camera-edge-cloud.yaml \
                   --min-accuracy 85% --strategy optimal --strategy ddnn --explain";
    assert_snapshot!(render(&report(options).unwrap(), &Dress::default()));
}

#[test]
fn what_if_shows_both_worlds() {
    assert_snapshot!(shown(
        "--entry-blocks 1 --strategy optimal --strategy device-only --strategy cloud-only \
         --what-if link.cam-1:edge-1.bandwidth=2Mbit"
    ));
}

#[test]
fn what_if_a_node_goes_and_another_gets_slow() {
    assert_snapshot!(shown(
        "--strategy optimal --what-if node.edge-1.gone --what-if node.cloud-1.speed=0.1x \
         --what-if oneway.cam-1:cloud-1.latency=2x --what-if rate=3/s"
    ));
}

#[test]
fn what_if_nothing_serves_any_more() {
    assert_snapshot!(shown(
        "--strategy optimal --what-if node.cam-1.memory=1MB --what-if link.cam-1:edge-1.gone \
         --what-if link.cam-1:cloud-1.gone"
    ));
}

#[test]
fn regions_of_a_link() {
    assert_snapshot!(shown(
        "--entry-blocks 1 --strategy optimal --regions link.cam-1:edge-1.bandwidth"
    ));
}

#[test]
fn json_is_one_document() {
    let options = format!(
        "{SMALL} --entry-blocks 1 --strategy optimal --strategy spinn \
         --what-if node.edge-1.load=50%"
    );
    let report = report(&options).unwrap();
    assert_snapshot!(serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn several_models_in_one_problem() {
    let report = report("--problem tests/files/two-models.yaml --explain").unwrap();
    assert_snapshot!(render(&report, &Dress::default()));
}

#[test]
fn do_not_split_is_an_answer() {
    let options = "--profile tests/files/model.yaml --topology tests/files/near-edge.yaml \
                   --strategy optimal --strategy device-only";
    assert_snapshot!(render(&report(options).unwrap(), &Dress::default()));
}

#[test]
fn what_was_found_before_ctrl_c_is_shown() {
    let mut args = common::args(SMALL);
    args.deadline = "60min".to_owned();
    let question = question::read(&args).unwrap();
    let ctx = Ctx::unlimited();
    let handle = ctx.cancel_handle();
    let mut cancel_at_the_second = |name: &str| {
        if name != "optimal" {
            handle.store(true, Ordering::Relaxed);
        }
    };
    let extras = Extras::default();
    let report = plan(&question, &extras, &ctx, &mut cancel_at_the_second).unwrap();
    assert!(report.cancelled);
    assert_eq!(report.strategies[0].solution.strategy, "optimal");
    let cancelled = report.skipped.iter().filter(|s| s.reason == "cancelled");
    assert!(cancelled.count() >= question.strategies.len() - 2);
    assert!(render(&report, &Dress::default()).contains("until then"));
}

#[test]
fn why_there_is_no_placement() {
    let report = report(&format!("{SMALL} --slo 5ms")).unwrap();
    assert_eq!(report.outcome, Outcome::Infeasible);
    assert_snapshot!(render(&report, &Dress::default()));
}

#[test]
fn a_missing_link_is_unreachable_and_not_free() {
    // Devices have no links among themselves in this topology.
    let options = "--profile ../examples/plan/early-exit.yaml \
                   --topology ../examples/plan/camera-edge-cloud.yaml \
                   --min-accuracy 85% --pin 0=cam-1 --pin 1=cam-2 --strategy optimal";
    let report = report(options).unwrap();
    assert_eq!(report.outcome, Outcome::Infeasible);
    assert_snapshot!(render(&report, &Dress::default()));
}

#[test]
fn the_examples_are_solved_and_proved() {
    for model in ["mobilenet-v2.json", "googlenet.json"] {
        let options = format!(
            "--profile ../examples/plan/{model} --topology ../examples/plan/camera-edge-cloud.yaml \
             --rate 5/s --strategy optimal"
        );
        let report = report(&options).unwrap();
        assert!(report.verdict.unwrap().proved, "{model}");
    }
}
