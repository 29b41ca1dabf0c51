//! The spec asked for and the spec in force, planned changes, and verdicts on moves.

use super::*;

/// Blocks that must stay on the camera, though no camera may hold so much.
fn unmeetable(m: &mut lamina_crds::DnnModel) {
    m.spec.constraints.keep_on_entry = 4;
    m.spec.constraints.slice_memory = vec![SliceMemory {
        tier: "device".into(),
        limit: "1M".into(),
    }];
}

#[test]
fn a_wish_that_nothing_meets_never_reads_as_ready() {
    let mut bench = Bench::serving();
    bench.edit(unmeetable);
    bench.look();
    assert_eq!(bench.condition(READY).0, "False", "at once");
    bench.run(8);
    let (status, reason, message) = bench.condition(READY);
    // Raw input must stay, and the active path would send it.
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::REQUESTS_REFUSED),
        "{message}"
    );
    assert_eq!(bench.condition(SERVING).0, "False");
    let refuse = || {
        bench.snapshot.compute_nodes["cam-1"].spec.routes[0]
            .refuse
            .clone()
    };
    let why = refuse().unwrap();
    assert!(
        why.contains("keepOnEntry is 4") && why.contains("cloud-1[0-3]"),
        "{why}"
    );
    assert_eq!(bench.note(reasons::REQUESTS_REFUSED), why);
    assert_eq!(bench.condition(RECONCILING).0, "True", "in progress");
    bench.run(40);
    assert_eq!(
        (
            bench.condition(RECONCILING).0.as_str(),
            bench.condition(STALLED).0.as_str()
        ),
        ("False", "True"),
        "then stalled"
    );
    bench.expect_fixpoint();
    // After the revert, it serves again as before.
    bench.edit(|m| m.spec.constraints = lamina_crds::dnn_model::Constraints::default());
    bench.run(8);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.condition(STALLED).0, "False");
    assert_eq!(
        bench.snapshot.compute_nodes["cam-1"].spec.routes[0].refuse,
        None
    );
}

#[test]
fn an_unmeetable_wish_that_protects_nothing_leaves_requests_alone_and_failover_armed() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        m.spec.constraints.slice_memory = ["device", "edge", "cloud"]
            .map(|tier| SliceMemory {
                tier: tier.into(),
                limit: "100k".into(),
            })
            .to_vec();
    });
    bench.run(8);
    assert_eq!(ready(&bench), is("False", reasons::NO_FEASIBLE_PLACEMENT));
    assert_eq!(bench.condition(SERVING).0, "True");
    assert_eq!(bench.status().model_generation, 1);
    bench.lose("cloud-1");
    bench.run(8);
    assert_eq!(
        bench.status().path,
        "edge-1[0-3]",
        "by the last wish that was met"
    );
    assert_eq!(bench.condition(SERVING).0, "True");
    assert_eq!(ready(&bench), is("False", reasons::NO_FEASIBLE_PLACEMENT));
}

#[test]
fn an_invalid_edit_leaves_failover_armed() {
    for restarts in [false, true] {
        let mut bench = Bench::serving();
        bench.edit(|m| m.spec.constraints.tiers = vec!["fog".into()]);
        bench.run(3);
        assert_eq!(ready(&bench), is("False", reasons::INVALID_SPEC));
        assert_eq!(bench.condition(SERVING).0, "True");
        if restarts {
            bench.restart();
            bench.run(14);
        }
        bench.lose("cloud-1");
        bench.run(8);
        assert_eq!(bench.status().path, "edge-1[0-3]");
        assert_eq!(bench.condition(SERVING).0, "True");
    }
}

#[test]
fn a_new_generation_is_ready_only_after_the_flip() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.constraints.keep_on_entry = 2);
    let generation = bench.model().metadata.generation;
    for _ in 0..60 {
        bench.look();
        let status = bench.model().status.clone().unwrap();
        let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
        if ready.status == "True" && ready.observed_generation == generation {
            assert_eq!(bench.status().path, "cam-1[0-1]→cloud-1[2-3]");
            let active = bench.status().active_revision;
            let told = &bench.snapshot.compute_nodes["cam-1"].spec.routes[0];
            assert_eq!(told.active_revision, active);
            return;
        }
        bench.agents();
        bench.pass(100);
    }
    panic!("never ready: {:?}", bench.model().status);
}

