//! No clock, host or tenant can take the service down.

use super::*;
use crate::reconcile::decide_by;
use crate::state::decision::Change;
use crate::state::snapshot::{RunTimes, Snapshot};
use k8s_openapi::jiff::SignedDuration;

/// The speed that `node` reports.
fn report(snapshot: &mut Snapshot, node: &str, gflops: f64) {
    let node = Arc::make_mut(snapshot.compute_nodes.get_mut(node).unwrap());
    let status = node.status.as_mut().unwrap();
    status.capacity.as_mut().unwrap().gflops = gflops;
}

fn said(bench: &Bench, node: &str) -> (String, String) {
    let status = bench.snapshot.compute_nodes[node].status.as_ref().unwrap();
    let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_clock_that_goes_back_freezes_nothing() {
    let mut bench = Bench::serving();
    bench.snapshot.wall -= SignedDuration::from_secs(600);
    bench.lose("cloud-1");
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    assert_eq!(bench.condition(SERVING).0, "True");
    // Measurements of the new path count after the usual time.
    let uid = bench.placement().metadata.uid.clone().unwrap();
    let requests = crate::state::snapshot::RequestView {
        revision: bench.status().active_revision,
        answered: 60,
        answered_per_second: 1.0,
        latency_p50_seconds: 0.1,
        latency_p95_seconds: 0.2,
        rows: 1.0,
    };
    bench.snapshot.requests.insert(uid, requests);
    bench.snapshot.wall -= SignedDuration::from_secs(600);
    bench.run(12);
    assert!(bench.status().history[0].measured_after_ms.is_some());
    // A failure is retried after its pause.
    let mut bench = Bench::new();
    bench.look();
    bench.end_prepare(failed(reasons::FETCH_FAILED, true));
    bench.look();
    assert!(bench.snapshot.prepares.is_empty());
    bench.snapshot.wall -= SignedDuration::from_secs(600);
    bench.run(7);
    assert_eq!(bench.snapshot.prepares.len(), 1);
}

#[test]
fn a_host_that_reports_the_impossible_is_left_out_alone_and_named() {
    for gflops in [1e-320, 0.0, -3.0, 1e300, f64::INFINITY, f64::NAN] {
        let mut bench = Bench::serving();
        report(&mut bench.snapshot, "cloud-1", gflops);
        bench.run(20);
        assert_eq!(bench.status().path, "edge-1[0-3]", "{gflops}");
        assert_eq!(ready(&bench), is("True", "Serving"), "{gflops}");
        let (reason, message) = said(&bench, "cloud-1");
        assert_eq!(reason, reasons::IMPOSSIBLE_REPORT);
        assert!(
            message.contains("GFLOP/s, which no host of these"),
            "{message}"
        );
        let told = bench.reasons().into_iter();
        let told = told.filter(|r| *r == reasons::IMPOSSIBLE_REPORT);
        assert_eq!(told.count(), 1, "told once");
        bench.expect_fixpoint();
        // Nor does it prepare, although it reports the highest speed.
        let mut bench = Bench::new();
        report(&mut bench.snapshot, "cloud-1", gflops);
        assert_eq!(bench.look().prepares[0].node, "edge-1", "{gflops}");
        // Once corrected, it is treated like any other.
        report(&mut bench.snapshot, "cloud-1", 40.0);
        bench.run(1);
        assert_eq!(said(&bench, "cloud-1").0, "Connected");
    }
}

#[test]
fn a_host_is_no_faster_than_the_processors_of_its_node_can_be() {
    let sized = |snapshot: &mut Snapshot, cpu: &str| {
        let node = Arc::make_mut(&mut snapshot.nodes.get_mut("cloud-1").unwrap().0);
        let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(cpu.into());
        let status = node.status.get_or_insert_default();
        status.capacity = Some([("cpu".to_owned(), quantity)].into());
    };
    for (cpu, gflops, expected) in [
        ("4", 2049.0, reasons::IMPOSSIBLE_REPORT),
        ("4", 2047.0, "Connected"),
        // A part of a processor may burst.
        ("250m", 513.0, reasons::IMPOSSIBLE_REPORT),
        ("250m", 511.0, "Connected"),
        // A malformed quantity is ignored.
        ("many", 9e5, "Connected"),
        ("0", 9e5, "Connected"),
    ] {
        let mut bench = Bench::serving();
        sized(&mut bench.snapshot, cpu);
        report(&mut bench.snapshot, "cloud-1", gflops);
        bench.run(20);
        assert_eq!(said(&bench, "cloud-1").0, expected, "{gflops} on {cpu}");
        let stays = bench.status().path == "cloud-1[0-3]";
        assert_eq!(stays, expected == "Connected", "{gflops} on {cpu}");
    }
}

#[test]
fn an_address_that_is_not_the_pods_is_believed_from_nobody() {
    let mut bench = Bench::serving();
    let mut node = bench.snapshot.compute_nodes["cloud-1"].as_ref().clone();
    node.status.as_mut().unwrap().address = "10.0.0.66:8001".into();
    bench
        .snapshot
        .compute_nodes
        .insert("cloud-1".into(), Arc::new(node));
    // The operator was restarted, and its agent has not reconnected yet.
    bench.snapshot.live.remove("cloud-1");
    assert_eq!(bench.snapshot.address("cloud-1"), None);
    let ips = |ip: &str| [ip.parse().unwrap()].into();
    let known = &mut bench.snapshot.agent_ips;
    known.insert("cloud-1".into(), ips("10.0.0.7"));
    assert_eq!(bench.snapshot.address("cloud-1"), None);
    let known = &mut bench.snapshot.agent_ips;
    known.insert("cloud-1".into(), ips("10.0.0.66"));
    assert_eq!(bench.snapshot.address("cloud-1"), Some("10.0.0.66:8001"));
}

#[test]
fn a_link_that_is_said_to_be_impossible_is_left_out_alone() {
    for (rtt, rate) in [
        (f64::NAN, 1e6),
        (0.01, 1e-320),
        (0.01, f64::INFINITY),
        (1e300, 1e6),
    ] {
        let mut bench = Bench::serving();
        change_links(&mut bench.snapshot.links, |from, to, view| {
            if (from, to) == ("cam-1", "cloud-1") {
                (view.rtt_seconds, view.bytes_per_second) = (Some(rtt), Some(rate));
            }
        });
        bench.run(20);
        // It does not count as a change: the path stays, as with a silent link.
        assert_eq!(bench.status().path, "cloud-1[0-3]", "{rtt} {rate}");
        assert_eq!(ready(&bench), is("True", "Serving"), "{rtt} {rate}");
    }
}

#[test]
fn a_time_that_no_run_takes_makes_no_question_invalid() {
    let mut bench = Bench::serving();
    let uid = bench.placement().metadata.uid.clone().unwrap();
    for seconds in [1e300, 1e-320, f64::INFINITY, f64::NAN] {
        let times = RunTimes {
            request_seconds: seconds,
            row_seconds: seconds,
        };
        bench.snapshot.timings.insert((uid.clone(), 1, 0), times);
        bench.run(3);
        bench.lose("cloud-1");
        bench.run(8);
        assert_eq!(bench.status().path, "edge-1[0-3]", "{seconds}");
        bench.snapshot.live.get_mut("cloud-1").unwrap().alive = true;
        bench = Bench::serving();
    }
}

#[test]
fn the_secrets_of_a_source_are_shown_nowhere() {
    let mut bench = Bench::new();
    bench.edit(|m| {
        m.spec.source.uri = "https://me:hidden@files/m.pt?sig=hidden".into();
        m.spec.samples = Some(lamina_crds::dnn_model::Samples {
            uri: "https://me:hidden@files/samples?sig=hidden".into(),
            sha256: "a".repeat(64),
        });
    });
    bench.look();
    bench.end_prepare(|node| PrepareView::Failed {
        node,
        reason: reasons::FETCH_FAILED.to_owned(),
        message: "https://me:hidden@files/m.pt?sig=hidden: 404 Not Found".to_owned(),
        retryable: true,
    });
    bench.run(8);
    bench.finish_prepare();
    bench.run(20);
    assert_eq!(bench.stage(), "Serving");
    let status = serde_json::to_string(&bench.model().status).unwrap();
    assert!(status.contains("https://files/m.pt?…"), "{status}");
    let told = format!("{:?}", bench.told);
    assert!(
        told.contains("https://files/m.pt?…: 404 Not Found"),
        "{told}"
    );
    for shown in [status, told] {
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

/// A reconcile whose decision about `uid` fails at the very end.
fn look_that_breaks_off(bench: &mut Bench, uid: &str) {
    let uid = uid.to_owned();
    let decisions = decide_by(
        &bench.snapshot,
        &mut bench.memory,
        &move |look, model, memory| {
            look.model(model, memory);
            assert!(
                model.metadata.uid.as_ref() != Some(&uid),
                "as a test wants it"
            );
        },
    );
    bench.carry_out(decisions);
}

#[test]
fn a_model_about_which_deciding_breaks_off_costs_others_nothing_and_serves_on() {
    let mut bench = Bench::serving();
    // Another one arrives while the first fails.
    let mut other = model();
    other.metadata.name = Some("other".into());
    other.metadata.uid = Some("other-uid".into());
    bench.snapshot.models.push(Arc::new(other));
    let held = |bench: &Bench, node: &str| bench.snapshot.compute_nodes[node].spec.slices.clone();
    let before = held(&bench, "cloud-1");
    let routes = bench.snapshot.compute_nodes["cam-1"].spec.routes.clone();
    for _ in 0..5 {
        look_that_breaks_off(&mut bench, MODEL_UID);
        bench.pass(1000);
    }
    let (status, reason, message) = bench.condition(READY);
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::DECISION_FAILED)
    );
    assert!(message.contains("as a test wants it"), "{message}");
    assert_eq!(held(&bench, "cloud-1"), before);
    assert_eq!(bench.snapshot.compute_nodes["cam-1"].spec.routes, routes);
    assert_eq!(bench.snapshot.placements.len(), 1);
    let told = bench
        .told
        .iter()
        .filter(|n| n.reason == reasons::DECISION_FAILED);
    assert_eq!(told.count(), 1);
    let is_prepared = |job: &JobId| job.model_uid == "other-uid";
    assert!(
        bench.snapshot.prepares.keys().any(is_prepared),
        "the other one is prepared"
    );
    // Once the bug no longer occurs, it continues as before.
    bench.pass(31_000);
    bench.run(10);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.status().active_revision, 1);
}

