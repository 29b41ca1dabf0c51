use super::testing::{Folder, Host, deploy, parameter, part, request, revision, route_to, values};
use crate::telemetry::{Outcome, RequestKey, SegmentKey};
use crate::testing::image;
use futures::future::join_all;
use lamina_crds::compute_node::Route;
use lamina_proto::inference::ModelInferRequest;
use lamina_proto::inference::model_infer_request::InferInputTensor;
use std::time::Duration;
use tokio::time::sleep;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const MS: fn(u64) -> Duration = Duration::from_millis;

#[tokio::test]
async fn a_request_goes_through_every_host_and_its_answer_back() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::slow("edge-1", &folder, MS(20));
    let mut cloud = Host::start("cloud-1", &folder);
    deploy(
        1,
        &mut [
            (&mut cam, (2.0, 0.0)),
            (&mut edge, (1.0, 1.0)),
            (&mut cloud, (10.0, 0.0)),
        ],
    )
    .await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();

    let reply = cam.client().model_infer(request("a", &[1.0, 2.0])).await;
    let reply = reply.unwrap().into_inner();
    assert_eq!(values(&reply), [30.0, 50.0]);
    assert_eq!((reply.id.as_str(), revision(&reply)), ("a", 1));
    assert_eq!(parameter(&reply, "lamina_path"), "cam-1[0-1]");
    let timing = parameter(&reply, "lamina_timing");
    let timing: serde_json::Value = serde_json::from_str(&timing).unwrap();
    let nodes: Vec<_> = (0..3)
        .map(|i| timing[i]["node"].as_str().unwrap())
        .collect();
    assert_eq!(nodes, ["cam-1", "edge-1", "cloud-1"]);
    assert!(timing[1]["compute_us"].as_u64().unwrap() >= 20_000);
    // The slow host's time is not counted as transfer to it.
    assert!(
        timing[0]["transfer_us"].as_u64().unwrap() < 20_000,
        "{timing}"
    );
    assert_eq!(timing[2]["transfer_us"], 0);
    assert_eq!(
        (&timing[1]["bytes_in"], &timing[1]["bytes_out"]),
        (&8.into(), &8.into())
    );

    let seen = cam.telemetry.drain();
    assert_eq!(seen.transfers.len(), 1);
    assert_eq!(
        (seen.transfers[0].peer.as_str(), seen.transfers[0].bytes_out),
        ("edge-1", 8)
    );
    assert!(seen.transfers[0].seconds < 0.02);
    let request = &seen.requests[&RequestKey {
        placement_uid: "u".into(),
        revision: 1,
    }][0];
    assert_eq!((request.outcome, request.retried), (Outcome::Answered, 0));
    let run = SegmentKey {
        placement_uid: "u".into(),
        revision: 1,
        segment: 1,
    };
    assert!(edge.telemetry.drain().segments[&run][0].compute_s >= 0.02);
    assert_eq!(cam.telemetry.requests_in_flight(), 0);
}

#[tokio::test]
async fn nothing_is_lost_when_a_host_is_killed_and_comes_back() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::slow("edge-1", &folder, MS(5));
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let client = cam.client();
    let sending = tokio::spawn(async move {
        let one = |i: u16| {
            let mut client = client.clone();
            async move {
                sleep(MS(u64::from(i) * 10)).await;
                let x = f32::from(i);
                let reply = client.model_infer(request("", &[x, x])).await.unwrap();
                assert_eq!(values(reply.get_ref())[0], 2.0f32.mul_add(x, 1.0));
            }
        };
        join_all((0..50).map(one)).await;
    });
    sleep(MS(100)).await;
    edge.kill();
    sleep(MS(150)).await;
    let mut edge = edge.restarted();
    edge.hold(part(&folder, 1, 1, (1.0, 1.0), None)).await;
    sending.await.unwrap();
    let requests = cam.telemetry.drain().requests;
    assert!(requests.values().flatten().any(|r| r.retried > 0));
}

