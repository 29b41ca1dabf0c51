use super::*;
use crate::plan::learn;
use crate::prepare::spec;
use crate::state::memory::Memory;
use crate::state::plans;
use crate::state::reserved::Reserved;
use crate::state::snapshot::{RunTimes, Snapshot};
use crate::state::time::Moment;
use crate::testing::{
    PLACEMENT_UID, digest, manifest, model_spec, node as kube_node, placement, plan, world,
};
use lamina_crds::compute_node::{SliceState, SliceStatus};
use lamina_crds::{DnnModelSpec, Placement};
use std::sync::Arc;

/// Live times of requests of one row.
fn one_row(seconds: f64) -> RunTimes {
    RunTimes {
        request_seconds: seconds,
        row_seconds: seconds,
    }
}

fn question(
    snapshot: &Snapshot,
    memory: &Memory,
    spec: &DnnModelSpec,
    placement: Option<&Placement>,
) -> Question {
    let serving = placement.and_then(plans::active).cloned();
    Question {
        wish: Arc::new(spec::wish(spec, &snapshot.plugins).unwrap()),
        manifest: Arc::new(manifest(4)),
        digest: digest(),
        entry: "cam-1".into(),
        placement_uid: placement.map_or(String::new(), |_| PLACEMENT_UID.to_owned()),
        namespace: "default".into(),
        current: serving.clone(),
        serving,
        is_urgent: false,
        rate_per_second: spec.objective.requests_per_second,
        exit_shares: Vec::new(),
        doubt: None,
        supposed: Vec::new(),
        held: snapshot.held.clone(),
        reserved: Reserved::default(),
        cluster: Arc::new(Cluster::of(snapshot, &mut memory.clone())),
        learned: Arc::clone(&memory.learned),
    }
}

fn built(
    snapshot: &Snapshot,
    memory: &Memory,
    spec: &DnnModelSpec,
    placement: Option<&Placement>,
) -> Problem {
    let problem = build(&question(snapshot, memory, spec, placement));
    solver::validate(&problem).unwrap();
    problem
}

fn node<'a>(problem: &'a Problem, name: &str) -> &'a solver::Node {
    problem.nodes.iter().find(|n| n.name == name).unwrap()
}

fn seconds(problem: &Problem, node: &str) -> f64 {
    problem.workloads[0].blocks[0].costs[node].seconds
}

#[test]
fn times_scale_with_speed_and_values_with_their_shapes() {
    let problem = built(&world(), &Memory::default(), &model_spec(), None);
    assert_eq!(problem.nodes.len(), 3);
    assert!((seconds(&problem, "cam-1") - 0.04).abs() < 1e-9);
    assert!((seconds(&problem, "cloud-1") - 0.004).abs() < 1e-9);
    let sizes: Vec<u64> = problem.workloads[0]
        .values
        .iter()
        .map(|v| v.bytes)
        .collect();
    assert_eq!(sizes, [4000, 2000, 1000, 500, 248]);
    let link = problem.link("cam-1", "edge-1").unwrap();
    assert!(
        (link.latency_seconds - 0.006).abs() < 1e-9,
        "with its own cost"
    );
}

#[test]
fn hosts_that_cannot_compute_say_why() {
    let (mut snapshot, mut memory) = (world(), Memory::default());
    let excluded = |snapshot: &Snapshot, memory: &Memory| {
        let problem = built(snapshot, memory, &model_spec(), None);
        node(&problem, "edge-1").excluded.clone()
    };
    assert_eq!(excluded(&snapshot, &memory), None);
    let key = ("edge-1".to_owned(), digest());
    Arc::make_mut(&mut memory.learned)
        .load_failures
        .insert(key, snapshot.now);
    let reason = excluded(&snapshot, &memory).unwrap();
    assert_eq!(reason, "failed to load this model recently");
    snapshot.now = Moment::at(1000.0);
    learn(&snapshot, &mut memory);
    assert_eq!(excluded(&snapshot, &memory), None);
    let cordoned = kube_node("edge-1", "edge", true);
    snapshot.nodes.insert("edge-1".into(), cordoned);
    assert_eq!(excluded(&snapshot, &memory).unwrap(), "cordoned");
    let compute = snapshot.compute_nodes.get_mut("edge-1").unwrap();
    let status = Arc::make_mut(compute).status.as_mut().unwrap();
    status.capacity = None;
    assert_eq!(excluded(&snapshot, &memory).unwrap(), "not benchmarked yet");
    snapshot.live.get_mut("edge-1").unwrap().alive = false;
    assert_eq!(excluded(&snapshot, &memory).unwrap(), "not connected");
}

