//! Requests on one stream, at the entry and at a forwarding agent.

use super::testing::{Folder, Host, deploy, listed, request, route_to, values};
use crate::serve::access::AuthMode;
use crate::serve::access::testing::{Gatekeeper, key};
use futures::future::join;
use futures::stream::{self, Stream, StreamExt as _};
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::{ModelInferRequest, ModelStreamInferResponse};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request, Status, Streaming};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// An entry that serves `m` as 2x+1 over two hosts, of which the second takes `run_time`, and a
/// forwarding agent.
struct Site {
    cam: Host,
    edge: Host,
    other: Host,
}

impl Site {
    async fn start(run_time: Duration) -> Self {
        let folder = Folder::new();
        let mut cam = Host::start("cam-1", &folder);
        let mut edge = Host::slow("edge-1", &folder, run_time);
        let other = Host::start("cloud-1", &folder);
        deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
        cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
        other.hear(&[listed(&[(&cam, true)])]);
        Self { cam, edge, other }
    }

    fn inside(&self) -> [u32; 3] {
        [&self.cam, &self.edge, &self.other].map(|host| host.telemetry.requests_in_flight())
    }
}

type Answers = Streaming<ModelStreamInferResponse>;

async fn opened(
    host: &Host,
    requests: impl Stream<Item = ModelInferRequest> + Send + 'static,
) -> Answers {
    let answers = host.client().model_stream_infer(requests).await;
    answers.unwrap().into_inner()
}

/// The request of number `i`.
fn numbered(i: u16) -> ModelInferRequest {
    request(&i.to_string(), &[f32::from(i), 0.0])
}

/// The id and the first value, or the error's status and message.
fn told(answer: Result<ModelStreamInferResponse, Status>) -> (String, Result<f32, (i64, String)>) {
    let answer = answer.unwrap();
    let response = answer.infer_response.unwrap();
    if answer.error_message.is_empty() {
        return (response.id.clone(), Ok(values(&response)[0]));
    }
    match response.parameters["lamina_grpc_status"].parameter_choice {
        Some(ParameterChoice::Int64Param(code)) => (response.id, Err((code, answer.error_message))),
        ref other => panic!("{other:?}"),
    }
}

async fn all(answers: Answers) -> Vec<(String, Result<f32, (i64, String)>)> {
    answers.map(told).collect().await
}

#[tokio::test]
async fn answers_come_in_the_order_of_their_requests_and_errors_stand_between_them() {
    let site = Site::start(MS(1)).await;
    for host in [&site.cam, &site.other] {
        let mut requests: Vec<_> = (0..50).map(numbered).collect();
        requests[3].model_name = "n".into();
        requests[4].inputs[0].name = "picture".into();
        requests[6].inputs = vec![requests[6].inputs[0].clone(); 257];
        let answers = all(opened(host, stream::iter(requests)).await).await;
        assert_eq!(answers.len(), 50);
        for (i, (id, outcome)) in (0_u16..).zip(answers) {
            let refused = match i {
                3 => Some((Code::NotFound, "unknown model `default/n`")),
                4 => Some((Code::InvalidArgument, "unknown input `picture`")),
                // Refused before it is decoded, so its id is unknown.
                6 => Some((Code::InvalidArgument, "more than 256 inputs")),
                _ => None,
            };
            assert_eq!(id, if i == 6 { String::new() } else { i.to_string() });
            match (refused, outcome) {
                (None, outcome) => assert_eq!(outcome, Ok(f32::from(2 * i + 1))),
                (Some((code, words)), Err((got, message))) => {
                    assert_eq!(got, i64::from(i32::from(code)), "{message}");
                    assert!(message.contains(words), "{message}");
                }
                (Some(_), Ok(value)) => panic!("{i}: {value}"),
            }
        }
    }
}

#[tokio::test]
async fn a_stream_has_a_few_requests_inside_and_the_others_wait_outside() {
    let site = Site::start(MS(4)).await;
    let answering = all(opened(&site.cam, stream::iter((0..100).map(numbered))).await);
    let watching = async {
        let mut most = 0;
        for _ in 0..60 {
            most = most.max(site.cam.telemetry.requests_in_flight());
            sleep(MS(5)).await;
        }
        most
    };
    let (answers, most) = join(answering, watching).await;
    assert_eq!(answers.len(), 100);
    assert!((2..=16).contains(&most), "{most}");
}

#[tokio::test]
async fn a_client_that_goes_away_is_forgotten_on_every_host() {
    let site = Site::start(Duration::from_secs(60)).await;
    let (sender, answers) = by_and_by(&site.other, "any").await.unwrap();
    for i in 0..8 {
        sender.send(numbered(i)).await.unwrap();
    }
    let until = Instant::now() + Duration::from_secs(10);
    while site.inside() != [8, 8, 8] {
        assert!(Instant::now() < until, "{:?}", site.inside());
        sleep(MS(5)).await;
    }
    // As when a call is cancelled: both ways of the stream end.
    drop((sender, answers));
    while site.inside() != [0, 0, 0] {
        assert!(Instant::now() < until, "still inside: {:?}", site.inside());
        sleep(MS(5)).await;
    }
}

