use crate::serve::access::FORWARDED;
use crate::serve::data_plane::testing::{
    Folder, Host, deploy, listed, part, request, route_to, values,
};
use crate::testing::image;
use bytes::Bytes;
use lamina_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lamina_proto::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelMetadataRequest,
    ModelReadyRequest, ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest,
};
use std::time::Duration;
use tokio::time::sleep;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Status};

/// One host that serves `m` as 2x+1.
async fn serving() -> Host {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    let route = route_to(1, &[(1, &cam)]);
    cam.routes.apply(&[route]).unwrap();
    cam
}

async fn refused(host: &Host, request: ModelInferRequest) -> Status {
    host.client().model_infer(request).await.unwrap_err()
}

type Change = fn(&mut ModelInferRequest);

#[tokio::test]
async fn every_malformed_request_is_refused_by_name() {
    let cam = serving().await;
    let cases: [(&str, Change, Code, &[&str]); 18] = [
        (
            "unknown model",
            |r| r.model_name = "n".into(),
            Code::NotFound,
            &["unknown model `default/n`"],
        ),
        (
            "unknown version",
            |r| r.model_version = "7".into(),
            Code::NotFound,
            &["version `7`"],
        ),
        (
            "unknown input",
            |r| r.inputs[0].name = "picture".into(),
            Code::InvalidArgument,
            &["unknown input `picture`", "`image` FP32 [-1, 2]"],
        ),
        (
            "no input",
            |r| {
                r.inputs.clear();
                r.raw_input_contents.clear();
            },
            Code::InvalidArgument,
            &["missing input `image`"],
        ),
        (
            "input twice",
            |r| {
                let again = r.inputs[0].clone();
                r.inputs.push(again);
                let again = r.raw_input_contents[0].clone();
                r.raw_input_contents.push(again);
            },
            Code::InvalidArgument,
            &["input `image` is named twice"],
        ),
        (
            "wrong datatype",
            |r| r.inputs[0].datatype = "INT64".into(),
            Code::InvalidArgument,
            &["image", "FP32", "INT64"],
        ),
        (
            "unknown datatype",
            |r| r.inputs[0].datatype = "FP8".into(),
            Code::InvalidArgument,
            &["input `image`: unknown datatype `FP8`"],
        ),
        (
            "bytes",
            |r| r.inputs[0].datatype = "BYTES".into(),
            Code::InvalidArgument,
            &["input `image`: BYTES"],
        ),
        (
            "wrong rank",
            |r| r.inputs[0].shape = vec![2],
            Code::InvalidArgument,
            &["image", "[-1, 2]", "[2]"],
        ),
        (
            "wrong shape",
            |r| r.inputs[0].shape = vec![1, 3],
            Code::InvalidArgument,
            &["image", "[1, 3]"],
        ),
        (
            "no batch",
            |r| r.inputs[0].shape = vec![0, 2],
            Code::InvalidArgument,
            &["image", "[0, 2]"],
        ),
        (
            "negative",
            |r| r.inputs[0].shape = vec![-1, 2],
            Code::InvalidArgument,
            &["image"],
        ),
        (
            "wrong size",
            |r| r.raw_input_contents[0] = Bytes::from_static(&[0; 7]),
            Code::InvalidArgument,
            &["image", "needs 8 bytes, got 7"],
        ),
        (
            "no contents",
            |r| r.raw_input_contents.clear(),
            Code::InvalidArgument,
            &["image", "needs 8 bytes, got 0"],
        ),
        (
            "too many raw contents",
            |r| r.raw_input_contents.push(Bytes::new()),
            Code::InvalidArgument,
            &["1 inputs and 2 raw_input_contents"],
        ),
        (
            "raw and typed",
            |r| {
                r.inputs[0].contents = Some(InferTensorContents {
                    fp32_contents: vec![1.0, 2.0],
                    ..InferTensorContents::default()
                });
            },
            Code::InvalidArgument,
            &["`image` has typed contents beside raw"],
        ),
        (
            "unknown output",
            |r| r.outputs = vec![output("labels")],
            Code::InvalidArgument,
            &["unknown output `labels`", "`scores` FP32 [-1, 2]"],
        ),
        (
            "shared memory",
            |r| {
                let region = ("shared_memory_region".to_owned(), InferParameter::default());
                r.inputs[0].parameters = [region].into();
            },
            Code::Unimplemented,
            &["shared_memory_region"],
        ),
    ];
    for (case, change, code, words) in cases {
        let mut malformed = request("a", &[1.0, 2.0]);
        change(&mut malformed);
        let status = refused(&cam, malformed).await;
        assert_eq!(status.code(), code, "{case}: {status}");
        for word in words {
            assert!(status.message().contains(word), "{case}: {status}");
        }
    }
    // None of them counts as failed, and the agent keeps serving.
    assert!(cam.telemetry.drain().requests.is_empty());
    cam.client()
        .model_infer(request("a", &[1.0, 2.0]))
        .await
        .unwrap();
}

