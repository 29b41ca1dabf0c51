//! Frames that cost nothing to send, from nobody in particular, beside an agent that loses nothing.

use super::*;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// How long a flood lasts if the operator does not end it.
const LONG: Duration = Duration::from_secs(2);

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], content].concat()
}

/// A request's headers: POST, http, the path of a session, and the authority `a`.
fn ask() -> Vec<u8> {
    let path = b"/lamina.control.v1.Control/Session";
    let length = u8::try_from(path.len()).unwrap();
    [&[0x83, 0x86, 0x04, length], &path[..], &[0x01, 0x01, b'a']].concat()
}

/// Sends `flood` until the operator closes the connection, for two seconds at most; returns the
/// number of bytes sent.
async fn pour(to: SocketAddr, mut flood: impl FnMut(u32) -> Vec<u8>) -> usize {
    let mut socket = TcpStream::connect(to).await.unwrap();
    let greeting = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    socket.write_all(&greeting).await.unwrap();
    let (mut reading, mut socket) = socket.into_split();
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
    let _ = timeout(LONG, pouring).await;
    draining.abort();
    taken
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// What an agent does: its session stays open, and each of its questions is answered.
async fn agent(server: &Server, mut session: Streaming<OperatorMessage>, stop: CancellationToken) {
    let listening = async {
        while session.message().await.unwrap().is_some() {}
        panic!("the session has ended");
    };
    let asking = async {
        // However short the attack was, some are asked afterwards.
        let mut afterwards = 0;
        while afterwards < 3 {
            afterwards += u32::from(stop.is_cancelled());
            let mut request = tonic::Request::new(GetBlobRequest {
                digest: "0".repeat(64),
                ..GetBlobRequest::default()
            });
            let bearer = "Bearer good.good.good".parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
            let mut client = server.client.clone();
            let asked = timeout(Duration::from_secs(5), client.get_blob(request));
            let status = asked.await.expect("an answer in time").unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = listening => {}
        () = asking => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_frames_that_cost_nothing_to_send_cost_no_agent_anything() {
    let server = Server::start_with(Doorkeeper::default(), |s| s).await;
    let session = hello(&server, "good.good.good", "10.0.0.7:8001");
    let session = session.await.unwrap();
    let before = resident();
    let ask = ask();
    // Streams that are reset as soon as they are opened.
    let resets = |n: u32| {
        let pair = |stream: u32| {
            let open = frame(HEADERS, END_HEADERS, stream, &ask);
            [open, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        };
        let streams = 100 * n..100 * (n + 1);
        streams.flat_map(|stream| pair(2 * stream + 1)).collect()
    };
    // Endless headers.
    let headers = |n: u32| {
        let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7c][..], &[b'y'; 16_000]].concat();
        match n {
            0 => frame(HEADERS, 0, 1, &ask),
            _ => frame(CONTINUATION, 0, 1, &field),
        }
    };
    // The same without content, which no limit of bytes ends.
    let empty = |n: u32| match n {
        0 => frame(HEADERS, 0, 1, &ask),
        _ => frame(CONTINUATION, 0, 1, b"").repeat(100),
    };
    let settings = |_: u32| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100);
    let pings = |_: u32| frame(PING, 0, 0, b"12345678").repeat(100);
    let stop = CancellationToken::new();
    let floods = async {
        let to = server.address;
        let poured = tokio::join!(
            pour(to, resets),
            pour(to, headers),
            pour(to, empty),
            pour(to, settings),
            pour(to, pings),
        );
        stop.cancel();
        poured
    };
    let (poured, ()) = tokio::join!(floods, agent(&server, session, stop.clone()));
    let (resets, headers, empty, ..) = poured;
    // The rest was in flight when it closed the connection.
    assert!(resets < 64 << 20, "streams that are only reset: {resets}");
    assert!(headers < 64 << 20, "headers without end: {headers}");
    assert!(empty < 64 << 20, "headers without end or content: {empty}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 30, "{grown}");
}
