//! Unauthenticated connections, and more connections of an agent than it needs.

use super::*;
use crate::control::standing::Terms;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

const SHORT: Duration = Duration::from_secs(1);
/// HTTP/2's preface and settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn strict() -> Server {
    let terms = Terms {
        guests: 6,
        of_address: 4,
        patience: SHORT,
        of_node: 3,
    };
    Server::start_with(Doorkeeper::default(), |s| s.on_terms(terms)).await
}

async fn from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let source: IpAddr = source.parse().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Reads until the operator hangs up; returns the time.
async fn hung_up(mut socket: TcpStream) -> Duration {
    let begun = Instant::now();
    let reading = async { while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} };
    timeout(PATIENCE, reading).await.expect("it hangs up");
    begun.elapsed()
}

#[tokio::test]
async fn who_does_not_say_who_it_is_is_sent_away() {
    let server = strict().await;
    let mut guests = Vec::new();
    for _ in 0..6 {
        let mut socket = from("127.0.0.2", server.address).await;
        // It speaks, but sends no request; if it is closed at once it cannot.
        let _ = socket.write_all(HELLO).await;
        guests.push(tokio::spawn(hung_up(socket)));
    }
    let mut took = Vec::new();
    for guest in guests {
        took.push(guest.await.unwrap());
    }
    took.sort();
    assert!(took[1] < SHORT / 2, "two are too many at once: {took:?}");
    assert!(took[2] > SHORT / 2, "four are waited for: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_keeps_no_agent_out() {
    let server = strict().await;
    let to = server.address;
    let flood: Vec<_> = (0..20)
        .map(|n| {
            let source = format!("127.0.0.{}", 2 + n % 2);
            tokio::spawn(async move {
                loop {
                    hung_up(from(&source, to).await).await;
                }
            })
        })
        .collect();
    // By then the earlier connection is closed, too.
    sleep(SHORT * 3 / 2).await;
    let mut session = hello(&server, "good.good.good", "10.0.0.7:8001")
        .await
        .unwrap();
    // An authenticated one stays.
    let quiet = async { while session.message().await.unwrap().is_some() {} };
    assert!(timeout(3 * SHORT, quiet).await.is_err());
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_agent_has_no_more_connections_than_it_needs() {
    let server = strict().await;
    let ask = async || {
        let endpoint = Channel::from_shared(format!("http://{}", server.address)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut request = tonic::Request::new(GetBlobRequest {
            digest: "0".repeat(64),
            ..GetBlobRequest::default()
        });
        let bearer = "Bearer good.good.good".parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let asked = ControlClient::new(channel.clone()).get_blob(request).await;
        (channel, asked.unwrap_err().code())
    };
    let mut held = Vec::new();
    for _ in 0..3 {
        let (channel, code) = ask().await;
        assert_eq!(code, Code::NotFound);
        held.push(channel);
    }
    assert_eq!(ask().await.1, Code::ResourceExhausted);
    // Closed ones free their place.
    held.clear();
    let again = async {
        while ask().await.1 != Code::NotFound {
            sleep(SHORT / 20).await;
        }
    };
    timeout(PATIENCE, again).await.expect("there is room again");
}