fn output(name: &str) -> InferRequestedOutputTensor {
    InferRequestedOutputTensor {
        name: name.into(),
        ..InferRequestedOutputTensor::default()
    }
}

#[tokio::test]
async fn typed_contents_are_taken_and_answers_are_raw() {
    let cam = serving().await;
    let mut typed = request("", &[1.0, 2.0]);
    typed.raw_input_contents.clear();
    typed.model_version = "1".into();
    typed.inputs[0].contents = Some(InferTensorContents {
        fp32_contents: vec![1.0, 2.0],
        ..InferTensorContents::default()
    });
    let reply = cam.client().model_infer(typed).await.unwrap().into_inner();
    assert_eq!(values(&reply), [3.0, 5.0]);
    assert!(reply.outputs[0].contents.is_none());
    assert_eq!(reply.outputs[0].shape, [1, 2]);
    assert_eq!(
        (reply.model_name.as_str(), reply.model_version.as_str()),
        ("m", "1")
    );
    assert_eq!(reply.id.len(), 16, "one is made where there is none");
}

#[tokio::test]
async fn inputs_come_in_any_order_and_outputs_as_they_are_asked_for() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut slice = part(&folder, 1, 0, (2.0, 0.0), None);
    slice.inputs = vec![image("a"), image("b")];
    slice.outputs = vec![image("c"), image("d")];
    let mut route = route_to(1, &[(1, &cam)]);
    route.revisions[0].inputs.clone_from(&slice.inputs);
    route.revisions[0].outputs.clone_from(&slice.outputs);
    cam.hold(slice).await;
    cam.routes.apply(&[route]).unwrap();
    let input = |name: &str, value: f32| {
        let one = request("", &[value, value]);
        let tensor = InferInputTensor {
            name: name.into(),
            ..one.inputs[0].clone()
        };
        (tensor, one.raw_input_contents[0].clone())
    };
    let (b, a) = (input("b", 2.0), input("a", 1.0));
    let mut both = ModelInferRequest {
        inputs: vec![b.0, a.0],
        raw_input_contents: vec![b.1, a.1],
        ..request("", &[0.0, 0.0])
    };
    let names = |reply: &lamina_proto::inference::ModelInferResponse| {
        reply
            .outputs
            .iter()
            .map(|o| o.name.clone())
            .collect::<Vec<_>>()
    };
    let all = cam
        .client()
        .model_infer(both.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&all), ["c", "d"]);
    assert_eq!(values(&all)[0], 2.0);
    both.outputs = vec![output("d"), output("c")];
    let turned = cam
        .client()
        .model_infer(both.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(names(&turned), ["d", "c"]);
    assert_eq!(values(&turned)[0], 4.0);
    both.outputs = vec![output("d")];
    let one = cam
        .client()
        .model_infer(both.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (names(&one), one.raw_output_contents.len()),
        (vec!["d".to_owned()], 1)
    );
    both.outputs = vec![output("d"), output("d")];
    assert!(
        refused(&cam, both)
            .await
            .message()
            .contains("output `d` is named twice")
    );
}

/// `request`, whose client waits for 300 ms.
fn hurried(request: ModelInferRequest) -> Request<ModelInferRequest> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_millis(300));
    request
}