#[test]
fn a_link_that_is_down_or_half_known_is_none() {
    let mut snapshot = world();
    crate::testing::change_links(&mut snapshot.links, |from, to, view| match (from, to) {
        ("cam-1", "edge-1") => view.reachable = false,
        ("cam-1", "cloud-1") => view.bytes_per_second = None,
        _ => {}
    });
    let problem = built(&snapshot, &Memory::default(), &model_spec(), None);
    assert!(problem.link("cam-1", "edge-1").is_none());
    assert!(problem.link("cam-1", "cloud-1").is_none());
    assert!(problem.link("edge-1", "cam-1").is_some());
}

#[test]
fn what_serves_is_counted_as_memory_that_it_may_use_again() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let placement = placement(Some(serving.clone()), Some(serving));
    let problem = built(
        &world(),
        &Memory::default(),
        &model_spec(),
        Some(&placement),
    );
    let held = 4 * (2 * (1 << 20) + 4096);
    assert_eq!(node(&problem, "edge-1").memory_bytes, (1 << 30) + held);
    assert_eq!(node(&problem, "cam-1").memory_bytes, 1 << 30);
    let previous = problem.workloads[0].previous.as_ref().unwrap();
    assert_eq!(previous.segments[0].blocks, [0, 1, 2, 3]);
}

#[test]
fn live_times_correct_what_the_benchmark_said_within_bounds() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let placement = placement(Some(serving.clone()), Some(serving));
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(placement));
    let mut memory = Memory::default();
    // Prepared at 4 GFLOP/s: 160 ms there, 40 ms at 16.
    let compute = snapshot.compute_nodes.get_mut("edge-1").unwrap();
    let status = Arc::make_mut(compute).status.as_mut().unwrap();
    status.slices.push(SliceStatus {
        placement_uid: PLACEMENT_UID.into(),
        revision: 1,
        segment: 0,
        state: SliceState::Ready,
        message: String::new(),
        run_ms: Some(60.0),
    });
    learn(&snapshot, &mut memory);
    let problem = built(&snapshot, &memory, &model_spec(), None);
    assert!(
        (seconds(&problem, "edge-1") - 0.015).abs() < 1e-9,
        "the warm-up took 1.5 times"
    );
    let live = (PLACEMENT_UID.to_owned(), 1, 0);
    let batches = |row_seconds: f64, rows: f64| RunTimes {
        request_seconds: row_seconds * rows,
        row_seconds,
    };
    snapshot.timings.insert(live.clone(), batches(0.08, 32.0));
    learn(&snapshot, &mut memory);
    let problem = built(&snapshot, &memory, &model_spec(), None);
    assert!(
        (seconds(&problem, "edge-1") - 0.02).abs() < 1e-9,
        "live requests know better"
    );
    snapshot.timings.insert(live, batches(1e6, 1.0));
    learn(&snapshot, &mut memory);
    let problem = built(&snapshot, &memory, &model_spec(), None);
    assert!((seconds(&problem, "edge-1") - 0.01 * 8.0).abs() < 1e-9);
}

