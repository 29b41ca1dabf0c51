use super::*;
use lamina_proto::hop::hop_server::{Hop, HopServer};
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply, PingRequest};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A link of `rate` bytes per second.
struct Echo {
    rate: f64,
}

#[tonic::async_trait]
impl Hop for Echo {
    async fn forward(&self, _: Request<ForwardRequest>) -> Result<Response<ForwardReply>, Status> {
        Err(Status::unimplemented("only pings"))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let bytes = request.into_inner().payload.len();
        sleep(Duration::from_secs_f64(bytes as f64 / self.rate)).await;
        Ok(Response::new(PingReply { server_us: 0 }))
    }
}

/// A host with a link of `rate`: its address, and its number of accepted connections.
async fn host(rate: f64) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let incoming = TcpListenerStream::new(listener).map(move |stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        stream
    });
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(HopServer::new(Echo { rate }))
            .serve_with_incoming(incoming),
    );
    (address, connections)
}

/// A host that accepts connections and stays silent.
async fn silent_host() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

fn peer(node: &str, address: &str, every_ms: u32) -> Peer {
    Peer {
        node: node.to_owned(),
        address: address.to_owned(),
        every_ms,
    }
}

struct Running {
    prober: Prober,
    telemetry: Telemetry,
    _task: AbortOnDropHandle<()>,
}

fn start(peers: &[Peer]) -> Running {
    let telemetry = Telemetry::default();
    let prober = Prober::new(telemetry.clone(), Trust::default());
    prober.set_targets(peers);
    let task = tokio::spawn(prober.clone().run());
    Running {
        prober,
        telemetry,
        _task: AbortOnDropHandle::new(task),
    }
}

/// Samples until one matches, each with the time since the call.
async fn until(prober: &Prober, wanted: impl Fn(&LinkSample) -> bool) -> Vec<LinkSample> {
    let mut seen = Vec::new();
    for _ in 0..1500 {
        sleep(Duration::from_millis(10)).await;
        seen.extend(prober.drain());
        if seen.iter().any(&wanted) {
            return seen;
        }
    }
    panic!("{seen:?}");
}

#[tokio::test]
async fn round_trip_and_bandwidth_of_a_peer_are_measured() {
    let (address, _) = host(1e6).await;
    let running = start(&[peer("a", &address, 0)]);
    let is_short = |s: &LinkSample| s.rtt_seconds > 0.0 && s.rtt_seconds < 0.1;
    let mut seen = until(&running.prober, is_short).await;
    if seen.iter().all(|s| s.bytes == 0) {
        seen = until(&running.prober, |s| s.bytes > 0).await;
    }
    // A machine that is busy with other tests only makes it look slower.
    let rate = seen.iter().find(|s| s.bytes > 0).unwrap().bytes_per_second;
    assert!((5e4..1.2e6).contains(&rate), "{rate}");
    assert!(running.prober.rtt("a").is_some());
}

#[tokio::test]
async fn a_silent_peer_is_found_dead_within_three_seconds_and_delays_nobody() {
    let (address, _) = host(1e8).await;
    let (nobody, _listener) = silent_host().await;
    let mut peers = vec![peer("alive", &address, 500)];
    peers.extend((0..20).map(|n| peer(&format!("silent-{n}"), &nobody, 1000)));
    peers.extend((0..5).map(|n| peer(&format!("refuses-{n}"), "127.0.0.1:1", 1000)));
    let begin = Instant::now();
    let running = start(&peers);
    let (mut failures, mut told_at) = (BTreeMap::<String, Vec<Duration>>::new(), 0);
    let mut alive = Vec::new();
    while begin.elapsed() < Duration::from_secs(4) {
        // Like a session: it waits for a change no longer than this.
        let _ = tokio::time::timeout(Duration::from_secs(1), running.prober.news()).await;
        told_at += 1;
        for sample in running.prober.drain() {
            if sample.failed {
                failures
                    .entry(sample.peer)
                    .or_default()
                    .push(begin.elapsed());
            } else if sample.peer == "alive" && sample.rtt_seconds > 0.0 {
                alive.push(begin.elapsed());
            }
        }
    }
    assert!(told_at > 10, "news do not wait");
    assert_eq!(failures.len(), 25);
    for (peer, failures) in failures {
        // The first question comes within half a second.
        let third = failures.get(2).copied().unwrap_or(Duration::MAX);
        assert!(third < Duration::from_millis(3400), "{peer}: {failures:?}");
    }
    assert!(alive.len() >= 6, "{alive:?}");
}