#[tokio::test]
async fn metadata_and_readiness_tell_the_truth() {
    let cam = serving().await;
    let edge = Host::start("edge-1", &cam.folder);
    let mut loading = route_to(0, &[]);
    loading.name = "soon".into();
    loading.placement_uid = "v".into();
    cam.routes
        .apply(&[route_to(1, &[(1, &cam)]), loading])
        .unwrap();
    edge.hear(&[listed(&[(&cam, true)])]);
    let mut client = cam.client();
    let live = client.server_live(ServerLiveRequest {}).await.unwrap();
    assert!(live.into_inner().live);
    let ready = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(ready.into_inner().ready);
    for (name, expected) in [
        ("m", true),
        ("default/m", true),
        ("soon", false),
        ("n", false),
    ] {
        for mut client in [cam.client(), edge.client()] {
            let asked = ModelReadyRequest {
                name: name.into(),
                version: String::new(),
            };
            let ready = client.model_ready(asked).await.unwrap().into_inner().ready;
            assert_eq!(ready, expected, "{name}");
        }
    }
    let server = client.server_metadata(ServerMetadataRequest {}).await;
    assert_eq!(server.unwrap().into_inner().name, "lamina");
    let about = |name: &str| ModelMetadataRequest {
        name: name.into(),
        version: String::new(),
    };
    for mut client in [cam.client(), edge.client()] {
        let model = client.model_metadata(about("m")).await;
        let model = model.unwrap().into_inner();
        assert_eq!(
            (model.name.as_str(), &model.properties["lamina_entry"][..]),
            ("m", "cam-1")
        );
        assert_eq!(model.platform, "pytorch_torchscript");
        assert_eq!(
            (
                model.inputs[0].datatype.as_str(),
                &model.inputs[0].shape[..]
            ),
            ("FP32", &[-1, 2][..])
        );
        assert_eq!(model.outputs[0].name, "scores");
        let unknown = client.model_metadata(about("n")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
    }
    let early = client.model_metadata(about("soon")).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
}

#[tokio::test]
async fn metadata_speaks_of_the_active_revision() {
    let cam = serving().await;
    let mut route = route_to(1, &[(1, &cam), (2, &cam)]);
    route.revisions[1].inputs = vec![image("pixels"), image("mask")];
    for active in [1, 2] {
        route.active_revision = active;
        cam.routes.apply(std::slice::from_ref(&route)).unwrap();
        let asked = ModelMetadataRequest {
            name: "m".into(),
            version: String::new(),
        };
        let model = cam
            .client()
            .model_metadata(asked)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(model.inputs.len() as i64, active);
        assert_eq!(
            model.properties["lamina_placement_revision"],
            active.to_string()
        );
    }
}

#[tokio::test]
async fn batches_that_differ_between_inputs_are_refused() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let fixed = lamina_crds::TensorSpec {
        shape: vec![1, 2],
        ..image("table")
    };
    let mut slice = part(&folder, 1, 0, (2.0, 0.0), None);
    slice.inputs = vec![image("a"), fixed, image("b")];
    slice.outputs = vec![image("c"), image("d"), image("e")];
    let mut route = route_to(1, &[(1, &cam)]);
    route.revisions[0].inputs.clone_from(&slice.inputs);
    route.revisions[0].outputs.clone_from(&slice.outputs);
    cam.hold(slice).await;
    cam.routes.apply(&[route]).unwrap();
    let asked = |rows: [usize; 3]| {
        let all = rows.map(|rows| request("", &vec![1.0; 2 * rows]));
        let names = ["a", "table", "b"];
        let inputs = all.iter().zip(names).map(|(one, name)| InferInputTensor {
            name: name.into(),
            ..one.inputs[0].clone()
        });
        ModelInferRequest {
            inputs: inputs.collect(),
            raw_input_contents: all
                .iter()
                .map(|r| r.raw_input_contents[0].clone())
                .collect(),
            ..request("", &[])
        }
    };
    for uneven in [[1, 1, 2], [2, 1, 1]] {
        let status = refused(&cam, asked(uneven)).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let words = format!(
            "inputs `a` and `b` hold batches of {} and {}",
            uneven[0], uneven[2]
        );
        assert!(status.message().contains(&words), "{status}");
    }
    cam.client().model_infer(asked([3, 1, 3])).await.unwrap();
}

