//! Early exits from agent to agent: a camera with the first exit, an edge host with the rest.

use super::testing::{Folder, Host, parameter, request, route_to, values};
use crate::serve::engine::fake::{FakeBlock, FakeEngine};
use crate::telemetry::{RequestKey, SegmentKey};
use crate::testing::{image, slice};
use lamina_crds::compute_node::{Exit, ExitCriterion, Exits, Route, RouteRevision, Slice};
use lamina_crds::dnn_model::{EarlyExits, WhenCutOff};
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_request::InferRequestedOutputTensor;
use lamina_proto::inference::{InferParameter, ModelInferRequest};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

fn exits() -> Exits {
    let exit = |name: &str, output: &str, threshold| Exit {
        name: name.into(),
        output: output.into(),
        temperature: 1.0,
        threshold,
    };
    Exits {
        criterion: ExitCriterion::Confidence,
        exits: vec![
            exit("early", "side", Some(0.9)),
            exit("final", "scores", None),
        ],
    }
}

/// The camera doubles; its exit's logits are that. The edge adds 100.
async fn deploy(cam: &mut Host, edge: &mut Host, when_cut_off: WhenCutOff) {
    let head = cam.folder.put_fake(FakeBlock {
        mul: 2.0,
        exits: true,
        side: Some(1.0),
        ..FakeBlock::default()
    });
    let tail = cam.folder.put_fake(FakeBlock {
        mul: 1.0,
        add: 100.0,
        exits: true,
        ..FakeBlock::default()
    });
    edge.hold(Slice {
        blocks: vec![tail],
        inputs: vec![image("side"), image("x1")],
        outputs: vec![image("side"), image("scores")],
        next: None,
        ..slice("u", 1, 1)
    })
    .await;
    cam.hold(Slice {
        blocks: vec![head],
        inputs: vec![image("image")],
        outputs: vec![image("x1"), image("side")],
        next: Some(edge.hop.clone()),
        ..slice("u", 1, 0)
    })
    .await;
    let route = route_to(1, &[(1, &*cam)]);
    let revisions = route.revisions.iter().map(|r| RouteRevision {
        outputs: vec![image("side"), image("scores")],
        exits: Some(exits()),
        ..r.clone()
    });
    let early = EarlyExits {
        when_cut_off,
        ..EarlyExits::default()
    };
    let route = Route {
        revisions: revisions.collect(),
        exits: Some(early),
        ..route.clone()
    };
    cam.routes.apply(&[route]).unwrap();
}

/// Rows of two; the first and the last are confident.
const ROWS: [f32; 6] = [4.0, 0.0, 0.1, 0.0, 0.0, 3.0];

fn rows(values: &[f32]) -> ModelInferRequest {
    request("r", values)
}

fn with(parameter: &str, choice: ParameterChoice) -> ModelInferRequest {
    let mut request = rows(&ROWS);
    let parameter_choice = Some(choice);
    let value = InferParameter { parameter_choice };
    request.parameters.insert(parameter.to_owned(), value);
    request
}

/// Values, and where each row left, as `exit on node`.
async fn ask(cam: &Host, request: ModelInferRequest) -> (Vec<f32>, Vec<String>) {
    let reply = cam
        .client()
        .model_infer(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reply.outputs.len(), 1);
    assert_eq!(reply.outputs[0].name, "scores");
    let told: Value = serde_json::from_str(&parameter(&reply, "lamina_exits")).unwrap();
    let line = |row: &Value| {
        let cut = if row["cutOff"] == json!(true) {
            ", cut off"
        } else {
            ""
        };
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        format!("{} on {}{cut}", text("exit"), text("node"))
    };
    let lines = told.as_array().unwrap().iter().map(line).collect();
    (values(&reply), lines)
}