#[test]
fn other_models_take_their_share_of_a_host() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let mut other = placement(Some(serving.clone()), Some(serving));
    other.metadata.uid = Some("other".into());
    other.spec.model = "other".into();
    let mut model = crate::testing::model();
    model.metadata.name = Some("other".into());
    model.spec.objective.requests_per_second = 5.0;
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(other));
    snapshot.models.push(Arc::new(model));
    snapshot
        .timings
        .insert(("other".into(), 1, 0), one_row(0.04));
    let problem = built(&snapshot, &Memory::default(), &model_spec(), None);
    assert!((node(&problem, "edge-1").load_share - 0.2).abs() < 1e-9);
    assert_eq!(node(&problem, "cam-1").load_share, 0.0);
}

#[test]
fn a_declared_rate_keeps_nobody_out() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let mut other = placement(Some(serving.clone()), Some(serving));
    other.metadata.uid = Some("other".into());
    other.metadata.namespace = Some("greedy".into());
    let mut model = crate::testing::model();
    model.metadata.namespace = Some("greedy".into());
    model.spec.objective.requests_per_second = 100_000.0;
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(other));
    snapshot.models.push(Arc::new(model));
    snapshot
        .timings
        .insert(("other".into(), 1, 0), one_row(0.04));
    let shares = |snapshot: &Snapshot| {
        let problem = built(snapshot, &Memory::default(), &model_spec(), None);
        let link = problem.link("cam-1", "edge-1").unwrap().share;
        (node(&problem, "edge-1").load_share, link)
    };
    let (host, link) = shares(&snapshot);
    // 100 000 times 40 ms per second, of which a quarter counts.
    assert!((host - 0.25).abs() < 1e-9, "{host}");
    assert!((link - 0.55).abs() < 1e-9, "{link}");
    // Measured rates count, if above the declared one.
    let requests = crate::state::snapshot::RequestView {
        revision: 1,
        answered: 600,
        answered_per_second: 10.0,
        latency_p50_seconds: 0.1,
        latency_p95_seconds: 0.1,
        rows: 1.0,
    };
    snapshot.requests.insert("other".into(), requests);
    let (host, _) = shares(&snapshot);
    assert!((host - 0.65).abs() < 1e-9, "{host}");
    let model = Arc::make_mut(&mut snapshot.models[0]);
    model.spec.objective.requests_per_second = 1.0;
    let (host, _) = shares(&snapshot);
    assert!((host - 0.4).abs() < 1e-9, "{host}");
}

#[test]
fn a_plan_on_its_way_takes_its_hosts_already() {
    let coming = plan(1, &[("edge-1", 0..4)]);
    let mut model = crate::testing::model();
    model.spec.objective.requests_per_second = 4.0;
    let mut snapshot = world();
    snapshot.models.push(Arc::new(model));
    snapshot
        .manifests
        .insert(coming.manifest.clone(), Arc::new(manifest(4)));
    let share = |snapshot: &Snapshot, memory: &Memory| {
        let problem = built(snapshot, memory, &model_spec(), None);
        node(&problem, "edge-1").load_share
    };
    let other = |plan| {
        let mut other = placement(plan, None);
        other.metadata.uid = Some("other".into());
        Arc::new(other)
    };
    // Four requests per second, of four times 10 ms.
    snapshot.placements = vec![other(Some(coming.clone()))];
    assert!((share(&snapshot, &Memory::default()) - 0.16).abs() < 1e-9);
    snapshot.placements = vec![other(None)];
    assert!(share(&snapshot, &Memory::default()).abs() < 1e-9);
    // One that was decided but not written yet, too.
    let mut memory = Memory::default();
    let key = crate::state::ids::PlacementKey::new(crate::testing::MODEL_UID, "cam-1");
    memory.placements.entry(key).or_default().unwritten = Some(coming);
    assert!((share(&snapshot, &memory) - 0.16).abs() < 1e-9);
}