#[tokio::test]
async fn sizes_outside_their_bounds_or_at_odds_are_refused_by_name() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let sized = |name: &str| lamina_crds::TensorSpec {
        shape: vec![-1, -1],
        sizes: vec![lamina_crds::TensorSize {
            dimension: 1,
            typical: 4,
            bounds: Some(lamina_crds::SizeBounds {
                name: "seq".into(),
                min: 2,
                max: 8,
                step: 2,
            }),
            file_bytes: None,
        }],
        ..image(name)
    };
    let mut slice = part(&folder, 1, 0, (2.0, 0.0), None);
    slice.inputs = vec![sized("ids"), sized("mask")];
    slice.outputs = vec![image("c"), image("d")];
    let mut route = route_to(1, &[(1, &cam)]);
    route.revisions[0].inputs.clone_from(&slice.inputs);
    route.revisions[0].outputs.clone_from(&slice.outputs);
    cam.hold(slice).await;
    cam.routes.apply(&[route]).unwrap();
    let asked = |lengths: [i64; 2]| {
        let one = |(name, length): (&str, i64)| InferInputTensor {
            name: name.into(),
            shape: vec![1, length],
            ..request("", &[1.0, 1.0]).inputs[0].clone()
        };
        let zeros = |length: i64| Bytes::from(vec![0; 4 * usize::try_from(length).unwrap()]);
        ModelInferRequest {
            inputs: ["ids", "mask"].into_iter().zip(lengths).map(one).collect(),
            raw_input_contents: lengths.map(zeros).to_vec(),
            ..request("", &[])
        }
    };
    for (lengths, words) in [
        (
            [10, 10],
            "`seq` is 10 (dimension 1), but it may be 2 to 8, in multiples of 2",
        ),
        ([3, 3], "`seq` is 3"),
        ([0, 0], "`seq` is 0"),
        (
            [4, 6],
            "`seq` is one size in a request, but input `ids` has 4 and `mask` has 6",
        ),
    ] {
        let status = refused(&cam, asked(lengths)).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    cam.client().model_infer(asked([8, 8])).await.unwrap();
    let asked = ModelMetadataRequest {
        name: "m".into(),
        version: String::new(),
    };
    let model = cam.client().model_metadata(asked).await.unwrap();
    assert_eq!(model.into_inner().inputs[0].shape, [-1, -1]);
}

#[tokio::test]
async fn a_refusing_route_answers_nobody_and_says_why() {
    let cam = serving().await;
    let edge = Host::start("edge-1", &cam.folder);
    edge.hear(&[listed(&[(&cam, true)])]);
    let mut route = route_to(1, &[(1, &cam)]);
    route.refuse = Some("keepOnEntry: 2 is not met".into());
    cam.routes.apply(&[route]).unwrap();
    for host in [&cam, &edge] {
        let status = refused(host, request("", &[1.0, 2.0])).await;
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let words = "model `default/m` refuses requests: keepOnEntry: 2 is not met";
        assert_eq!(status.message(), words);
    }
    assert!(cam.telemetry.drain().segments.is_empty());
}

#[tokio::test]
async fn any_agent_takes_the_request_to_the_entry_and_relays_its_answer() {
    let cam = serving().await;
    let edge = Host::start("edge-1", &cam.folder);
    edge.hear(&[listed(&[(&cam, true)])]);
    let reply = edge.client().model_infer(request("a", &[1.0, 2.0])).await;
    let reply = reply.unwrap().into_inner();
    assert_eq!((values(&reply), reply.id.as_str()), (vec![3.0, 5.0], "a"));
    assert_eq!(reply.model_name, "m");
    // The entry counts it.
    assert!(edge.telemetry.drain().requests.is_empty());
    assert_eq!(cam.telemetry.drain().requests.len(), 1);
    // It relays the entry's refusals.
    let mut wrong = request("a", &[1.0, 2.0]);
    wrong.inputs[0].name = "picture".into();
    assert_eq!(refused(&edge, wrong).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_entry_that_restarts_is_waited_for() {
    let mut cam = serving().await;
    let edge = Host::start("edge-1", &cam.folder);
    edge.hear(&[listed(&[(&cam, true)])]);
    cam.kill();
    let mut client = edge.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[1.0, 2.0])).await });
    sleep(Duration::from_millis(100)).await;
    let mut spare = Host::start("cam-1", &cam.folder);
    deploy(1, &mut [(&mut spare, (2.0, 1.0))]).await;
    spare.routes.apply(&[route_to(1, &[(1, &spare)])]).unwrap();
    edge.hear(&[listed(&[(&spare, true)])]);
    assert_eq!(
        values(waiting.await.unwrap().unwrap().get_ref()),
        [3.0, 5.0]
    );
}

