//! Whole stories, from an applied model to the state of its hosts.

mod joined;
mod trust;
mod wishes;

use crate::state::ids::JobId;
use crate::state::links::Links;
use crate::state::snapshot::PrepareView;
use crate::testing::{Bench, MODEL_UID, at, change_links, model};
use lamina_crds::conditions::{
    DEPLOYED, FETCHED, PROFILED, READY, RECONCILING, SERVING, SLICED, STALLED, is_true,
};
use lamina_crds::dnn_model::{AdaptationPolicy, SliceMemory};
use lamina_crds::{Hop, reasons};
use std::sync::Arc;

fn failed(reason: &str, retryable: bool) -> impl Fn(String) -> PrepareView {
    move |node| PrepareView::Failed {
        node,
        reason: reason.to_owned(),
        message: "http://files/model.pt: 404 Not Found".to_owned(),
        retryable,
    }
}

fn ready(bench: &Bench) -> (String, String) {
    let (status, reason, _) = bench.condition(READY);
    (status, reason)
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_model_is_prepared_placed_loaded_verified_and_serves() {
    let mut bench = Bench::new();
    let first = bench.look();
    assert_eq!(first.prepares[0].node, "cloud-1", "the fastest prepares");
    assert_eq!(bench.stage(), "Fetching");
    bench.expect_fixpoint();
    bench.end_prepare(|node| PrepareView::Running {
        node,
        step: "Slicing".into(),
        done: 3,
        total: 4,
        bytes: false,
    });
    bench.pass(1000);
    bench.look();
    let status = bench.model().status.clone().unwrap();
    assert_eq!(
        (
            status.stage.as_str(),
            status.progress.unwrap().text.as_str()
        ),
        ("Slicing", "3/4")
    );
    assert!(is_true(&status.conditions, FETCHED) && !is_true(&status.conditions, SLICED));
    bench.finish_prepare();
    let mut stages = Vec::new();
    for _ in 0..12 {
        bench.look();
        if stages.last().map(String::as_str) != Some(bench.stage()) {
            stages.push(bench.stage().to_owned());
        }
        bench.agents();
        bench.pass(200);
    }
    assert_eq!(stages, ["Solving", "Deploying", "Verifying", "Serving"]);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    assert_eq!(bench.status().active_revision, 1);
    assert_eq!(ready(&bench), is("True", "Serving"));
    let told: Vec<&str> = bench.reasons();
    let expected = [
        reasons::MODEL_FETCHED,
        reasons::MODEL_SLICED,
        reasons::MODEL_PROFILED,
        reasons::PLACEMENT_SOLVED,
        reasons::REDEPLOY_COMPLETED,
    ];
    assert_eq!(told, expected);
    assert!(bench.snapshot.prepares.is_empty(), "the job is done with");
    bench.expect_fixpoint();
    let routes = |node: &str| bench.snapshot.compute_nodes[node].spec.routes.clone();
    let route = &routes("cam-1")[0];
    assert_eq!(route.revisions[0].path, "cloud-1[0-3]");
    assert_eq!(route.revisions[0].inputs[0].name, "x");
    assert!(
        routes("edge-1").is_empty(),
        "routes lie where requests enter"
    );
}

#[test]
fn a_slow_link_moves_blocks_once_and_says_what_it_brought() {
    let mut bench = Bench::serving();
    bench.links_of("cam-1", 1e4);
    let mut seen_deployed_on_the_way = false;
    for _ in 0..40 {
        bench.look();
        let status = bench.status();
        seen_deployed_on_the_way |=
            status.target_revision > 0 && is_true(&status.conditions, DEPLOYED);
        if status.target_revision > 0 {
            assert_eq!(
                ready(&bench),
                is("True", "Serving"),
                "it serves all the while"
            );
        }
        bench.agents();
        bench.pass(250);
    }
    assert!(seen_deployed_on_the_way);
    let status = bench.status();
    assert_eq!((status.path.as_str(), status.redeploys), ("cam-1[0-3]", 1));
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(
        note.starts_with(
            "cam-1→cloud-1 100→0.08 Mbit/s; moving blocks 0..3 from cloud-1 to cam-1 (est. "
        ),
        "{note}"
    );
    assert!(!bench.note(reasons::LINK_DEGRADED).is_empty());
    let note = bench.note(reasons::REDEPLOY_COMPLETED);
    let phases = ["decided", "fetched", "loaded", "verified", "flipped"];
    for phase in phases {
        assert!(note.contains(&format!("{phase} in ")), "{note}");
    }
    let digest = &bench.model().status.as_ref().unwrap().history;
    assert!(
        digest[0].summary.contains("cloud-1[0-3] → cam-1[0-3]"),
        "{digest:?}"
    );
    let history = bench.status().history;
    assert_eq!(history.len(), 1);
    assert!(history[0].took.is_some());
    assert_eq!(
        (history[0].from.as_str(), history[0].to.as_str()),
        ("cloud-1[0-3]", "cam-1[0-3]")
    );
    assert!(history[0].estimated_before_ms > history[0].estimated_after_ms);
    assert!(
        bench.snapshot.compute_nodes["cloud-1"]
            .spec
            .slices
            .is_empty(),
        "the old slice goes"
    );
    bench.expect_fixpoint();
    bench.run(60);
    assert_eq!(bench.status().redeploys, 1, "once is enough");
}

#[test]
fn a_move_that_does_not_pay_is_told_once() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.adaptation.horizon_seconds = 60);
    bench.run(5);
    bench.links_of("cam-1", 1e4);
    bench.run(60);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    let told = bench.reasons().into_iter();
    let told = told.filter(|r| *r == reasons::REDEPLOY_SUPPRESSED).count();
    assert_eq!(told, 1, "{:?}", bench.told);
    let note = bench.note(reasons::REDEPLOY_SUPPRESSED);
    assert!(
        note.starts_with("cam-1[") && note.contains(" would take "),
        "{note}"
    );
    bench.expect_fixpoint();
}