#[test]
fn a_cordoned_host_is_left_before_it_goes() {
    let mut bench = Bench::serving();
    let cordoned = crate::testing::node("cloud-1", "cloud", true);
    bench.snapshot.nodes.insert("cloud-1".into(), cordoned);
    let mut seen_both = false;
    for _ in 0..60 {
        bench.look();
        let held = |node: &str| bench.snapshot.compute_nodes[node].spec.slices.len();
        seen_both |= held("cloud-1") == 1 && held("edge-1") == 1;
        bench.agents();
        bench.pass(250);
    }
    assert!(seen_both, "make before break");
    assert_eq!(bench.status().path, "edge-1[0-3]");
    assert!(
        bench.snapshot.compute_nodes["cloud-1"]
            .spec
            .slices
            .is_empty()
    );
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(note.contains("cordoned"), "{note}");
    bench.expect_fixpoint();
}

#[test]
fn a_host_that_is_told_to_end_is_left_before_it_does() {
    let mut bench = Bench::serving();
    let leaving = bench.snapshot.live.get_mut("cloud-1").unwrap();
    leaving.leaving = true;
    let begin = bench.snapshot.now;
    while !bench.snapshot.compute_nodes["cloud-1"]
        .spec
        .slices
        .is_empty()
    {
        bench.look();
        bench.agents();
        bench.pass(250);
        // Agents wait for 15 s.
        assert!(bench.snapshot.seconds_since(begin) < 8.0);
    }
    assert_eq!(bench.status().path, "edge-1[0-3]");
    let note = bench.note(reasons::REDEPLOY_STARTED);
    assert!(note.contains("about to end"), "{note}");
}

#[test]
fn an_entry_that_moves_serves_at_the_new_place_before_the_old_one_goes() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        let selector = &mut m.spec.entry.node_selector;
        selector.insert("kubernetes.io/hostname".into(), "edge-1".into());
    });
    let serves = |bench: &Bench, entry: &str| {
        let mut all = bench.snapshot.placements.iter();
        all.any(|p| p.spec.entry == entry && p.status.as_ref().is_some_and(|s| s.active.is_some()))
    };
    for _ in 0..60 {
        let looked = bench.look();
        assert!(serves(&bench, "cam-1") || serves(&bench, "edge-1"));
        if !serves(&bench, "edge-1") {
            assert_eq!(bench.condition(READY).0, "False");
            let at = &looked.directory[&("default".to_owned(), "net".to_owned())];
            assert!(at.entries.iter().any(|e| e.node == "cam-1" && e.serves));
        }
        bench.agents();
        bench.pass(250);
    }
    assert!(serves(&bench, "edge-1") && !serves(&bench, "cam-1"));
    assert_eq!(ready(&bench), is("True", "Serving"));
    bench.expect_fixpoint();
}

#[test]
fn a_model_that_cannot_be_read_is_not_gone() {
    let mut bench = Bench::serving();
    let model = bench.snapshot.models.remove(0);
    let name = ("default".to_owned(), "net".to_owned());
    let what = crate::state::listed::Unreadable {
        uid: MODEL_UID.into(),
        error: "spec.constraints.keepOnEntry: invalid number".into(),
        status: None,
    };
    bench.snapshot.unreadable.insert(name, what);
    bench.run(5);
    let aside = bench.snapshot.unreadable.values().next().unwrap();
    let conditions = &aside.status.as_ref().unwrap().conditions;
    let said = conditions.iter().find(|c| c.type_ == READY).unwrap();
    assert_eq!(
        (said.status.as_str(), said.reason.as_str()),
        ("False", reasons::UNREADABLE)
    );
    assert!(said.message.starts_with("spec.constraints.keepOnEntry: "));
    assert_eq!(bench.snapshot.placements.len(), 1);
    assert_eq!(bench.snapshot.compute_nodes["cloud-1"].spec.slices.len(), 1);
    assert_eq!(bench.snapshot.compute_nodes["cam-1"].spec.routes.len(), 1);
    let note = bench.note(reasons::UNREADABLE);
    assert!(note.starts_with("spec.constraints.keepOnEntry: "), "{note}");
    assert_eq!(bench.reasons(), [reasons::UNREADABLE], "told once");
    bench.snapshot.unreadable.clear();
    bench.snapshot.models.push(model);
    bench.run(15);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.status().active_revision, 1);
}