#[tokio::test]
async fn sure_rows_are_answered_at_once_and_the_others_behind_them() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    deploy(&mut cam, &mut edge, WhenCutOff::Wait).await;
    let (answer, lines) = ask(&cam, rows(&ROWS)).await;
    assert_eq!(answer, [8.0, 0.0, 100.2, 100.0, 0.0, 6.0]);
    let expected = ["early on cam-1", "final on edge-1", "early on cam-1"];
    assert_eq!(lines, expected);
    // One row of two numbers and two logits went to the edge.
    let seen = cam.telemetry.drain();
    assert_eq!(seen.transfers[0].bytes_out, 16);
    let key = RequestKey {
        placement_uid: "u".into(),
        revision: 1,
    };
    assert_eq!(seen.requests[&key][0].rows_by_exit, [2, 1]);
    edge.telemetry.drain();
    // If all are confident, the edge is not called.
    let (answer, lines) = ask(&cam, rows(&[4.0, 0.0])).await;
    assert_eq!((answer, lines.len()), (vec![8.0, 0.0], 1));
    let segment = SegmentKey {
        placement_uid: "u".into(),
        revision: 1,
        segment: 1,
    };
    assert!(!edge.telemetry.drain().segments.contains_key(&segment));
}

#[tokio::test]
async fn a_client_says_how_sure_and_how_far() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    deploy(&mut cam, &mut edge, WhenCutOff::Wait).await;
    let name = |name: &str| ParameterChoice::StringParam(name.into());
    let sure = ParameterChoice::DoubleParam(0.5);
    for (parameter, choice, exit) in [
        ("lamina_min_confidence", sure, "early on cam-1"),
        ("lamina_max_exit", name("early"), "early on cam-1"),
        ("lamina_force_exit", name("final"), "final on edge-1"),
    ] {
        let (_, lines) = ask(&cam, with(parameter, choice)).await;
        assert_eq!(lines, [exit; 3], "{parameter}");
    }
    let refused = with("lamina_force_exit", name("third"));
    let status = cam.client().model_infer(refused).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("early, final"), "{status}");
    // Naming a side exit requests every exit of every row.
    let mut all = rows(&ROWS);
    let output = |name: &str| InferRequestedOutputTensor {
        name: name.into(),
        ..InferRequestedOutputTensor::default()
    };
    all.outputs = vec![output("side"), output("scores")];
    let reply = cam.client().model_infer(all).await.unwrap().into_inner();
    assert_eq!(reply.outputs.len(), 2);
    assert!(!reply.parameters.contains_key("lamina_exits"));
}

#[tokio::test]
async fn an_exit_answers_though_the_next_host_is_away() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    deploy(&mut cam, &mut edge, WhenCutOff::Answer).await;
    ask(&cam, rows(&ROWS)).await;
    edge.kill();
    for _ in 0..20 {
        let (answer, lines) = ask(&cam, rows(&ROWS)).await;
        assert_eq!(answer, [8.0, 0.0, 0.2, 0.0, 0.0, 6.0]);
        let cut = "early on cam-1, cut off";
        assert_eq!(lines, ["early on cam-1", cut, "early on cam-1"]);
    }
}

#[tokio::test]
async fn an_exit_answers_soon_though_the_next_host_is_silent() {
    let folder = Folder::new();
    let engine = FakeEngine::default();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::with_engine("edge-1", &folder, Arc::new(engine.clone()));
    deploy(&mut cam, &mut edge, WhenCutOff::Answer).await;
    for _ in 0..3 {
        ask(&cam, rows(&ROWS)).await;
    }
    // As with a link that swallows everything: the connection stays.
    let silence = engine.turn.lock().await;
    let begin = Instant::now();
    let (_, lines) = ask(&cam, rows(&ROWS)).await;
    assert_eq!(lines[1], "early on cam-1, cut off");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(silence);
    // It answers pings, and is called again.
    for _ in 0..100 {
        let (_, lines) = ask(&cam, rows(&ROWS)).await;
        if lines[1] == "final on edge-1" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the edge is not asked again");
}

#[tokio::test]
async fn who_waits_is_answered_only_where_it_is_sure() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    deploy(&mut cam, &mut edge, WhenCutOff::Wait).await;
    edge.kill();
    let (_, lines) = ask(&cam, rows(&[4.0, 0.0])).await;
    assert_eq!(lines, ["early on cam-1"]);
    let mut unsure = tonic::Request::new(rows(&[0.1, 0.0]));
    unsure.set_timeout(Duration::from_millis(300));
    let status = cam.client().model_infer(unsure).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}