#[test]
fn moves_for_a_gain_respect_the_policy() {
    for change in [
        (|m| m.spec.adaptation.policy = AdaptationPolicy::Never) as fn(&mut lamina_crds::DnnModel),
        |m| m.spec.adaptation.paused = true,
    ] {
        let mut bench = Bench::serving();
        bench.edit(change);
        bench.run(5);
        bench.links_of("cam-1", 1e4);
        bench.run(30);
        assert_eq!(bench.status().path, "cloud-1[0-3]");
        bench.expect_fixpoint();
    }
}

#[test]
fn blocks_leave_a_lost_host_and_people_hear_of_it() {
    let mut bench = Bench::serving();
    bench.lose("cloud-1");
    bench.look();
    assert_eq!(ready(&bench), is("False", reasons::NODE_LOST));
    bench.run(6);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    assert_eq!(ready(&bench), is("True", "Serving"));
    let lost = bench
        .told
        .iter()
        .find(|n| n.reason == reasons::NODE_LOST)
        .unwrap();
    assert_eq!((lost.regarding.kind, lost.warning), ("ComputeNode", true));
    assert!(lost.note.contains("cloud-1"), "{}", lost.note);
    assert!(
        bench
            .note(reasons::REDEPLOY_STARTED)
            .starts_with("cloud-1 is lost; ")
    );
    bench.expect_fixpoint();
    bench.snapshot.live.get_mut("cloud-1").unwrap().alive = true;
    bench.run(30);
    assert!(bench.reasons().contains(&reasons::NODE_RECOVERED));
    assert_eq!(
        bench.status().path,
        "cloud-1[0-3]",
        "it comes back when that pays"
    );
    bench.expect_fixpoint();
}