/// Revision 1 is active on cam-1→edge-1; edge-2 holds all of revision 2.
async fn a_path_and_a_spare() -> [Host; 3] {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    let mut spare = Host::start("edge-2", &folder);
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    deploy(2, &mut [(&mut spare, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    [cam, edge, spare]
}

#[tokio::test]
async fn requests_follow_the_route_when_it_moves_to_another_host() {
    let [cam, mut edge, spare] = a_path_and_a_spare().await;
    edge.kill();
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    sleep(MS(100)).await;
    cam.routes.apply(&[route_to(2, &[(2, &spare)])]).unwrap();
    let reply = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!((values(&reply)[0], revision(&reply)), (7.0, 2));
}

/// Runs of the entry's slice while 30 requests wait for two seconds, after `away` has disabled the
/// next host. Then all take another path.
async fn runs_while_requests_wait(away: fn(&mut Host)) -> usize {
    let [cam, mut edge, spare] = a_path_and_a_spare().await;
    away(&mut edge);
    let client = cam.client();
    let waiting: Vec<_> = (0..30u8)
        .map(|i| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let x = f32::from(i);
                // Only the first finds out.
                sleep(MS(if i == 0 { 0 } else { 500 })).await;
                let reply = client.model_infer(request("", &[x, x])).await.unwrap();
                assert_eq!(values(reply.get_ref())[0], 2.0f32.mul_add(x, 1.0));
            })
        })
        .collect();
    sleep(MS(2000)).await;
    let runs = |host: &Host| {
        let segments = host.telemetry.drain().segments;
        segments.values().map(Vec::len).sum::<usize>()
    };
    let meanwhile = runs(&cam);
    cam.routes.apply(&[route_to(2, &[(2, &spare)])]).unwrap();
    for one in waiting {
        one.await.unwrap();
    }
    assert_eq!(runs(&spare), 30);
    meanwhile
}

#[tokio::test]
async fn nothing_is_computed_for_a_host_that_is_away() {
    assert_eq!(runs_while_requests_wait(Host::kill).await, 0);
}

#[tokio::test]
async fn of_requests_that_wait_one_tries_at_a_time() {
    // One every 250 to 500 ms; 30 at least if each had tried.
    let runs = runs_while_requests_wait(|edge| edge.drop_revision(1)).await;
    assert!((2..20).contains(&runs), "{runs}");
}

#[tokio::test]
async fn requests_on_a_dropped_revision_are_sent_again() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut stuck = Host::slow("edge-1", &folder, Duration::from_secs(60));
    deploy(1, &mut [(&mut stuck, (2.0, 1.0))]).await;
    deploy(2, &mut [(&mut cam, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &stuck)])]).unwrap();
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    while stuck.telemetry.requests_in_flight() == 0 {
        sleep(MS(5)).await;
    }
    cam.routes.apply(&[route_to(2, &[(2, &cam)])]).unwrap();
    let reply = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!((values(&reply)[0], revision(&reply)), (7.0, 2));
    assert_eq!(cam.routes.statuses()[0].oldest_in_flight, 2);
}

#[tokio::test]
async fn a_flip_under_load_loses_nothing_and_mixes_nothing() {
    let folder = Folder::new();
    let mut cam = Host::slow("cam-1", &folder, MS(2));
    let mut edge = Host::slow("edge-1", &folder, MS(2));
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    // The same result on another split; a mixture of the two gives another.
    deploy(2, &mut [(&mut cam, (1.0, 0.5)), (&mut edge, (2.0, 0.0))]).await;
    cam.routes
        .apply(&[route_to(1, &[(1, &cam), (2, &cam)])])
        .unwrap();
    let client = cam.client();
    let worker = |number: u16| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let mut by_revision = [0; 3];
            for i in 0..40 {
                let x = f32::from(number * 100 + i);
                let reply = client.model_infer(request("", &[x, 0.0])).await.unwrap();
                assert_eq!(values(reply.get_ref())[0], 2.0f32.mul_add(x, 1.0));
                by_revision[revision(reply.get_ref()) as usize] += 1;
            }
            by_revision
        })
    };
    let workers: Vec<_> = (0..6).map(worker).collect();
    sleep(MS(100)).await;
    cam.routes
        .apply(&[route_to(2, &[(1, &cam), (2, &cam)])])
        .unwrap();
    while cam.routes.statuses()[0].oldest_in_flight < 2 {
        sleep(MS(2)).await;
    }
    cam.routes.apply(&[route_to(2, &[(2, &cam)])]).unwrap();
    cam.drop_revision(1);
    edge.drop_revision(1);
    let mut sums = [0; 3];
    for worker in workers {
        let by_revision = worker.await.unwrap();
        sums.iter_mut().zip(by_revision).for_each(|(s, n)| *s += n);
    }
    assert_eq!(sums[1] + sums[2], 240);
    assert!(sums[1] > 0 && sums[2] > 0, "{sums:?}");
}