#[test]
fn a_model_that_was_set_aside_is_tried_at_once_with_another_spec() {
    let mut bench = Bench::serving();
    look_that_breaks_off(&mut bench, MODEL_UID);
    bench.look();
    assert_eq!(ready(&bench), is("False", reasons::DECISION_FAILED));
    bench.edit(|model| model.spec.adaptation.horizon_seconds = 3600);
    bench.run(5);
    assert_eq!(ready(&bench), is("True", "Serving"));
}

#[test]
fn a_host_that_cannot_do_what_it_is_told_is_not_ready() {
    let mut bench = Bench::serving();
    let trouble = |bench: &mut Bench, is: bool| {
        let node = bench.snapshot.compute_nodes.get_mut("cloud-1").unwrap();
        let status = Arc::make_mut(node).status.as_mut().unwrap();
        let reason = if is { "SpecNotFollowed" } else { "Registered" };
        let new = lamina_crds::conditions::condition(
            lamina_crds::conditions::REGISTERED,
            !is,
            reason,
            "the disk is full",
            None,
            some_time(),
        );
        lamina_crds::conditions::set(&mut status.conditions, new);
    };
    trouble(&mut bench, true);
    bench.run(2);
    let expected = ("SpecNotFollowed".to_owned(), "the disk is full".to_owned());
    assert_eq!(said(&bench, "cloud-1"), expected);
    trouble(&mut bench, false);
    bench.run(2);
    assert_eq!(said(&bench, "cloud-1").0, "Connected");
}