#[test]
fn a_lost_entry_is_told_and_serves_again_when_it_is_back() {
    let mut bench = Bench::serving();
    bench.lose("cam-1");
    bench.run(3);
    assert_eq!(ready(&bench), is("False", reasons::NODE_LOST));
    bench.expect_fixpoint();
    bench.snapshot.live.get_mut("cam-1").unwrap().alive = true;
    bench.run(2);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.status().active_revision, 1);
}

#[test]
fn a_host_that_cannot_load_is_passed_over() {
    let mut bench = Bench::new();
    bench.broken.insert("cloud-1".into());
    bench.look();
    bench.finish_prepare();
    bench.run(10);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    assert_eq!(
        (
            bench.status().failed_revision,
            bench.status().active_revision
        ),
        (1, 2)
    );
    let note = bench.note(reasons::SEGMENT_LOAD_FAILED);
    assert_eq!(
        note,
        "revision 1: cloud-1 cannot load blocks 0-3: out of memory; nothing serves yet"
    );
    bench.expect_fixpoint();
}

#[test]
fn a_wrong_probe_leaves_the_old_revision_serving() {
    let mut bench = Bench::serving();
    bench.probe_passes = false;
    bench.links_of("cam-1", 1e4);
    bench.run(20);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    assert_eq!(bench.status().failed_revision, 2);
    assert_eq!(ready(&bench), is("True", "Serving"));
    let note = bench.note(reasons::VERIFY_FAILED);
    assert!(
        note.contains("differs by 0.1") && note.contains("revision 1 keeps serving"),
        "{note}"
    );
    bench.expect_fixpoint();
    bench.probe_passes = true;
    bench.run(70);
    assert_eq!(
        bench.status().path,
        "cam-1[0-3]",
        "it is tried again after a while"
    );
}

#[test]
fn an_operator_that_is_killed_at_any_step_goes_on_where_it_was() {
    for step in 0..24 {
        let mut bench = Bench::serving();
        bench.links_of("cam-1", 1e4);
        for now in 0..200 {
            if now == step {
                bench.restart();
            }
            bench.look();
            if now % 2 == 1 {
                bench.agents();
            }
            bench.pass(250);
        }
        let status = bench.status();
        assert_eq!(
            (
                status.path.as_str(),
                status.active_revision,
                status.redeploys
            ),
            ("cam-1[0-3]", 2, 1),
            "killed at step {step}"
        );
        assert_eq!(ready(&bench), is("True", "Serving"));
        bench.expect_fixpoint();
    }
}

#[test]
fn an_operator_killed_before_the_first_plan_serves_without_delay() {
    for step in 0..12 {
        let mut bench = Bench::new();
        bench.look();
        bench.finish_prepare();
        for now in 0..60 {
            if now == step {
                bench.restart();
                // Jobs live in the operator that started them.
                bench.snapshot.prepares.clear();
            }
            bench.look();
            let is_preparing = bench
                .snapshot
                .prepares
                .values()
                .any(|p| matches!(p, PrepareView::Running { .. }));
            if is_preparing {
                bench.finish_prepare();
            }
            bench.agents();
            bench.pass(250);
        }
        assert_eq!(bench.status().path, "cloud-1[0-3]", "killed at step {step}");
        bench.expect_fixpoint();
    }
}

#[test]
fn a_restart_with_an_empty_store_serves_on_and_prepares_anew() {
    let mut bench = Bench::serving();
    let slices = bench.snapshot.compute_nodes["cloud-1"].spec.slices.clone();
    bench.restart();
    bench.snapshot.manifests.clear();
    let looked = bench.look();
    assert_eq!(looked.prepares, [], "hosts may hold the blocks");
    bench.pass(13_000);
    let looked = bench.look();
    assert_eq!(looked.prepares.len(), 1);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.snapshot.compute_nodes["cloud-1"].spec.slices, slices);
    bench.finish_prepare();
    bench.run(20);
    assert_eq!(bench.status().active_revision, 1, "nothing moved");
    bench.expect_fixpoint();
}