#[tokio::test]
async fn a_client_that_goes_away_is_forgotten_on_every_host() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    let mut stuck = Host::slow("cloud-1", &folder, Duration::from_secs(60));
    deploy(
        1,
        &mut [
            (&mut cam, (2.0, 0.0)),
            (&mut edge, (1.0, 1.0)),
            (&mut stuck, (1.0, 0.0)),
        ],
    )
    .await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    while stuck.telemetry.requests_in_flight() == 0 {
        sleep(MS(5)).await;
    }
    waiting.abort();
    let inside = || {
        let hosts = [&cam, &edge, &stuck];
        hosts.map(|h| h.telemetry.requests_in_flight())
    };
    for _ in 0..200 {
        if inside() == [0, 0, 0] {
            return;
        }
        sleep(MS(5)).await;
    }
    panic!("still inside: {:?}", inside());
}

#[tokio::test]
async fn a_passed_deadline_names_the_host_that_was_late() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::slow("edge-1", &folder, Duration::from_secs(60));
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let mut late = Request::new(request("", &[3.0, 0.0]));
    late.set_timeout(MS(300));
    let status = cam.client().model_infer(late).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("edge-1"), "{status}");
    let requests = cam.telemetry.drain().requests;
    assert!(
        requests
            .values()
            .flatten()
            .all(|r| r.outcome == Outcome::Failed)
    );
}

#[tokio::test]
async fn a_host_that_stays_away_costs_the_deadline_and_is_named() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::start("edge-1", &folder);
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    edge.kill();
    let mut late = Request::new(request("", &[3.0, 0.0]));
    late.set_timeout(MS(400));
    let status = cam.client().model_infer(late).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(
        status.message().contains("no connection to edge-1"),
        "{status}"
    );
}