#[tokio::test]
async fn round_trips_go_on_while_a_bandwidth_is_measured_one_at_a_time() {
    // The first probes of these take more than a second each.
    let (slow, _) = host(1.5e4).await;
    let (other, _) = host(1.5e4).await;
    let running = start(&[peer("a", &slow, 200), peer("b", &other, 200)]);
    let begin = Instant::now();
    let seen = until(&running.prober, |s| s.bytes > 0).await;
    let first = begin.elapsed();
    assert!(first > Duration::from_secs(1), "{first:?}");
    for node in ["a", "b"] {
        let trips = seen
            .iter()
            .filter(|s| s.peer == node && s.rtt_seconds > 0.0);
        assert!(trips.count() >= 4, "{seen:?}");
    }
    let measured = seen.iter().find(|s| s.bytes > 0).unwrap().peer.clone();
    until(&running.prober, |s| s.bytes > 0 && s.peer != measured).await;
    assert!(begin.elapsed() > first + Duration::from_secs(1));
}

#[tokio::test]
async fn peers_that_come_and_go_do_not_disturb_the_others() {
    let (stays, connections) = host(1e8).await;
    let (goes, _) = host(1e8).await;
    let running = start(&[peer("stays", &stays, 200), peer("goes", &goes, 200)]);
    until(&running.prober, |s| s.peer == "goes").await;
    until(&running.prober, |s| s.peer == "stays").await;
    running
        .prober
        .set_targets(&[peer("stays", &stays, 200), peer("comes", &goes, 200)]);
    until(&running.prober, |s| s.peer == "comes").await;
    sleep(Duration::from_millis(500)).await;
    running.prober.drain();
    sleep(Duration::from_millis(1000)).await;
    let seen = running.prober.drain();
    assert!(
        seen.iter().all(|s| s.peer != "goes" && !s.failed),
        "{seen:?}"
    );
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    let links = running
        .prober
        .0
        .with(|state| state.links.keys().cloned().collect::<Vec<_>>());
    assert!(links.contains(&"stays".to_owned()));
}

#[tokio::test]
async fn what_is_seen_while_blobs_move_is_contended() {
    let (address, _) = host(1e6).await;
    let running = start(&[peer("a", &address, 200)]);
    let moves = running.telemetry.blobs().begin();
    let seen = until(&running.prober, |s| s.bytes > 0).await;
    // A round trip shorter than the known one is valid despite other traffic.
    let doubtful = |s: &&LinkSample| s.bytes > 0 || s.rtt_seconds >= seen[0].rtt_seconds;
    let mut doubtful = seen.iter().filter(doubtful);
    assert!(doubtful.all(|s| s.contended), "{seen:?}");
    drop(moves);
    let seen = until(&running.prober, |s| s.rtt_seconds > 0.0 && !s.contended).await;
    assert!(!seen.is_empty());
    let transfer = Transfer {
        peer: "a".into(),
        bytes_out: 1 << 20,
        bytes_in: 0,
        seconds: 0.2,
    };
    running.prober.passive(std::slice::from_ref(&transfer));
    let is_passive = |s: &LinkSample| s.passive;
    let seen = until(&running.prober, is_passive).await;
    assert!(
        seen.iter().any(|s| s.passive && s.contended),
        "they moved in this window"
    );
}

#[tokio::test]
async fn a_link_on_which_requests_became_slow_is_probed_at_once() {
    let (address, _) = host(1e6).await;
    let running = start(&[peer("a", &address, 60_000)]);
    until(&running.prober, |s| s.bytes > 0).await;
    // A probe is trusted for some seconds, whatever requests show.
    sleep(Duration::from_millis(5200)).await;
    running.prober.drain();
    let begin = Instant::now();
    running.prober.passive(&[Transfer {
        peer: "a".into(),
        bytes_out: 100_000,
        bytes_in: 0,
        seconds: 10.0,
    }]);
    until(&running.prober, |s| s.bytes > 0 && !s.passive).await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn the_pace_that_the_operator_wishes_has_bounds() {
    assert_eq!(every(0), EVERY);
    assert_eq!(every(1), EVERY_BOUNDS.0);
    assert_eq!(every(u32::MAX), EVERY_BOUNDS.1);
    assert_eq!(every(1000), Duration::from_secs(1));
}