#[tokio::test]
async fn agents_that_disagree_about_the_entry_do_not_play_ball() {
    let folder = Folder::new();
    let (one, two) = (
        Host::start("edge-1", &folder),
        Host::start("edge-2", &folder),
    );
    one.hear(&[listed(&[(&two, true)])]);
    two.hear(&[listed(&[(&one, true)])]);
    let asked = hurried(request("", &[1.0, 2.0]));
    let status = one.client().model_infer(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        status.message().contains("edge-2 is not its entry"),
        "{status}"
    );
    let mut marked = Request::new(request("", &[1.0, 2.0]));
    marked
        .metadata_mut()
        .insert(FORWARDED, "1".parse().unwrap());
    let status = one.client().model_infer(marked).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status
            .message()
            .contains("edge-1 is not an entry of model `default/m`"),
        "{status}"
    );
    assert!(status.metadata().contains_key("retry-after-ms"));
}

#[tokio::test]
async fn the_deadline_holds_at_an_entry_that_cannot_be_reached() {
    let edge = Host::start("edge-1", &Folder::new());
    let mut model = listed(&[(&edge, true)]);
    model.entries[0].node = "cam-1".into();
    model.entries[0].address = "127.0.0.1:1".into();
    edge.hear(&[model]);
    let late = hurried(request("", &[1.0, 2.0]));
    let status = edge.client().model_infer(late).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    // The deadline may pass between two tries or during one.
    assert!(status.message().contains("cam-1"), "{status}");
}

/// An entry of `m` that multiplies by `factor`.
async fn entry(name: &str, folder: &std::sync::Arc<Folder>, factor: f32) -> Host {
    let mut host = Host::start(name, folder);
    deploy(1, &mut [(&mut host, (factor, 0.0))]).await;
    host.routes.apply(&[route_to(1, &[(1, &host)])]).unwrap();
    host
}

#[tokio::test]
async fn the_nearest_entry_answers_and_the_next_where_it_cannot_be_reached() {
    let folder = Folder::new();
    let far = entry("cam-1", &folder, 10.0).await;
    let mut near = entry("cam-2", &folder, 20.0).await;
    let edge = Host::start("edge-1", &folder);
    edge.hear(&[listed(&[(&far, true), (&near, true)])]);
    let ask = async || {
        let reply = edge.client().model_infer(request("", &[1.0, 1.0])).await;
        values(reply.unwrap().get_ref())[0]
    };
    // Not measured: as reported by the operator.
    assert_eq!(ask().await, 10.0);
    edge.rtts.lock().unwrap().insert("cam-2".into(), 0.001);
    assert_eq!(ask().await, 20.0);
    near.kill();
    for _ in 0..5 {
        assert_eq!(ask().await, 10.0);
    }
    // The entry itself answers requests that arrive there, however far.
    let reply = far.client().model_infer(request("", &[1.0, 1.0])).await;
    assert_eq!(values(reply.unwrap().get_ref())[0], 10.0);
}

#[tokio::test]
async fn a_model_that_is_on_its_way_is_waited_for() {
    let folder = Folder::new();
    let cam = entry("cam-1", &folder, 10.0).await;
    let edge = Host::start("edge-1", &folder);
    let coming = lamina_proto::control::DirectoryModel {
        coming: true,
        reason: "Preparing".into(),
        ..listed(&[])
    };
    edge.hear(std::slice::from_ref(&coming));
    cam.routes.apply(&[route_to(0, &[(1, &cam)])]).unwrap();
    let waiting = [&edge, &cam].map(|host| {
        let mut client = host.client();
        tokio::spawn(async move { client.model_infer(request("", &[1.0, 1.0])).await })
    });
    let late = hurried(request("", &[1.0, 1.0]));
    let status = edge.client().model_infer(late).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("does not serve yet"), "{status}");
    let late = hurried(request("", &[1.0, 1.0]));
    let status = cam.client().model_infer(late).await.unwrap_err();
    assert!(status.message().contains("does not serve yet"), "{status}");
    for host in [&edge, &cam] {
        // They take no link from the blocks that they wait for.
        assert_eq!(host.telemetry.requests_in_flight(), 1);
        assert_eq!(host.telemetry.requests_under_way(), 0);
    }
    // Only the entry's losses count as such.
    let failed = cam.telemetry.drain().requests;
    assert_eq!(failed.values().map(Vec::len).sum::<usize>(), 1);
    assert!(edge.telemetry.drain().requests.is_empty());
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    edge.hear(&[listed(&[(&cam, true)])]);
    for one in waiting {
        let reply = one.await.unwrap().unwrap();
        assert_eq!(values(reply.get_ref())[0], 10.0);
    }
}

