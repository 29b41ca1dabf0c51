//! Encoded values from agent to agent: a camera that doubles, an edge host that adds one.

use super::testing::{Folder, Host, parameter, part, request, route_to, values};
use lamina_crds::compute_node::{Route, Slice, Verification};
use lamina_crds::{Encoding, WireType};
use lamina_model::Probe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

fn encoding(dtype: WireType, value: &str) -> Option<Encoding> {
    Some(Encoding {
        dtype,
        values: vec![value.to_owned()],
    })
}

struct Path {
    cam: Host,
    edge: Host,
    folder: Arc<Folder>,
}

/// The camera sends its outputs with `encoding`.
async fn path(encoding: Option<Encoding>) -> Path {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    edge.hold(part(&folder, 1, 1, (1.0, 1.0), None)).await;
    let head = Slice {
        encoding,
        ..part(&folder, 1, 0, (2.0, 0.0), Some(&edge))
    };
    cam.hold(head).await;
    let route = route_to(1, &[(1, &cam)]);
    cam.routes.apply(&[route]).unwrap();
    Path { cam, edge, folder }
}

/// The answer to `row`s of two, and the bytes sent to the next host.
async fn ask(host: &Host, row: &[f32]) -> (Vec<f32>, u64) {
    let reply = host.client().model_infer(request("r", row)).await.unwrap();
    let sent = host.telemetry.drain().transfers;
    (values(&reply.into_inner()), sent[0].bytes_out)
}

#[tokio::test]
async fn an_activation_goes_in_fewer_bytes_and_arrives() {
    let row = [0.0, 50.0, 100.0, 127.5];
    for (encoding, bytes) in [
        (None, 16),
        (encoding(WireType::Fp16, "x1"), 8),
        (encoding(WireType::Bf16, "x1"), 8),
        (encoding(WireType::Int8, "x1"), 4),
        // No such value crosses here.
        (encoding(WireType::Int8, "x9"), 16),
    ] {
        let path = path(encoding).await;
        let (answer, sent) = ask(&path.cam, &row).await;
        assert_eq!((answer, sent), (vec![1.0, 101.0, 201.0, 256.0], bytes));
        let seen = path.edge.telemetry.drain();
        assert_eq!(seen.segments.len(), 1);
    }
}

#[tokio::test]
async fn the_time_for_that_is_told_of_each_host() {
    let path = path(encoding(WireType::Fp16, "x1")).await;
    let asked = request("r", &[1.0; 40_000]);
    let reply = path.cam.client().model_infer(asked).await.unwrap();
    let timing = parameter(reply.get_ref(), "lamina_timing");
    let timing: serde_json::Value = serde_json::from_str(&timing).unwrap();
    for host in [0, 1] {
        let took = timing[host]["encode_us"].as_u64().unwrap();
        assert!(took > 0, "{timing}");
    }
}

#[tokio::test]
async fn what_so_few_bits_do_not_hold_arrives_as_it_is() {
    let path = path(encoding(WireType::Int8, "x1")).await;
    let (answer, sent) = ask(&path.cam, &[1.0, f32::INFINITY]).await;
    assert_eq!((answer, sent), (vec![3.0, f32::INFINITY], 8));
    let (answer, sent) = ask(&path.cam, &[f32::NAN, 2.0]).await;
    assert!(answer[0].is_nan());
    assert_eq!((answer[1], sent), (5.0, 8));
}

/// The whole model is on the edge; the camera is the entry.
async fn remote(encoding: Option<Encoding>) -> Path {
    let folder = Folder::new();
    let cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    edge.hold(part(&folder, 1, 0, (2.0, 1.0), None)).await;
    let mut route = route_to(1, &[(1, &edge)]);
    route.revisions[0].encoding = encoding;
    cam.routes.apply(&[route]).unwrap();
    Path { cam, edge, folder }
}

#[tokio::test]
async fn inputs_go_to_the_first_host_in_fewer_bytes() {
    let path = remote(encoding(WireType::Int8, "image")).await;
    let (answer, sent) = ask(&path.cam, &[0.0, 255.0]).await;
    assert_eq!((answer, sent), (vec![1.0, 511.0], 2));
}

async fn verified(error: Option<f64>) -> Verification {
    let path = remote(encoding(WireType::Int8, "image")).await;
    let tensor = |values: &[f32]| crate::serve::engine::fake::fp32(&[1, 4], values);
    let image = lamina_crds::TensorSpec {
        shape: vec![-1, 4],
        ..crate::testing::image("image")
    };
    let scores = lamina_crds::TensorSpec {
        name: "scores".into(),
        ..image.clone()
    };
    let mut edge = path.edge;
    let whole = Slice {
        revision: 2,
        inputs: vec![image.clone()],
        outputs: vec![scores.clone()],
        ..part(&path.folder, 2, 0, (1.0, 0.0), None)
    };
    edge.hold(whole).await;
    // A hundred and a half steps.
    let known = [0.0, 100.5, 254.0, 255.0];
    let probe = Probe {
        inputs: vec![tensor(&known)],
        outputs: vec![tensor(&known)],
    };
    let mut route: Route = route_to(0, &[(2, &edge)]);
    route.verify_revision = Some(2);
    let revision = &mut route.revisions[0];
    revision.inputs = vec![image];
    revision.outputs = vec![scores];
    revision.encoding = encoding(WireType::Int8, "image");
    revision.error = error;
    revision.probe = path.folder.put(&probe.to_bytes().unwrap());
    path.cam.routes.apply(&[route]).unwrap();
    for _ in 0..500 {
        if let Some(verified) = path.cam.routes.statuses()[0].verified.clone() {
            return verified;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not verified");
}

#[tokio::test]
async fn a_probe_may_be_as_far_off_as_its_encodings_were_measured_to_be() {
    let told = verified(Some(0.002)).await;
    assert!(told.passed, "{told:?}");
    let told = verified(None).await;
    assert!(
        !told.passed && told.message.contains("element 1"),
        "{told:?}"
    );
}
