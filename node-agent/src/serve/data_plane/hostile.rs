//! Attacks from the network, each beside a client that loses nothing.

use super::testing::{Folder, Host, deploy, part, request, route_to, values};
use crate::serve::engine::fake::{FakeBlock, fp32};
use crate::serve::guard::testing::{Frames, framed};
use crate::serve::hop::to_wire;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request};
use lamina_crds::compute_node::Slice;
use lamina_proto::hop::ForwardRequest;
use lamina_proto::inference::ModelInferRequest;
use prost::Message as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
const STREAM: &str = "/inference.GRPCInferenceService/ModelStreamInfer";
pub(super) const FORWARD: &str = "/lamina.hop.v1.Hop/Forward";

/// How the host answers `frame`, sent to `path` as it is.
pub(super) async fn sent(
    channel: Channel,
    path: &str,
    encoding: &str,
    frame: &[u8],
    ends: bool,
) -> Code {
    let frames = [Bytes::copy_from_slice(frame)].into();
    let request = posted(path, encoding, Frames { frames, ends });
    let mut channel = channel;
    let response = channel.ready().await.unwrap().call(request).await.unwrap();
    code_in(response.headers())
}

fn posted(path: &str, encoding: &str, frames: Frames) -> Request<tonic::body::Body> {
    Request::post(format!("http://host{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(tonic::body::Body::new(frames))
        .unwrap()
}

fn code_in(headers: &HeaderMap) -> Code {
    let code = headers.get("grpc-status").map(HeaderValue::as_bytes);
    code.map_or(Code::Ok, Code::from_bytes)
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    let packed = encoder.finish().unwrap();
    framed(1, packed.len(), &packed)
}

/// A host that serves `m` as 2x+1.
async fn serving() -> Host {
    let mut cam = Host::start("cam-1", &Folder::new());
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    cam
}

/// A client that sends requests all the time. It panics if it gets no answer within five seconds.
struct Normal {
    stop: Arc<AtomicBool>,
    asking: tokio::task::JoinHandle<()>,
}

impl Normal {
    fn of(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = host.client();
        let stopped = Arc::clone(&stop);
        let asking = tokio::spawn(async move {
            // However short the attack was, it sends more afterwards.
            let mut asked_afterwards = 0;
            while asked_afterwards < 3 {
                asked_afterwards += u32::from(stopped.load(Ordering::Relaxed));
                let asked = client.model_infer(request("", &[1.0, 2.0]));
                let reply = timeout(Duration::from_secs(5), asked).await.unwrap();
                assert_eq!(values(reply.unwrap().get_ref())[..2], [3.0, 5.0]);
                sleep(Duration::from_millis(5)).await;
            }
        });
        Self { stop, asking }
    }

    async fn lost_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.await.unwrap();
    }
}

/// A value from this process's status in bytes, such as `VmRSS`.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_of_ten_kilobytes_cost_an_answer_each() {
    let cam = serving().await;
    let client = Normal::of(&cam);
    let bomb = gzip(&[0x2a, 0].repeat(5_000_000));
    assert!(bomb.len() < 11_000, "{}", bomb.len());
    let before = memory("VmRSS");
    let bombs = (0..40).map(|_| sent(cam.channel(), INFER, "gzip", &bomb, true));
    for code in join_all(bombs).await {
        assert_eq!(code, Code::ResourceExhausted);
    }
    // Uncompressed, to users and to agents: decoded, it has hundreds of megabytes.
    let (inputs, tensors) = ([0x2a, 0].repeat(2_000_000), [0x32, 0].repeat(2_000_000));
    for (path, content) in [(INFER, inputs), (FORWARD, tensors)] {
        let frame = framed(0, 4_000_000, &content);
        let code = sent(cam.channel(), path, "identity", &frame, true).await;
        assert_eq!(code, Code::InvalidArgument, "{path}");
    }
    let grown = memory("VmRSS").saturating_sub(before);
    assert!(grown < 1 << 30, "{grown}");
    client.lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_announced_reserves_nothing() {
    let cam = serving().await;
    let client = Normal::of(&cam);
    let before = memory("VmSize");
    // A message above the limit is refused at its announcement.
    for path in [INFER, FORWARD] {
        let huge = framed(0, 1 << 30, b"");
        let announced = (0..100).map(|_| sent(cam.channel(), path, "identity", &huge, false));
        for code in join_all(announced).await {
            assert_eq!(code, Code::ResourceExhausted);
        }
    }
    // A smaller one is waited for, without memory.
    let large = framed(0, 60 << 20, b"");
    let announced = (0..100).map(|_| {
        let sending = sent(cam.channel(), INFER, "identity", &large, false);
        timeout(Duration::from_millis(500), sending)
    });
    let waiting = join_all(announced).await;
    assert!(waiting.iter().all(Result::is_err));
    let grown = memory("VmSize").saturating_sub(before);
    assert!(grown < 4 << 30, "{grown}");
    client.lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_keep_nobody_from_their_model() {
    let cam = serving().await;
    let client = Normal::of(&cam);
    // Together more than a model may take, and never complete.
    let name = [0x0a, 1, b'm', 0x3a, 0xff, 0xff, 0x3f];
    let slow = framed(0, 1 << 20, &[&name[..], &[0; 700_000]].concat());
    let sending = (0..100).map(|_| {
        let sending = sent(cam.channel(), INFER, "identity", &slow, false);
        timeout(Duration::from_secs(2), sending)
    });
    let waiting = join_all(sending).await;
    assert!(waiting.iter().all(Result::is_err), "{waiting:?}");
    client.lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_cost_others_nothing() {
    let mut cam = Host::start("cam-1", &Folder::new());
    // It gives a hundred and twenty-eight times what it takes.
    let block = cam.folder.put_fake(FakeBlock {
        mul: 2.0,
        add: 1.0,
        repeat: 128,
        ..FakeBlock::default()
    });
    let slice = Slice {
        blocks: vec![block],
        ..part(&cam.folder, 1, 0, (1.0, 0.0), None)
    };
    cam.hold(slice).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    let client = Normal::of(&cam);
    let values = vec![1.0; 2000];
    let from_user = request("", &values).encode_to_vec();
    let from_agent = ForwardRequest {
        placement_uid: "u".into(),
        revision: 1,
        tensors: vec![to_wire("image", fp32(&[1000, 2], &values))],
        ..ForwardRequest::default()
    };
    for (path, content) in [(INFER, from_user), (FORWARD, from_agent.encode_to_vec())] {
        untaken_count(&cam, path, &content).await;
    }
    client.lost_nothing().await;
}

/// Of the answers to `content`, a megabyte each, a connection leaves untaken what it has room for;
/// the others are refused.
async fn untaken_count(cam: &Host, path: &str, content: &[u8]) {
    let frame = Bytes::from(framed(0, content.len(), content));
    let channel = cam.channel();
    // It has 64 MiB of the room.
    let asked = (0..100).map(|_| {
        let (mut channel, frames) = (channel.clone(), [frame.clone()].into());
        async move {
            let request = posted(path, "identity", Frames { frames, ends: true });
            channel.ready().await.unwrap().call(request).await.unwrap()
        }
    });
    let untaken = join_all(asked).await;
    let codes = untaken.iter().map(|answer| code_in(answer.headers()));
    let refused = codes.filter(|code| *code == Code::ResourceExhausted);
    let refused = refused.count();
    // Some answers fit into the connection's window, and count as taken.
    assert!((15..60).contains(&refused), "{path}: {refused}");
    // Their room comes back with their end.
    drop(untaken);
    let again = async {
        while sent(channel.clone(), path, "identity", &frame, true).await != Code::Ok {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_large_requests_is_refused_beyond_its_share() {
    const FLOOD: usize = 300;
    let folder = Folder::new();
    let mut cam = Host::slow("cam-1", &folder, Duration::from_millis(100));
    deploy(1, &mut [(&mut cam, (2.0, 1.0))]).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    // Half a megabyte each, with as many rows as may be: all may take 128 MiB, and a model
    // half of it, which they do while the host computes one after the other.
    let large = request("", &vec![1.0; 131_072]);
    let begin = Instant::now();
    let flood = (0..FLOOD).map(|_| {
        let mut client = cam.client().max_encoding_message_size(1 << 30);
        let mut asked = tonic::Request::new(large.clone());
        asked.set_timeout(Duration::from_secs(50));
        async move { client.model_infer(asked).await.map(|_| ()) }
    });
    let ended = join_all(flood).await;
    let refused = ended.iter().filter_map(|e| e.as_ref().err());
    let refused: Vec<_> = refused
        .filter(|status| status.code() == Code::ResourceExhausted)
        .collect();
    assert!(!refused.is_empty());
    for status in &refused {
        assert!(status.metadata().contains_key("retry-after-ms"), "{status}");
    }
    let served = ended.iter().filter(|e| e.is_ok()).count();
    assert!(served > 0 && served + refused.len() == FLOOD, "{served}");
    assert!(begin.elapsed() < Duration::from_secs(60));
    // And then there is room again.
    let reply = cam.client().model_infer(request("", &[1.0, 2.0])).await;
    assert_eq!(values(reply.unwrap().get_ref()), [3.0, 5.0]);
}

#[tokio::test]
async fn a_second_message_is_refused_and_a_cut_one_too() {
    let cam = serving().await;
    let whole = ModelInferRequest {
        model_name: "m".into(),
        ..ModelInferRequest::default()
    };
    let whole = whole.encode_to_vec();
    let whole = framed(0, whole.len(), &whole);
    for bytes in [[&whole[..], &whole[..]].concat(), whole[..6].to_vec()] {
        let code = sent(cam.channel(), INFER, "identity", &bytes, true).await;
        assert_eq!(code, Code::InvalidArgument);
    }
    // The service itself reports what it cannot decompress.
    for path in [INFER, STREAM] {
        let code = sent(cam.channel(), path, "zstd", &whole, true).await;
        assert_eq!(code, Code::Unimplemented, "{path}");
    }
}

/// The preface of HTTP/2, and a frame of it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], content].concat()
}

/// A request's headers: POST, http, `/m`, and the authority `a`.
const ASK: &[u8] = &[0x83, 0x86, 0x04, 0x02, b'/', b'm', 0x01, 0x01, b'a'];

/// A connection after the preface.
async fn greeted(host: &Host) -> TcpStream {
    let mut socket = TcpStream::connect(&host.hop.address).await.unwrap();
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    socket.write_all(&hello).await.unwrap();
    socket
}

/// Sends `flood` until the host closes the connection, for two seconds at most; returns the number
/// of bytes sent.
async fn pour(host: &Host, mut flood: impl FnMut(u32) -> Vec<u8>) -> usize {
    let (mut reading, mut socket) = greeted(host).await.into_split();
    let draining =
        tokio::spawn(
            async move { while reading.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} },
        );
    let mut taken = 0;
    let pouring = async {
        for n in 0.. {
            let bytes = flood(n);
            if socket.write_all(&bytes).await.is_err() {
                break;
            }
            taken += bytes.len();
        }
    };
    let _ = timeout(Duration::from_secs(2), pouring).await;
    draining.abort();
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_that_cost_nothing_to_send_cost_others_nothing() {
    let cam = serving().await;
    let client = Normal::of(&cam);
    let before = memory("VmRSS");
    // Streams that are reset as soon as they are opened.
    let resets = |n: u32| {
        let pair = |stream: u32| {
            let open = frame(HEADERS, END_HEADERS, stream, ASK);
            [open, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        let streams = 100 * n..100 * (n + 1);
        streams.flat_map(|stream| pair(2 * stream + 1)).collect()
    };
    // Endless headers.
    let headers = |n: u32| {
        let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7c][..], &[b'y'; 16_000]].concat();
        match n {
            0 => frame(HEADERS, 0, 1, ASK),
            _ => frame(CONTINUATION, 0, 1, &field),
        }
    };
    let settings = |_: u32| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100);
    let (resets, headers, _) = tokio::join!(
        pour(&cam, resets),
        pour(&cam, headers),
        pour(&cam, settings)
    );
    // The rest was in flight when it closed the connection.
    assert!(resets < 64 << 20, "streams that are only reset: {resets}");
    assert!(headers < 64 << 20, "headers without end: {headers}");
    let grown = memory("VmRSS").saturating_sub(before);
    assert!(grown < 1 << 30, "{grown}");
    client.lost_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_or_talk_nonsense_cost_others_nothing() {
    let cam = serving().await;
    let client = Normal::of(&cam);
    let open = frame(HEADERS, END_HEADERS, 1, ASK);
    let vanish = (0..300).map(|n| {
        let (cam, open) = (&cam, &open);
        async move {
            let mut socket = greeted(cam).await;
            socket.write_all(&open[..n % open.len()]).await.unwrap();
        }
    });
    join_all(vanish).await;
    for round in 0..100 {
        let mut socket = if round % 2 == 0 {
            TcpStream::connect(&cam.hop.address).await.unwrap()
        } else {
            greeted(&cam).await
        };
        let noise: Vec<u8> = (0..2000).map(|_| rand::random()).collect();
        // It may close the connection before everything was sent.
        let _ = socket.write_all(&noise).await;
    }
    client.lost_nothing().await;
}