#[tokio::test]
async fn each_request_has_its_own_time_and_all_of_them_the_streams() {
    let site = Site::start(MS(400)).await;
    let hurried = |i: u16, micros: i64| {
        let mut hurried = numbered(i);
        let parameter_choice = Some(ParameterChoice::Int64Param(micros));
        let timeout = lamina_proto::inference::InferParameter { parameter_choice };
        hurried.parameters.insert("timeout".to_owned(), timeout);
        hurried
    };
    let requests = [
        hurried(0, 5_000_000),
        hurried(1, 100_000),
        hurried(2, 5_000_000),
    ];
    let answers = all(opened(&site.cam, stream::iter(requests.clone())).await).await;
    assert_eq!((&answers[0].1, &answers[2].1), (&Ok(1.0), &Ok(5.0)));
    let (code, words) = answers[1].1.clone().unwrap_err();
    assert_eq!(
        code,
        i64::from(i32::from(Code::DeadlineExceeded)),
        "{words}"
    );
    let mut call = Request::new(stream::iter(requests));
    call.set_timeout(MS(600));
    let answers = site.cam.client().model_stream_infer(call).await.unwrap();
    let answers: Vec<_> = answers.into_inner().collect().await;
    assert_eq!(told(answers[0].clone()).1, Ok(1.0));
    let late = answers.last().unwrap();
    let is_late = late.as_ref().is_err() || told(late.clone()).1.is_err();
    assert!(is_late, "{late:?}");
}

#[tokio::test]
async fn packed_messages_are_unpacked() {
    let site = Site::start(Duration::ZERO).await;
    for packing in [CompressionEncoding::Gzip, CompressionEncoding::Deflate] {
        let mut client = site.cam.client().send_compressed(packing);
        let requests = stream::iter((0..5).map(numbered));
        let answers = client.model_stream_infer(requests).await.unwrap();
        let answers = all(answers.into_inner()).await;
        assert!(
            answers.iter().all(|(_, outcome)| outcome.is_ok()),
            "{answers:?}"
        );
    }
}

#[tokio::test]
async fn a_shutdown_answers_what_is_inside_and_ends_the_stream() {
    let site = Site::start(MS(300)).await;
    let requests = stream::iter([numbered(3)]).chain(stream::pending());
    let mut answers = opened(&site.cam, requests).await;
    while site.inside()[0] == 0 {
        sleep(MS(5)).await;
    }
    site.cam.shutdown.cancel();
    let first = answers.next().await.unwrap();
    assert_eq!(told(first).1, Ok(7.0));
    let end = timeout(Duration::from_secs(5), answers.next()).await;
    let status = end.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("another stream"), "{status}");
}

/// A stream that sends requests one by one, opened with `shown`.
async fn by_and_by(
    host: &Host,
    shown: &str,
) -> Result<(mpsc::Sender<ModelInferRequest>, Answers), Status> {
    let (sender, receiver) = mpsc::channel(8);
    let mut call = Request::new(ReceiverStream::new(receiver));
    call.metadata_mut()
        .insert("x-api-key", shown.parse().unwrap());
    let answers = host.client().model_stream_infer(call).await?;
    Ok((sender, answers.into_inner()))
}

#[tokio::test]
async fn who_may_ask_is_decided_for_each_request() {
    let folder = Folder::new();
    let gatekeeper = Gatekeeper::by(AuthMode::ApiKey);
    let valid = [key("a-key", "default", &["m"])];
    gatekeeper.say(&valid);
    let mut cam = Host::guarded("cam-1", &folder, &gatekeeper);
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let status = by_and_by(&cam, "another").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    let (sender, mut answers) = by_and_by(&cam, "a-key").await.unwrap();
    let mut ask = async |name: &str| {
        let asked = ModelInferRequest {
            model_name: name.into(),
            ..numbered(1)
        };
        sender.send(asked).await.unwrap();
        answers.next().await.unwrap()
    };
    assert_eq!(told(ask("m").await).1, Ok(3.0));
    for foreign in ["lab/m", "n"] {
        let (code, words) = told(ask(foreign).await).1.unwrap_err();
        assert_eq!(
            code,
            i64::from(i32::from(Code::PermissionDenied)),
            "{words}"
        );
    }
    assert_eq!(told(ask("default/m").await).1, Ok(3.0));
    // A removed key ends the stream.
    gatekeeper.say(&[]);
    let status = ask("m").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test]
async fn a_rate_holds_on_a_stream_too() {
    let folder = Folder::new();
    let gatekeeper = Gatekeeper::by(AuthMode::None).pacing(5);
    let mut cam = Host::guarded("cam-1", &folder, &gatekeeper);
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let answers = all(opened(&cam, stream::iter((0..40).map(numbered))).await).await;
    assert_eq!(answers.len(), 40);
    let refused = answers
        .iter()
        .filter_map(|(_, outcome)| outcome.as_ref().err());
    let refused: Vec<_> = refused.collect();
    // So many came in a second that few of them were answered.
    assert!((20..=35).contains(&refused.len()), "{}", refused.len());
    for (code, words) in refused {
        assert_eq!(
            *code,
            i64::from(i32::from(Code::ResourceExhausted)),
            "{words}"
        );
    }
}