#[test]
fn a_host_that_is_sent_large_batches_is_busy_but_not_slow() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let of_model = placement(Some(serving.clone()), Some(serving.clone()));
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(of_model));
    let learned_with = |snapshot: &Snapshot| {
        let mut memory = Memory::default();
        learn(snapshot, &mut memory);
        let problem = built(snapshot, &memory, &model_spec(), None);
        seconds(&problem, "edge-1")
    };
    let own = (PLACEMENT_UID.to_owned(), 1, 0);
    snapshot.timings.insert(own.clone(), one_row(0.04));
    let alone = learned_with(&snapshot);
    let batches = RunTimes {
        request_seconds: 0.04 * 32.0,
        row_seconds: 0.04,
    };
    snapshot.timings.insert(own, batches);
    assert_eq!(learned_with(&snapshot), alone);

    // Others get less of the host and of its links.
    let mut other = placement(Some(serving.clone()), Some(serving));
    other.metadata.uid = Some("other".into());
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(other));
    snapshot.timings.insert(("other".into(), 1, 0), batches);
    let shares = |snapshot: &mut Snapshot, rows| {
        let requests = crate::state::snapshot::RequestView {
            revision: 1,
            answered: 30,
            answered_per_second: 0.5,
            latency_p50_seconds: 2.0,
            latency_p95_seconds: 2.0,
            rows,
        };
        snapshot.requests.insert("other".into(), requests);
        let problem = built(snapshot, &Memory::default(), &model_spec(), None);
        let link = problem.link("cam-1", "edge-1").unwrap().share;
        (node(&problem, "edge-1").load_share, LINK_SHARE - link)
    };
    let (host, of_one) = shares(&mut snapshot, 1.0);
    assert!((host - 0.64).abs() < 1e-9, "{host}");
    let (_, of_batches) = shares(&mut snapshot, 8.0);
    assert!(of_one > 0.0 && (of_batches / of_one - 8.0).abs() < 1e-6);
}

#[test]
fn a_namespace_holds_no_more_than_its_share_of_a_hosts_memory() {
    let held: u64 = manifest(4).blocks.iter().map(memory_bytes).sum();
    let serving = plan(1, &[("edge-1", 0..4)]);
    let other = |uid: &str, namespace: &str, active: bool| {
        let active = active.then(|| serving.clone());
        let mut other = placement(Some(serving.clone()), active);
        other.metadata.uid = Some(uid.into());
        other.metadata.namespace = Some(namespace.into());
        Arc::new(other)
    };
    let memory = |snapshot: &Snapshot, own: Option<&Placement>| {
        let problem = built(snapshot, &Memory::default(), &model_spec(), own);
        node(&problem, "edge-1").memory_bytes
    };
    let mut snapshot = world();
    let free = memory(&snapshot, None);
    // An active one, one being deployed, and one of another model.
    snapshot.placements.push(other("a", "default", true));
    snapshot.placements.push(other("b", "default", false));
    snapshot.placements.push(other("c", "elsewhere", true));
    assert_eq!(memory(&snapshot, None), free, "all where nothing is said");
    let host = Arc::make_mut(snapshot.compute_nodes.get_mut("edge-1").unwrap());
    let capacity = host.status.as_mut().unwrap().capacity.as_mut().unwrap();
    capacity.memory_bytes = 8 * held;
    snapshot.memory_share = 0.5;
    assert_eq!(memory(&snapshot, None), 2 * held);
    // Its own slices do not count against it.
    let own = placement(Some(serving.clone()), Some(serving.clone()));
    snapshot.placements.push(Arc::new(own.clone()));
    assert_eq!(memory(&snapshot, Some(&own)), 2 * held);
    assert_eq!(memory(&snapshot, None), held);
    snapshot.memory_share = 0.25;
    assert_eq!(memory(&snapshot, None), 0);
}

#[test]
fn an_entry_outside_the_allowed_tiers_computes_what_must_stay_on_it() {
    let mut spec = model_spec();
    spec.constraints.tiers = vec!["cloud".into()];
    spec.constraints.keep_on_entry = 1;
    let problem = built(&world(), &Memory::default(), &spec, None);
    let constraints = &problem.workloads[0].constraints;
    assert_eq!(constraints.keep_first_on_entry, 1);
    let forbidden: Vec<usize> = constraints.forbidden.iter().map(|f| f.block).collect();
    assert_eq!(forbidden, [1, 2, 3]);
    assert_eq!(
        node(&problem, "edge-1").excluded.as_deref(),
        Some("tier=edge excluded")
    );
    assert_eq!(node(&problem, "cam-1").excluded, None);
}