#[test]
fn a_model_that_cannot_be_read_any_more_serves_on_says_so_and_fails_over() {
    let mut bench = Bench::serving();
    let name = ("default".to_owned(), "net".to_owned());
    let what = crate::state::listed::Unreadable {
        uid: MODEL_UID.into(),
        error: "spec.constraints.keepOnEntry: invalid number".into(),
        status: None,
    };
    // The last readable form still exists.
    bench.snapshot.unreadable.insert(name, what);
    bench.run(5);
    bench.expect_fixpoint();
    let held = |bench: &Bench, node: &str| bench.snapshot.compute_nodes[node].spec.slices.len();
    assert_eq!(held(&bench, "cloud-1"), 1, "each slice once");
    assert_eq!(ready(&bench), is("False", reasons::UNREADABLE));
    let (_, _, message) = bench.condition(READY);
    assert!(
        message.starts_with("spec.constraints.keepOnEntry: "),
        "{message}"
    );
    assert_eq!(bench.condition(SERVING).0, "True");
    assert_eq!(bench.condition(STALLED).0, "True");
    bench.lose("cloud-1");
    bench.run(8);
    assert_eq!(bench.status().path, "edge-1[0-3]");
    bench.snapshot.unreadable.clear();
    bench.run(5);
    assert_eq!(ready(&bench), is("True", "Serving"));
}

#[test]
fn a_redeploy_writes_the_hosts_of_both_paths_and_the_entry_alone() {
    let mut bench = Bench::serving();
    bench.lose("cloud-1");
    let mut written = std::collections::BTreeSet::new();
    for _ in 0..40 {
        for write in bench.look().writes {
            if let crate::state::decision::Change::ComputeNode { name, .. } = write.change {
                written.insert(name);
            }
        }
        bench.agents();
        bench.pass(250);
    }
    let expected = ["cam-1", "cloud-1", "edge-1"].map(str::to_owned);
    assert_eq!(written, expected.into());
    bench.snapshot.live.get_mut("cloud-1").unwrap().alive = true;
    bench.run(2);
    bench.links_of("edge-1", 1e5);
    let mut routes = Vec::new();
    for _ in 0..60 {
        bench.look();
        for (name, node) in &bench.snapshot.compute_nodes {
            routes.extend(node.spec.routes.iter().map(|_| name.clone()));
        }
        bench.agents();
        bench.pass(250);
    }
    assert!(
        routes.iter().all(|n| n == "cam-1"),
        "routes lie on the entry alone"
    );
}

#[test]
fn a_move_that_measures_worse_is_taken_back_and_left_alone() {
    let mut bench = Bench::serving();
    let uid = bench.placement().metadata.uid.clone().unwrap();
    let measured = |revision, p50| crate::state::snapshot::RequestView {
        revision,
        answered: 60,
        answered_per_second: 1.0,
        latency_p50_seconds: p50,
        latency_p95_seconds: p50 * 1.1,
        rows: 1.0,
    };
    bench
        .snapshot
        .requests
        .insert(uid.clone(), measured(1, 0.045));
    bench.links_of("cam-1", 1e4);
    bench.run(8);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    // The link was not slow after all, but the camera is ten times slower than reported.
    bench.links_of("cam-1", 12.5e6);
    bench
        .snapshot
        .requests
        .insert(uid.clone(), measured(2, 1.6));
    bench.edit(|m| m.spec.adaptation.policy = AdaptationPolicy::Never);
    bench.run(20);
    assert_eq!(
        bench.status().path,
        "cam-1[0-3]",
        "the first moments do not count"
    );
    bench.run(25);
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    let note = bench.note(reasons::ROLLED_BACK);
    assert!(
        note.starts_with("revision 2 measured 1.6s, where the path before would take "),
        "{note}"
    );
    assert!(note.ends_with("back to cloud-1[0-3]"), "{note}");
    bench.snapshot.requests.insert(uid, measured(3, 0.045));
    bench.links_of("cam-1", 1e4);
    bench.run(60);
    assert_ne!(bench.status().path, "cam-1[0-3]", "once is enough");
}

#[test]
fn large_batches_on_a_good_path_are_not_taken_for_a_bad_path() {
    let mut bench = Bench::serving();
    let uid = bench.placement().metadata.uid.clone().unwrap();
    let measured = |revision, row_p50, rows| crate::state::snapshot::RequestView {
        revision,
        answered: 60,
        answered_per_second: 1.0,
        latency_p50_seconds: row_p50 * rows,
        latency_p95_seconds: row_p50 * rows,
        rows,
    };
    let before = measured(1, 0.045, 32.0);
    bench.snapshot.requests.insert(uid.clone(), before);
    bench.links_of("cam-1", 1e4);
    bench.run(8);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    let estimate = bench.placement().spec.plan.as_ref().unwrap();
    let (seconds, replaced) = (
        estimate.estimated_latency_ms / 1e3,
        estimate.replaced_latency_ms.unwrap() / 1e3,
    );
    // Three times the old path's estimate is less than a batch takes on any path.
    assert!(replaced > 1.5 * seconds && 3.0 * replaced < 32.0 * seconds);
    let after = measured(2, seconds, 32.0);
    bench.snapshot.requests.insert(uid, after);
    bench.run(60);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    assert_eq!(bench.note(reasons::ROLLED_BACK), "");
}