#[tokio::test]
async fn health_says_ready_and_a_shutdown_finishes_what_is_inside() {
    let folder = Folder::new();
    let mut cam = Host::slow("cam-1", &folder, MS(300));
    deploy(1, &mut [(&mut cam, (2.0, 0.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let mut health = HealthClient::new(cam.channel());
    for service in ["", "inference.GRPCInferenceService"] {
        let service = service.to_owned();
        let reply = health.check(HealthCheckRequest { service }).await;
        assert_eq!(reply.unwrap().into_inner().status(), ServingStatus::Serving);
    }
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    while cam.telemetry.requests_in_flight() == 0 {
        sleep(MS(5)).await;
    }
    cam.shutdown.cancel();
    assert_eq!(values(waiting.await.unwrap().unwrap().get_ref())[0], 6.0);
    assert!(
        cam.client()
            .model_infer(request("", &[3.0, 0.0]))
            .await
            .is_err()
    );
}

/// A request for the inputs of revision 2 in [`two_signatures`].
fn new_request(x: f32) -> ModelInferRequest {
    let one = request("", &[x, x]);
    let input = |name: &str| InferInputTensor {
        name: name.into(),
        ..one.inputs[0].clone()
    };
    ModelInferRequest {
        inputs: vec![input("pixels"), input("mask")],
        raw_input_contents: vec![one.raw_input_contents[0].clone(); 2],
        ..one
    }
}

/// Revision 1 maps `image` to `scores` over `edge`; revision 2, all on `cam`, maps `pixels` and
/// `mask` to `labels` and `extra`.
async fn two_signatures(cam: &mut Host, edge: &mut Host, active: i64) -> Route {
    deploy(1, &mut [(edge, (2.0, 1.0))]).await;
    let mut second = part(&cam.folder, 2, 0, (3.0, 0.0), None);
    second.inputs = vec![image("pixels"), image("mask")];
    second.outputs = vec![image("labels"), image("extra")];
    let mut route = route_to(active, &[(1, edge), (2, cam)]);
    route.revisions[1].inputs.clone_from(&second.inputs);
    route.revisions[1].outputs.clone_from(&second.outputs);
    cam.hold(second).await;
    cam.routes.apply(std::slice::from_ref(&route)).unwrap();
    route
}

/// Applies `route` without `revision`, as when it has drained.
fn without(route: &Route, revision: i64) -> Route {
    let mut route = route.clone();
    route.revisions.retain(|r| r.revision != revision);
    route
}

#[tokio::test]
async fn an_update_with_another_signature_loses_nothing_and_every_client_gets_a_clear_answer() {
    let folder = Folder::new();
    let mut cam = Host::slow("cam-1", &folder, MS(2));
    let mut edge = Host::slow("edge-1", &folder, MS(2));
    let mut route = two_signatures(&mut cam, &mut edge, 1).await;
    let worker = |is_new: bool| {
        let mut client = cam.client();
        tokio::spawn(async move {
            let (mut answered, mut refused) = (0, 0);
            for i in 0..60u8 {
                let x = f32::from(i);
                let asked = if is_new {
                    new_request(x)
                } else {
                    request("", &[x, x])
                };
                match client.model_infer(asked).await {
                    Ok(reply) => {
                        let reply = reply.into_inner();
                        let (revision, first) = (revision(&reply), values(&reply)[0]);
                        let expected = if is_new {
                            (2, 3.0 * x, 2)
                        } else {
                            (1, 2.0f32.mul_add(x, 1.0), 1)
                        };
                        assert_eq!((revision, first, reply.outputs.len()), expected);
                        answered += 1;
                    }
                    Err(status) => {
                        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
                        let words = if is_new {
                            "model `m` takes: `image` FP32 [-1, 2]"
                        } else {
                            "model `m` was updated: revision 2 takes `pixels` FP32 [-1, 2], `mask` \
                             FP32 [-1, 2] and gives `labels` FP32 [-1, 2], `extra` FP32 [-1, 2]"
                        };
                        assert!(status.message().contains(words), "{status}");
                        refused += 1;
                    }
                }
                sleep(MS(3)).await;
            }
            (answered, refused)
        })
    };
    let workers = [false, true, false, true].map(worker);
    sleep(MS(150)).await;
    route.active_revision = 2;
    cam.routes.apply(std::slice::from_ref(&route)).unwrap();
    while cam.routes.statuses()[0].oldest_in_flight < 2 {
        sleep(MS(2)).await;
    }
    cam.routes.apply(&[without(&route, 1)]).unwrap();
    edge.drop_revision(1);
    for worker in workers {
        let (answered, refused) = worker.await.unwrap();
        assert!(answered > 0 && refused > 0, "{answered} {refused}");
    }
    let requests = cam.telemetry.drain().requests;
    let all = || requests.values().flatten();
    assert!(all().all(|r| r.outcome == Outcome::Answered));
}

#[tokio::test]
async fn a_request_inside_finishes_on_the_revision_that_took_it() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut edge = Host::slow("edge-1", &folder, MS(300));
    let mut route = two_signatures(&mut cam, &mut edge, 1).await;
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    while edge.telemetry.requests_in_flight() == 0 {
        sleep(MS(2)).await;
    }
    route.active_revision = 2;
    cam.routes.apply(&[route]).unwrap();
    let reply = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!((values(&reply)[0], revision(&reply)), (7.0, 1));
}

#[tokio::test]
async fn a_retry_is_never_sent_to_a_revision_that_takes_something_else() {
    let folder = Folder::new();
    let mut cam = Host::start("cam-1", &folder);
    let mut stuck = Host::slow("edge-1", &folder, Duration::from_secs(60));
    let mut route = two_signatures(&mut cam, &mut stuck, 1).await;
    // Only in its names: by shape it would fit.
    route.revisions[1].inputs.truncate(1);
    let mut client = cam.client();
    let waiting = tokio::spawn(async move { client.model_infer(request("", &[3.0, 0.0])).await });
    while stuck.telemetry.requests_in_flight() == 0 {
        sleep(MS(2)).await;
    }
    route.active_revision = 2;
    cam.routes.apply(&[without(&route, 1)]).unwrap();
    let status = waiting.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let words = "model `m` was updated: revision 2 takes `pixels`";
    assert!(status.message().contains(words), "{status}");
    assert!(cam.telemetry.drain().segments.is_empty());
}