#[test]
fn silence_right_after_a_restart_is_no_loss() {
    let mut bench = Bench::serving();
    bench.restart();
    for node in ["cam-1", "cloud-1", "edge-1"] {
        bench.lose(node);
    }
    bench.run(8);
    assert_eq!(ready(&bench), is("Unknown", "NotConnected"));
    for node in ["cam-1", "cloud-1", "edge-1"] {
        bench.snapshot.live.get_mut(node).unwrap().alive = true;
    }
    bench.run(20);
    assert_eq!(
        (bench.reasons(), bench.status().active_revision),
        (Vec::new(), 1)
    );
}

#[test]
fn a_changed_spec_moves_what_it_no_longer_allows() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.constraints.keep_on_entry = 2);
    bench.run(6);
    assert_eq!(bench.status().path, "cam-1[0-1]→cloud-1[2-3]");
    let status = bench.model().status.clone().unwrap();
    assert_eq!(status.observed_generation, 2);
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(note.starts_with("the spec no longer allows it: "), "{note}");
    bench.expect_fixpoint();
}

#[test]
fn a_deleted_model_leaves_nothing_and_applied_again_it_starts_anew() {
    let mut bench = Bench::serving();
    bench.snapshot.models.clear();
    bench.look();
    assert!(bench.snapshot.placements.is_empty());
    for node in bench.snapshot.compute_nodes.values() {
        assert!(node.spec.slices.is_empty() && node.spec.routes.is_empty());
    }
    bench.expect_fixpoint();
    assert!(bench.memory.models.is_empty() && bench.memory.placements.is_empty());
    let mut again = model();
    again.metadata.uid = Some("another-uid".into());
    bench.snapshot.models.push(Arc::new(again));
    bench.look();
    bench.finish_prepare();
    bench.run(10);
    assert_eq!(bench.stage(), "Serving");
    assert_eq!(
        bench.placement().metadata.uid.as_deref(),
        Some("placement-2")
    );
    assert_eq!(bench.status().active_revision, 1);
    bench.expect_fixpoint();
}

#[test]
fn a_model_applied_again_waits_for_the_name_of_its_placement() {
    let mut bench = Bench::serving();
    let old = Arc::clone(&bench.snapshot.placements[0]);
    let mut again = model();
    again.metadata.uid = Some("another-uid".into());
    bench.snapshot.models = vec![Arc::new(again)];
    bench.look();
    bench.finish_prepare();
    // The API server has not removed it yet.
    bench.snapshot.placements = vec![old];
    let looked = bench.look();
    assert!(bench.snapshot.placements.is_empty(), "{:?}", looked.writes);
    assert_eq!(ready(&bench).0, "False");
    bench.run(10);
    assert_eq!(bench.stage(), "Serving");
}

#[test]
fn preparing_stops_with_its_model() {
    let mut bench = Bench::new();
    bench.look();
    assert!(
        bench
            .snapshot
            .prepares
            .keys()
            .all(|job: &JobId| job.model_uid == MODEL_UID)
    );
    bench.snapshot.models.clear();
    bench.look();
    assert!(bench.snapshot.prepares.is_empty());
}

#[test]
fn a_source_that_is_not_there_is_tried_again_later_and_elsewhere() {
    let mut bench = Bench::new();
    bench.look();
    bench.end_prepare(failed(reasons::FETCH_FAILED, true));
    bench.look();
    assert_eq!(ready(&bench), is("False", reasons::FETCH_FAILED));
    let (_, _, message) = bench.condition(READY);
    assert!(
        message.contains("404") && message.contains("; next attempt at "),
        "{message}"
    );
    assert_eq!(bench.condition(FETCHED).1, reasons::FETCH_FAILED);
    assert_eq!(bench.condition(RECONCILING).0, "True");
    assert_eq!(bench.reasons(), [reasons::FETCH_FAILED]);
    assert_eq!(bench.stage(), "Failed");
    bench.pass(2000);
    bench.expect_fixpoint();
    bench.pass(4000);
    let looked = bench.look();
    assert_eq!(looked.prepares[0].node, "edge-1");
    bench.finish_prepare();
    bench.run(10);
    assert_eq!(bench.stage(), "Serving");
    let failure = bench.model().status.as_ref().unwrap().last_failure.clone();
    assert_eq!(failure.unwrap().reason, reasons::FETCH_FAILED);
}