#[test]
fn history_belongs_to_each_placement() {
    let mut bench = Bench::serving();
    bench.edit(|m| {
        m.spec.entry.node_selector = [(lamina_crds::TIER_LABEL.into(), "device".into())].into();
    });
    bench.run(3);
    for round in 0..3 {
        bench.links_of("cam-1", if round % 2 == 0 { 1e4 } else { 12.5e6 });
        bench.run(30);
    }
    let history = bench.status().history;
    assert!(!history.is_empty() && history.len() <= 10);
    assert_eq!(history[0].revision, bench.status().active_revision);
    let digest = &bench.model().status.as_ref().unwrap().history;
    assert_eq!(digest[0].placement, "net-cam-1");
    // A clock that goes back blocks nothing.
    bench.restart();
    bench.snapshot.wall -= k8s_openapi::jiff::SignedDuration::from_hours(5);
    bench.run(15);
    bench.lose("cloud-1");
    bench.run(8);
    assert_eq!(bench.condition(SERVING).0, "True");
}

#[test]
fn a_camera_remembers_its_moves_whatever_others_do() {
    let mut bench = Bench::serving();
    bench.edit(|m| m.spec.adaptation.cool_down_seconds = 600);
    bench.run(12);
    bench.links_of("cam-1", 1e4);
    bench.run(12);
    assert_eq!(bench.status().path, "cam-1[0-3]");
    // By now all rows of the model's digest are moves of another camera.
    let model = Arc::make_mut(&mut bench.snapshot.models[0]);
    let digest = &mut model.status.as_mut().unwrap().history;
    let mut other = digest[0].clone();
    other.placement = "net-cam-2".into();
    *digest = vec![other; 10];
    bench.told.clear();
    bench.restart();
    bench.links_of("cam-1", 12.5e6);
    bench.run(60);
    assert_eq!(bench.status().path, "cam-1[0-3]", "{:?}", bench.told);
    let note = bench.note(reasons::REDEPLOY_SUPPRESSED);
    assert!(note.contains("cooling down"), "{note}");
}

#[test]
fn what_a_former_release_served_is_proved_again() {
    let mut bench = Bench::serving();
    bench.restart();
    // The agents of the new one are here at once, and hold nothing.
    for node in bench.snapshot.compute_nodes.values_mut() {
        let status = Arc::make_mut(node).status.as_mut().unwrap();
        status.slices.clear();
        status.routes.clear();
    }
    bench.look();
    assert_eq!(ready(&bench), is("False", "Loading"));
    assert_eq!(bench.condition(SERVING).0, "False");
    // The slice is there again, and the entry does not know of it yet.
    let routes = |bench: &mut Bench| {
        let entry = bench.snapshot.compute_nodes.get_mut("cam-1").unwrap();
        std::mem::take(&mut Arc::make_mut(entry).status.as_mut().unwrap().routes)
    };
    bench.agents();
    let told = routes(&mut bench);
    assert_eq!(told.len(), 1);
    bench.look();
    assert_eq!(ready(&bench), is("False", "Loading"));
    bench.run(15);
    assert_eq!(ready(&bench), is("True", "Serving"));
    assert_eq!(bench.status().active_revision, 1, "nothing moved");
}

#[test]
fn figures_belong_to_the_revision_that_they_were_measured_on() {
    let mut bench = Bench::serving();
    let uid = bench.placement().metadata.uid.clone().unwrap();
    let slow = crate::state::snapshot::RequestView {
        revision: 1,
        answered: 30,
        answered_per_second: 1.0,
        latency_p50_seconds: 1.0,
        latency_p95_seconds: 1.2,
        rows: 1.0,
    };
    bench.snapshot.requests.insert(uid, slow);
    bench.run(2);
    assert_eq!(bench.status().measured, "1.0s");
    // The window of the last minute speaks of revision 1 for a while yet.
    bench.links_of("cam-1", 1e4);
    bench.run(30);
    assert_eq!(bench.status().active_revision, 2);
    assert_eq!(bench.status().measured, "");
    let newest = &bench.status().history[0];
    assert_eq!(
        (newest.measured_before_ms, newest.measured_after_ms),
        (Some(1000.0), None)
    );
}
