use crate::testing::{Bench, digest, manifest};
use lamina_crds::conditions::READY;
use lamina_crds::dnn_model::{ActivationType, Activations};
use lamina_crds::placement::Crossing;
use lamina_crds::{Encoding, WireType};
use lamina_model::EncodingErrors;
use std::sync::Arc;

/// The active plan sends 4000 bytes from the camera to the cloud; no agent supports encodings.
fn bench() -> Bench {
    let mut bench = Bench::serving();
    assert_eq!(bench.status().path, "cloud-1[0-3]");
    let errors = EncodingErrors {
        fp16: Some(0.0001),
        bf16: Some(0.001),
        int8: Some(0.02),
    };
    let mut measured = manifest(4);
    measured.encoding_errors = vec![errors; 4];
    let manifests = &mut bench.snapshot.manifests;
    manifests.insert(digest(), Arc::new(measured));
    bench
}

fn teach(bench: &mut Bench, node: &str, known: &[&str]) {
    let node = bench.snapshot.compute_nodes.get_mut(node).unwrap();
    let status = Arc::make_mut(node).status.as_mut().unwrap();
    status.encodings = known.iter().map(|k| (*k).to_owned()).collect();
}

fn all_know(bench: &mut Bench) {
    for node in ["cam-1", "edge-1", "cloud-1"] {
        teach(bench, node, &["fp16", "bf16", "int8"]);
    }
}

fn ask(bench: &mut Bench, dtype: ActivationType, max_error: Option<f64>) {
    bench.edit(|m| m.spec.activations = Some(Activations { dtype, max_error }));
    bench.run(8);
    assert_eq!(bench.condition(READY).0, "True");
    bench.expect_fixpoint();
}

fn crossings(bench: &Bench) -> Vec<Crossing> {
    bench.status().active.unwrap().crossings
}

fn encoding(dtype: WireType, value: &str) -> Option<Encoding> {
    Some(Encoding {
        dtype,
        values: vec![value.to_owned()],
    })
}

#[test]
fn another_encoding_is_another_revision_on_the_same_hosts() {
    let mut bench = bench();
    all_know(&mut bench);
    let before = bench.status().active_revision;
    assert_eq!(crossings(&bench), []);
    ask(&mut bench, ActivationType::Int8, None);
    let status = bench.status();
    assert_eq!(status.path, "cloud-1[0-3]");
    assert_eq!(status.active_revision, before + 1);
    let expected = Crossing {
        segment: 0,
        encoding: encoding(WireType::Int8, "x"),
        error: Some(0.02),
        bytes: 1000,
        raw_bytes: 4000,
        reason: String::new(),
    };
    assert_eq!(crossings(&bench), [expected]);
    let route = |bench: &Bench| {
        let routes = &bench.snapshot.compute_nodes["cam-1"].spec.routes;
        routes[0].revisions[0].clone()
    };
    assert_eq!(route(&bench).encoding, encoding(WireType::Int8, "x"));
    assert_eq!(route(&bench).error, Some(0.02));
    // The limit excludes int8.
    ask(&mut bench, ActivationType::Auto, Some(0.01));
    assert_eq!(route(&bench).encoding, encoding(WireType::Fp16, "x"));
    ask(&mut bench, ActivationType::Fp32, None);
    assert_eq!((route(&bench).encoding, route(&bench).error), (None, None));
    assert_eq!(crossings(&bench), []);
}

#[test]
fn a_slice_says_how_its_outputs_go_on() {
    let mut bench = bench();
    all_know(&mut bench);
    bench.edit(|m| m.spec.constraints.keep_on_entry = 1);
    ask(&mut bench, ActivationType::Fp16, None);
    assert_eq!(bench.status().path, "cam-1[0]→cloud-1[1-3]");
    let slice = |node: &str| bench.snapshot.compute_nodes[node].spec.slices[0].clone();
    assert_eq!(slice("cam-1").encoding, encoding(WireType::Fp16, "v1"));
    assert_eq!(slice("cloud-1").encoding, None);
}

#[test]
fn an_agent_that_does_not_know_an_encoding_never_gets_it() {
    let mut bench = bench();
    ask(&mut bench, ActivationType::Int8, None);
    let reason = &crossings(&bench)[0].reason;
    assert!(reason.contains("does not know"), "{reason}");
    teach(&mut bench, "cam-1", &["int8"]);
    bench.run(8);
    assert_eq!(crossings(&bench)[0].encoding, None);
    teach(&mut bench, "cloud-1", &["int8"]);
    bench.run(8);
    assert_eq!(crossings(&bench)[0].encoding, encoding(WireType::Int8, "x"));
    // Its agent is downgraded.
    teach(&mut bench, "cloud-1", &[]);
    bench.run(8);
    assert_eq!(crossings(&bench)[0].encoding, None);
    bench.expect_fixpoint();
}

#[test]
fn a_limit_that_nothing_meets_leaves_values_as_they_are_and_says_so() {
    let mut bench = bench();
    all_know(&mut bench);
    ask(&mut bench, ActivationType::Fp16, Some(0.001));
    assert_eq!(crossings(&bench)[0].encoding, encoding(WireType::Fp16, "x"));
    ask(&mut bench, ActivationType::Int8, Some(0.001));
    let crossing = &crossings(&bench)[0];
    assert_eq!((crossing.bytes, &crossing.encoding), (4000, &None));
    assert_eq!(
        crossing.reason,
        "int8 changes answers by 2.0 %, more than 0.10 %"
    );
}
