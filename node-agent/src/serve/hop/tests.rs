use super::*;
use crate::serve::data_plane::testing::{Folder, Host, deploy, part};
use crate::serve::deadline::Deadline;
use crate::serve::engine::fake::{floats, fp32};
use crate::serve::engine::{Batches, Engine, EngineError, Loaded, Run, Segment, Terms};
use crate::testing::image;
use async_trait::async_trait;
use lamina_model::{Tensor, ValueSpec};
use lamina_proto::hop::hop_client::HopClient;
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingRequest};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

fn forward(segment: u32, name: &str, tensor: Tensor) -> ForwardRequest {
    ForwardRequest {
        placement_uid: "u".into(),
        revision: 1,
        segment,
        tensors: vec![to_wire(name, tensor)],
        ..ForwardRequest::default()
    }
}

async fn send(host: &Host, request: ForwardRequest) -> Result<ForwardReply, Status> {
    let mut client = HopClient::new(host.channel());
    Ok(client.forward(request).await?.into_inner())
}

#[tokio::test]
async fn the_addressed_segment_runs_and_says_where_the_time_went() {
    let folder = Folder::new();
    let mut edge = Host::slow("edge-1", &folder, Duration::from_millis(5));
    edge.hold(part(&folder, 1, 1, (3.0, 0.0), None)).await;
    let request = forward(1, "x1", fp32(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    let reply = send(&edge, request).await.unwrap();
    assert_eq!(reply.tensors[0].name, "scores");
    let scores = from_wire(&reply.tensors[0]).unwrap();
    assert_eq!(floats(&scores), [3.0, 6.0, 9.0, 12.0]);
    let [timing] = &reply.timings[..] else {
        panic!("{:?}", reply.timings)
    };
    assert_eq!((timing.node.as_str(), timing.segment), ("edge-1", 1));
    assert_eq!((timing.bytes_in, timing.bytes_out), (16, 16));
    assert!(timing.compute_us >= 5000 && timing.total_us >= timing.compute_us);
    assert_eq!(timing.downstream_us, 0);
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let folder = Folder::new();
    let mut edge = Host::start("edge-1", &folder);
    edge.hold(part(&folder, 1, 1, (3.0, 0.0), None)).await;
    let good = || fp32(&[1, 2], &[1.0, 2.0]);
    let cases = [
        (
            forward(0, "x1", good()),
            Code::FailedPrecondition,
            "edge-1 does not hold segment 0 of revision 1",
        ),
        (
            forward(1, "y", good()),
            Code::InvalidArgument,
            "`x1` is missing; given: y",
        ),
        (
            forward(1, "x1", fp32(&[1, 3], &[1.0, 2.0, 3.0])),
            Code::InvalidArgument,
            "expected shape [-1, 2], got [1, 3]",
        ),
    ];
    for (request, code, words) in cases {
        let status = send(&edge, request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
}

/// The graph of a slice whose first input only passes through.
struct Passing;

#[async_trait]
impl Engine for Passing {
    async fn load(
        &self,
        _: &str,
        _: Vec<PathBuf>,
        _: Vec<ValueSpec>,
    ) -> Result<Loaded, EngineError> {
        Ok(Loaded {
            segment: Arc::new(Self),
            run_seconds: 0.0,
            resident_bytes: 0,
        })
    }

    fn is_alive(&self) -> bool {
        true
    }
}

#[async_trait]
impl Segment for Passing {
    async fn run(&self, mut inputs: Vec<Tensor>, _: Terms) -> Result<Run, EngineError> {
        let own = inputs.pop().ok_or(EngineError::Late)?;
        let doubled: Vec<f32> = floats(&own).iter().map(|x| x * 2.0).collect();
        Ok(Run {
            outputs: vec![fp32(&own.shape, &doubled)],
            queue: Duration::ZERO,
            compute: Duration::ZERO,
        })
    }

    async fn specialize(&self, _: i64) -> Result<Batches, EngineError> {
        Ok(Batches::default())
    }
}

#[tokio::test]
async fn a_value_that_only_passes_a_host_reaches_the_next() {
    let folder = Folder::new();
    let mut edge = Host::with_engine("edge-1", &folder, Arc::new(Passing));
    let mut cloud = Host::start("cloud-1", &folder);
    let mut first = part(&folder, 1, 0, (1.0, 0.0), Some(&cloud));
    first.inputs = vec![image("skip"), image("x")];
    first.outputs = vec![image("skip"), image("y")];
    let mut last = part(&folder, 1, 1, (1.0, 1.0), None);
    last.inputs = vec![image("y"), image("skip")];
    last.outputs = vec![image("a"), image("b")];
    edge.hold(first).await;
    cloud.hold(last).await;
    let mut request = forward(0, "skip", fp32(&[1, 2], &[7.0, 7.0]));
    request
        .tensors
        .push(to_wire("x", fp32(&[1, 2], &[1.0, 2.0])));
    let reply = send(&edge, request).await.unwrap();
    let given = |i: usize| floats(&from_wire(&reply.tensors[i]).unwrap());
    assert_eq!((given(0), given(1)), (vec![3.0, 5.0], vec![8.0, 8.0]));
}

#[tokio::test]
async fn what_stops_the_engine_has_its_code() {
    let error = |reason| HopError::Engine {
        node: "edge-1".into(),
        segment: 1,
        reason,
    };
    let again = Duration::from_millis(200);
    let busy = EngineError::Busy {
        waiting: 256,
        again,
    };
    let crowded = EngineError::Crowded { wait: again, again };
    for reason in [busy, crowded] {
        let status = Status::from(error(reason));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "200");
    }
    let cases = [
        (EngineError::Late, Code::DeadlineExceeded),
        (EngineError::Memory("1 TB".into()), Code::ResourceExhausted),
        (EngineError::NoWorker("why".into()), Code::Unavailable),
        // A retry on this path would fail the same way.
        (EngineError::Crashed("SIGSEGV".into()), Code::Internal),
        (EngineError::Stuck(Duration::from_secs(3)), Code::Internal),
        (EngineError::Value("index 9".into()), Code::InvalidArgument),
        (EngineError::Forward("nan".into()), Code::Internal),
    ];
    for (reason, code) in cases {
        let status = Status::from(error(reason));
        assert_eq!(status.code(), code);
        assert!(status.message().starts_with("segment 1 on edge-1: "));
    }
}

#[tokio::test]
async fn a_ping_of_any_size_is_answered() {
    let edge = Host::start("edge-1", &Folder::new());
    let mut client = HopClient::new(edge.channel());
    let payload = vec![0; 5 << 20].into();
    let reply = client.ping(PingRequest { payload }).await.unwrap();
    assert!(reply.into_inner().server_us < 1_000_000);
}

#[tokio::test]
async fn a_host_that_comes_back_is_reached_at_once() {
    let folder = Folder::new();
    let mut edge = Host::start("edge-1", &folder);
    edge.hold(part(&folder, 1, 1, (3.0, 0.0), None)).await;
    let hops = Hops::default();
    let deadline = || Deadline::after(Duration::from_secs(5));
    let request = || forward(1, "x1", fp32(&[1, 2], &[1.0, 2.0]));
    hops.forward(&edge.hop, request(), deadline())
        .await
        .unwrap();
    edge.kill();
    for _ in 0..3 {
        let error = hops.forward(&edge.hop, request(), deadline()).await;
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.to_string().contains("edge-1 at 127.0.0.1"), "{error}");
    }
    assert!(hops.addresses().is_empty());
    let mut edge = edge.restarted();
    edge.hold(part(&folder, 1, 1, (3.0, 0.0), None)).await;
    hops.forward(&edge.hop, request(), deadline())
        .await
        .unwrap();
    assert_eq!(hops.addresses(), std::slice::from_ref(&edge.hop.address));
    hops.drop_unused(Duration::from_secs(60));
    assert_eq!(hops.addresses().len(), 1);
    hops.drop_unused(Duration::ZERO);
    assert!(hops.addresses().is_empty());
}

#[tokio::test]
async fn an_address_that_is_none_is_named() {
    let nowhere = lamina_crds::Hop {
        node: "edge-1".into(),
        address: "not an address".into(),
    };
    let request = forward(1, "x1", fp32(&[1, 2], &[1.0, 2.0]));
    let deadline = Deadline::after(Duration::from_secs(5));
    let error = Hops::default().forward(&nowhere, request, deadline).await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("`not an address` is no address")
    );
}

#[tokio::test]
async fn large_tensors_pass() {
    let folder = Folder::new();
    let (mut cam, mut edge) = (
        Host::start("cam-1", &folder),
        Host::start("edge-1", &folder),
    );
    deploy(1, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    let rows = 1 << 18;
    let tensor = fp32(&[rows, 2], &vec![1.0; 2 * rows as usize]);
    let mut client = HopClient::new(cam.channel()).max_decoding_message_size(1 << 30);
    let reply = client.forward(forward(0, "image", tensor)).await.unwrap();
    let reply = reply.into_inner();
    assert_eq!(bytes_of(&reply.tensors), 2 << 20);
    assert_eq!(reply.tensors[0].data[..4], 3.0_f32.to_le_bytes());
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_is_not_taken() {
    let folder = Folder::new();
    let mut edge = Host::start("edge-1", &folder);
    edge.hold(part(&folder, 1, 1, (3.0, 0.0), None)).await;
    let rows = 1 << 19;
    let request = || forward(1, "x1", fp32(&[rows, 2], &vec![1.0; 2 * rows as usize]));
    let deadline = Deadline::after(Duration::from_secs(20));
    let small = Hops::default().for_answers_of(1 << 20);
    let error = small.forward(&edge.hop, request(), deadline).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    let expected = "the answer of edge-1 is larger than the 2097152 bytes";
    assert!(error.to_string().starts_with(expected), "{error}");
    // The connection is good for others.
    let little = forward(1, "x1", fp32(&[1, 2], &[1.0, 2.0]));
    assert!(small.forward(&edge.hop, little, deadline).await.is_ok());
    let large = Hops::default().for_answers_of(4 << 20);
    let reply = large.forward(&edge.hop, request(), deadline).await.unwrap();
    assert_eq!(bytes_of(&reply.reply.tensors), 4 << 20);
}