#[tokio::test]
async fn a_model_that_failed_says_why_at_every_agent() {
    let edge = Host::start("edge-1", &Folder::new());
    let failed = lamina_proto::control::DirectoryModel {
        reason: "Failed: InvalidModel: no TorchScript".into(),
        ..listed(&[(&edge, false)])
    };
    edge.hear(&[failed]);
    let status = refused(&edge, request("", &[1.0, 2.0])).await;
    assert_eq!(status.code(), Code::Unavailable);
    let words = "Failed: InvalidModel: no TorchScript";
    assert!(status.message().contains(words), "{status}");
}

#[tokio::test]
async fn an_entry_that_moves_under_load_loses_nothing() {
    let folder = Folder::new();
    let old = entry("cam-1", &folder, 2.0).await;
    let new = entry("cam-2", &folder, 2.0).await;
    let edge = Host::start("edge-1", &folder);
    for host in [&old, &new, &edge] {
        host.hear(&[listed(&[(&old, true)])]);
    }
    new.routes.apply(&[route_to(0, &[(1, &new)])]).unwrap();
    let workers: Vec<_> = [&old, &edge, &old, &edge]
        .into_iter()
        .map(|host| {
            let mut client = host.client();
            tokio::spawn(async move {
                for i in 0..60u8 {
                    let x = f32::from(i);
                    let reply = client.model_infer(request("", &[x, x])).await.unwrap();
                    assert_eq!(values(reply.get_ref())[0], 2.0 * x);
                    sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    sleep(Duration::from_millis(50)).await;
    // The worst order: the old one has lost its route before the new one is known.
    old.routes.apply(&[]).unwrap();
    sleep(Duration::from_millis(50)).await;
    new.routes.apply(&[route_to(1, &[(1, &new)])]).unwrap();
    for host in [&old, &new, &edge] {
        sleep(Duration::from_millis(20)).await;
        host.hear(&[listed(&[(&new, true)])]);
    }
    for worker in workers {
        worker.await.unwrap();
    }
    assert!(!new.telemetry.drain().requests.is_empty());
}

#[tokio::test]
async fn compressed_requests_are_taken() {
    let cam = serving().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = cam.client().send_compressed(encoding);
        let reply = client.model_infer(request("", &[1.0, 2.0])).await.unwrap();
        assert_eq!(values(reply.get_ref()), [3.0, 5.0]);
    }
}

#[tokio::test]
async fn a_name_without_end_is_not_sent_back() {
    let cam = serving().await;
    let mut endless = request("", &[1.0, 2.0]);
    endless.model_name = "ä".repeat(100_000);
    let status = refused(&cam, endless).await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(status.message().len() < 4096, "{}", status.message().len());
}

#[tokio::test]
async fn a_batch_for_which_there_is_no_memory_is_refused_before_anything_is_computed() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    let mut route = route_to(1, &[(1, &cam)]);
    // Of 3 GiB for runs.
    let block = folder.put_block(2.0, 1.0);
    let manifest = crate::testing::manifest(&block, 128 << 20);
    route.revisions[0].manifest = folder.put(&serde_json::to_vec(&manifest).unwrap());
    cam.routes.apply(&[route]).unwrap();
    sleep(Duration::from_millis(300)).await;
    let fits = request("", &[1.0; 32]);
    cam.client().model_infer(fits).await.unwrap();
    let runs = || {
        cam.telemetry
            .drain()
            .segments
            .values()
            .map(Vec::len)
            .sum::<usize>()
    };
    assert_eq!(runs(), 1);
    let status = refused(&cam, request("", &[1.0; 34])).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let words = "a batch of 17 is larger than the 16 rows for which model `m` has memory";
    assert!(status.message().contains(words), "{status}");
    assert_eq!(runs(), 0);
}