#[test]
fn a_value_that_passes_a_block_is_given_once_and_crosses_every_cut_up_to_its_use() {
    let mut manifest = manifest(4);
    // An output of the first block passes through the second and third.
    let skip = manifest.blocks[0].outputs[0].clone();
    for block in 1..3 {
        manifest.blocks[block].outputs.push(skip.clone());
        manifest.blocks[block + 1].inputs.push(skip.name.clone());
    }
    manifest.validate().unwrap();
    let question = Question {
        manifest: Arc::new(manifest),
        ..question(&world(), &Memory::default(), &model_spec(), None)
    };
    let problem = build(&question);
    solver::validate(&problem).unwrap();
    let workload = &problem.workloads[0];
    let values: Vec<&str> = workload.values.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(values, ["x", "v1", "v2", "v3", "v4"]);
    let given: Vec<usize> = workload.blocks.iter().map(|b| b.outputs.len()).collect();
    assert_eq!(given, [1, 1, 1, 1]);
    assert_eq!(workload.blocks[3].inputs, ["v3", "v1"]);
}

#[test]
fn bytes_of_others_are_taken_off_a_link() {
    let serving = plan(1, &[("edge-1", 0..4)]);
    let mut other = placement(Some(serving.clone()), Some(serving));
    other.metadata.uid = Some("other".into());
    let mut model = crate::testing::model();
    // Its input is 4000 bytes: a quarter of 12.5 MB/s.
    model.spec.objective.requests_per_second = 781.25;
    let mut snapshot = world();
    snapshot.placements.push(Arc::new(other));
    snapshot.models.push(Arc::new(model));
    let problem = built(&snapshot, &Memory::default(), &model_spec(), None);
    let share = |from, to| problem.link(from, to).unwrap().share;
    assert!(
        (share("cam-1", "edge-1") - 0.55).abs() < 1e-6,
        "{}",
        share("cam-1", "edge-1")
    );
    assert!((share("cam-1", "cloud-1") - 0.8).abs() < 1e-9);
}

#[test]
fn a_pin_beyond_every_bound_costs_nothing() {
    let mut spec = model_spec();
    spec.constraints.pins = vec![lamina_crds::dnn_model::Pin {
        first: 2,
        last: u32::MAX,
        node: "edge-1".into(),
    }];
    spec.constraints.keep_on_entry = u32::MAX;
    let problem = build(&question(&world(), &Memory::default(), &spec, None));
    let constraints = &problem.workloads[0].constraints;
    assert_eq!(
        (constraints.pins.len(), constraints.keep_first_on_entry),
        (2, 4)
    );
}

/// A cluster of `count` more edge hosts, of which those with higher numbers are further
/// away.
fn large(count: usize) -> Snapshot {
    let mut snapshot = world();
    let mut links = Vec::new();
    snapshot
        .links
        .each(|a, b, view| links.push(((a.to_owned(), b.to_owned()), view)));
    let template = links[0].1;
    for i in 0..count {
        let name = format!("far-{i:04}");
        let node = snapshot.compute_nodes["edge-1"].clone();
        snapshot.compute_nodes.insert(name.clone(), node);
        let live = snapshot.live["edge-1"].clone();
        snapshot.live.insert(name.clone(), live);
        snapshot
            .nodes
            .insert(name.clone(), kube_node(&name, "edge", false));
        for (a, b) in [
            ("cam-1".to_owned(), name.clone()),
            (name, "cam-1".to_owned()),
        ] {
            let mut view = template;
            view.rtt_seconds = Some(0.02 + i as f64 * 1e-3);
            links.push(((a, b), view));
        }
    }
    snapshot.links = links.into_iter().collect();
    snapshot
}