#[test]
fn what_only_another_spec_can_help_is_told_once_and_stalls() {
    for reason in [
        reasons::CHECKSUM_MISMATCH,
        reasons::INVALID_MODEL,
        reasons::INPUT_MISMATCH,
    ] {
        let mut bench = Bench::new();
        bench.look();
        bench.end_prepare(failed(reason, false));
        bench.run(30);
        assert_eq!(ready(&bench), is("False", reason));
        assert_eq!(
            (bench.condition(STALLED).0, bench.reasons()),
            ("True".to_owned(), vec![reason])
        );
        let looked = bench.look();
        let told = &looked.directory[&("default".to_owned(), "net".to_owned())];
        assert!(told.reason.starts_with(&format!("failed: {reason}: ")));
        assert!(!told.coming, "nobody waits for it");
        bench.expect_fixpoint();
        bench.edit(|m| m.spec.source.uri.push('2'));
        bench.look();
        bench.finish_prepare();
        bench.run(10);
        assert_eq!(
            (bench.stage(), bench.condition(STALLED).0.as_str()),
            ("Serving", "False")
        );
    }
}

#[test]
fn a_broken_update_leaves_the_last_good_one_serving() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.source.uri = "http://files/nowhere.pt".into());
    bench.look();
    bench.end_prepare(failed(reasons::FETCH_FAILED, true));
    bench.look();
    let (status, reason, message) = bench.condition(FETCHED);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::FETCH_FAILED)
    );
    assert!(message.contains("404"), "{message}");
    assert_eq!(bench.condition(SERVING).0, "True");
    let (status, reason, message) = bench.condition(READY);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::FETCH_FAILED)
    );
    assert!(
        message.ends_with("; the last good placement keeps serving"),
        "{message}"
    );
    assert!(
        !bench.snapshot.compute_nodes["cloud-1"]
            .spec
            .slices
            .is_empty()
    );
    bench.edit(|m| m.spec.source.uri = "http://files/model.pt".into());
    bench.run(3);
    assert_eq!(
        (bench.stage(), bench.status().active_revision),
        ("Serving", 1)
    );
    assert_eq!(bench.condition(PROFILED).0, "True");
    bench.expect_fixpoint();
}

#[test]
fn a_host_is_left_though_an_update_is_broken() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.source.uri = "http://files/nowhere.pt".into());
    bench.look();
    bench.end_prepare(failed(reasons::FETCH_FAILED, false));
    bench.run(2);
    bench.lose("cloud-1");
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
}

#[test]
fn an_entry_that_no_node_is_can_be_corrected() {
    let mut bench = Bench::new();
    bench.edit(|m| {
        let selector = &mut m.spec.entry.node_selector;
        selector.insert("kubernetes.io/hostname".into(), "cam-9".into());
    });
    bench.look();
    bench.finish_prepare();
    bench.run(3);
    let (status, reason, message) = bench.condition(READY);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::NO_ENTRY_NODE)
    );
    assert!(message.contains("cam-9"), "{message}");
    let told = bench
        .reasons()
        .into_iter()
        .filter(|r| *r == reasons::NO_ENTRY_NODE);
    assert_eq!(told.count(), 1);
    bench.expect_fixpoint();
}

#[test]
fn an_unknown_strategy_is_named_with_the_known_ones() {
    let mut bench = Bench::new();
    bench.edit(|m| m.spec.strategy.name = "oracle".into());
    bench.run(3);
    let (status, reason, message) = bench.condition(READY);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::INVALID_SPEC)
    );
    for word in ["oracle", "optimal", "cloud-only"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(bench.reasons(), [reasons::INVALID_SPEC]);
    assert_eq!(bench.condition(STALLED).0, "True");
    bench.expect_fixpoint();
}

