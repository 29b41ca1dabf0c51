//! At the limit of open files. In its own process, whose limit it lowers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use http::{Request, Response};
use hyper::body::Incoming;
use lamina_node_agent::door::{Door, DoorLimits, Speech};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

async fn ask(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(5), stream.read_to_string(&mut answer));
    read.await.unwrap().unwrap();
    answer
}

fn processor_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

#[tokio::test]
async fn without_descriptors_nothing_spins_and_it_goes_on_once_there_are_some() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let door = Door {
        speech: Speech::Http1,
        limits: DoorLimits {
            connections: 10_000,
            streams: 8,
            idle: Duration::from_secs(600),
            longest: Duration::from_secs(600),
        },
        acceptor: None,
    };
    let service = tower::service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(axum::body::Body::from("ok")))
    });
    let serving = door.serve(listener, service, CancellationToken::new());
    let _serving = tokio::spawn(serving);
    assert!(ask(address).await.ends_with("ok"));

    let limit = getrlimit(Resource::Nofile);
    let (current, maximum) = (Some(64), limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    // The kernel accepts them all, but the process has no descriptor for any of them.
    let crowd: Vec<_> = std::iter::from_fn(|| std::net::TcpStream::connect(address).ok()).collect();
    assert!(crowd.len() > 10, "{}", crowd.len());
    let before = processor_seconds();
    sleep(Duration::from_secs(2)).await;
    let used = processor_seconds() - before;
    assert!(used < 0.3, "{used} s of processor time in 2 s");
    drop(crowd);
    assert!(ask(address).await.ends_with("ok"));
}