fn some_time() -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1))
}

#[test]
fn a_placement_that_only_names_a_models_uid_stands_in_for_none_of_its_own() {
    let mut bench = Bench::serving();
    let copy = |bench: &Bench, uid: &str| {
        let mut copy = bench.placement().clone();
        copy.metadata.uid = Some(uid.into());
        copy.metadata.name = Some(uid.into());
        // Nothing serves, according to it.
        copy.status = None;
        copy
    };
    let nodes = |bench: &Bench| -> Vec<_> {
        let nodes = bench.snapshot.compute_nodes.values();
        nodes.map(|node| node.spec.clone()).collect()
    };
    let before = nodes(&bench);
    let mut foreign = copy(&bench, "foreign");
    foreign.metadata.namespace = Some("mallory".into());
    // The last one of a model and an entry would count.
    bench.snapshot.placements.push(Arc::new(foreign));
    let decisions = bench.look();
    let [only] = &decisions.writes[..] else {
        panic!("{:?}", decisions.writes);
    };
    assert!(
        matches!(&only.change, Change::DeletePlacement { id } if id.uid == "foreign"),
        "{only:?}"
    );
    // One that belongs to an object of another kind is none of the operator's.
    for (group, kind) in [("others.dev", "DnnModel"), (lamina_crds::GROUP, "Other")] {
        let mut others = copy(&bench, "others");
        let owner = &mut others.metadata.owner_references.as_mut().unwrap()[0];
        owner.api_version = format!("{group}/v1alpha1");
        owner.kind = kind.into();
        bench.snapshot.placements.push(Arc::new(others));
        let decisions = bench.look();
        assert!(decisions.writes.is_empty(), "{:?}", decisions.writes);
        bench.snapshot.placements.pop();
    }
    bench.run(5);
    assert_eq!(nodes(&bench), before);
    assert_eq!(ready(&bench), is("True", "Serving"));
}