#[test]
fn hosts_that_are_all_too_small_are_counted() {
    let mut bench = Bench::new();
    bench.edit(|m| {
        m.spec.constraints.slice_memory = ["device", "edge", "cloud"]
            .map(|tier| SliceMemory {
                tier: tier.into(),
                limit: "100k".into(),
            })
            .to_vec();
    });
    bench.look();
    bench.finish_prepare();
    bench.run(30);
    let (status, reason, message) = bench.condition(READY);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::NO_FEASIBLE_PLACEMENT)
    );
    assert!(
        message.starts_with("0/3 nodes can host blocks 0..3"),
        "{message}"
    );
    let told = bench
        .reasons()
        .into_iter()
        .filter(|r| *r == reasons::NO_FEASIBLE_PLACEMENT);
    assert_eq!(told.count(), 1);
    bench.expect_fixpoint();
    bench.edit(|m| m.spec.constraints.slice_memory.clear());
    bench.run(12);
    assert_eq!(bench.stage(), "Serving");
}

#[test]
fn the_first_plan_waits_for_links_but_not_for_ever() {
    let mut bench = Bench::new();
    let links = std::mem::take(&mut bench.snapshot.links);
    bench.look();
    bench.finish_prepare();
    bench.run(3);
    assert_eq!(
        (bench.stage(), bench.status().target_revision),
        ("Solving", 0)
    );
    let (_, reason, message) = bench.condition(READY);
    assert_eq!(reason, "WaitingForMeasurements", "{message}");
    bench.expect_fixpoint();
    bench.snapshot.links = links;
    bench.look();
    assert_eq!(bench.placement().spec.plan.as_ref().unwrap().revision, 1);
    let mut bench = Bench::new();
    bench.snapshot.links = Links::default();
    bench.look();
    bench.finish_prepare();
    bench.run(20);
    assert_eq!(
        bench.status().path,
        "cam-1[0-3]",
        "nothing else can be reached"
    );
}

#[test]
fn the_first_plan_over_links_that_nobody_measured_waits_for_seconds_only() {
    let mut bench = Bench::new();
    change_links(&mut bench.snapshot.links, |_, _, view| {
        view.estimated = true;
    });
    bench.look();
    bench.finish_prepare();
    bench.run(6);
    assert_eq!(bench.placement().spec.plan.as_ref().unwrap().revision, 1);
}

#[test]
fn a_host_with_a_new_address_is_reached_there() {
    let mut bench = Bench::serving();
    bench.snapshot.live.get_mut("cloud-1").unwrap().address = "10.9.9.9:8001".into();
    bench.run(6);
    let active = bench.status().active.unwrap();
    let host = Hop {
        node: "cloud-1".into(),
        address: "10.9.9.9:8001".into(),
    };
    assert_eq!((active.revision, &active.segments[0].host), (2, &host));
    bench.expect_fixpoint();
}

#[test]
fn the_last_word_of_a_redeploy_is_measured() {
    let mut bench = Bench::serving();
    bench.links_of("cam-1", 1e4);
    bench.run(10);
    let uid = bench.placement().metadata.uid.clone().unwrap();
    let requests = crate::state::snapshot::RequestView {
        revision: 2,
        answered: 30,
        answered_per_second: 1.0,
        latency_p50_seconds: 0.1712,
        latency_p95_seconds: 0.2,
        rows: 1.0,
    };
    bench.snapshot.requests.insert(uid, requests);
    bench.run(20);
    let history = bench.status().history;
    assert_eq!(history[0].measured_after_ms, Some(171.2));
    assert_eq!(bench.status().measured, "171ms");
    assert!(history[0].time.0 > at(100));
    bench.expect_fixpoint();
}