#[test]
fn of_many_hosts_a_question_is_about_the_near_ones() {
    let snapshot = large(500);
    let problem = built(&snapshot, &Memory::default(), &model_spec(), None);
    assert!(problem.nodes.len() <= 64, "{}", problem.nodes.len());
    for needed in ["cam-1", "cloud-1", "edge-1", "far-0000"] {
        assert!(problem.nodes.iter().any(|n| n.name == needed), "{needed}");
    }
    assert!(problem.nodes.iter().all(|n| n.name != "far-0499"));
    // The active plan's hosts are among them, however far away.
    let serving = plan(1, &[("far-0499", 0..4)]);
    let placement = placement(Some(serving.clone()), Some(serving));
    let problem = built(
        &snapshot,
        &Memory::default(),
        &model_spec(),
        Some(&placement),
    );
    assert!(problem.nodes.iter().any(|n| n.name == "far-0499"));
}

#[test]
fn requests_that_leave_early_cost_no_more_than_their_way_to_the_exit() {
    let world = world();
    let manifest = crate::testing::manifest_with_exits();
    manifest.validate().unwrap();
    let question = |exit_shares: Vec<f64>| Question {
        manifest: Arc::new(manifest.clone()),
        exit_shares,
        ..question(&world, &Memory::default(), &model_spec(), None)
    };
    let problem = build(&question(vec![0.5, 0.5]));
    solver::validate(&problem).unwrap();
    let workload = &problem.workloads[0];
    assert_eq!(
        (
            workload.exits[0].after_block,
            workload.exits[0].table[0].rate
        ),
        (0, 0.5)
    );
    assert_eq!(workload.outputs, ["scores"]);
    let problem = build(&question(Vec::new()));
    assert!(problem.workloads[0].exits.is_empty());
    assert_eq!(problem.workloads[0].outputs, ["side", "scores"]);
}

#[test]
fn what_a_question_ahead_supposes_is_in_the_problem() {
    use crate::state::decision::Supposed;
    let world = world();
    let question = Question {
        supposed: vec![
            Supposed::Slow {
                host: "edge-1".into(),
                times: 10,
            },
            Supposed::Lost("cloud-1".into()),
        ],
        ..question(&world, &Memory::default(), &model_spec(), None)
    };
    let problem = build(&question);
    let rate = |from: &str, to: &str| problem.link(from, to).unwrap().bytes_per_second;
    assert_eq!(rate("cam-1", "edge-1"), 1.25e6);
    assert_eq!(rate("edge-1", "cam-1"), 1.25e6);
    assert_eq!(rate("cam-1", "cloud-1"), 12.5e6);
    let excluded: Vec<&str> = problem
        .nodes
        .iter()
        .filter(|n| n.excluded.is_some())
        .map(|n| n.name.as_str())
        .collect();
    assert_eq!(excluded, ["cloud-1"]);
}

#[test]
fn what_hosts_have_on_their_disks_is_not_moved() {
    use crate::state::snapshot::Held;
    use std::collections::{BTreeMap, HashSet};
    let mut world = world();
    let blocks = manifest(4).blocks;
    let held: HashSet<_> = blocks[1..3].iter().map(|b| b.digest.clone()).collect();
    world.held = Held(Arc::new(BTreeMap::from([(
        "edge-1".to_owned(),
        Arc::new(held),
    )])));
    let serving = plan(1, &[("cloud-1", 0..4)]);
    let placement = placement(Some(serving.clone()), Some(serving));
    let question = question(&world, &Memory::default(), &model_spec(), Some(&placement));
    let problem = build(&question);
    let previous = problem.workloads[0].previous.as_ref().unwrap();
    let on_disk: Vec<_> = previous
        .on_disk
        .iter()
        .map(|s| (s.node.as_str(), &s.blocks[..]))
        .collect();
    assert_eq!(on_disk, [("edge-1", &[1, 2][..])]);
}
