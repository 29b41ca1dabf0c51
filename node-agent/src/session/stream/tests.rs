use super::*;
use crate::blobs::{BlobOptions, Blobs};
use crate::measure::Prober;
use crate::net::{OperatorEndpoint, Peers, Trust};
use crate::serve::access::Keys;
use crate::serve::directory::Directory;
use crate::session::{Jobs, spawn};
use crate::telemetry::Telemetry;
use lamina_proto::control::control_server::{Control, ControlServer};
use lamina_proto::control::{
    BlobChunk, DirectoryModel, EnrollReply, EnrollRequest, GetBlobRequest, Peer, Prepare,
    PrepareUpdate, PutBlobChunk, PutBlobReply, Welcome,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Response;

/// Records every message, and orders one job.
struct FakeOperator {
    seen: mpsc::UnboundedSender<Message>,
    /// Another agent takes over each session after its hello.
    takes_over: bool,
}

type Orders = ReceiverStream<Result<OperatorMessage, Status>>;
type Chunks = tokio_stream::Empty<Result<BlobChunk, Status>>;

#[tonic::async_trait]
impl Control for FakeOperator {
    type SessionStream = Orders;
    type GetBlobStream = Chunks;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Orders>, Status> {
        let mut messages = request.into_inner();
        let (seen, takes_over) = (self.seen.clone(), self.takes_over);
        let (orders, stream) = mpsc::channel(8);
        tokio::spawn(async move {
            if takes_over {
                if let Some(Ok(hello)) = messages.next().await {
                    let _ = seen.send(hello.message.unwrap());
                }
                let _ = orders.send(Err(Status::aborted("a newer session"))).await;
                return;
            }
            for order in [
                Order::Welcome(Welcome {
                    operator_node: "cloud-1".into(),
                }),
                Order::Peers(lamina_proto::control::Peers {
                    peers: vec![Peer {
                        node: "edge-1".into(),
                        address: "127.0.0.1:1".into(),
                        every_ms: 0,
                    }],
                }),
                Order::Directory(lamina_proto::control::Directory {
                    complete: true,
                    models: vec![DirectoryModel {
                        namespace: "default".into(),
                        name: "m".into(),
                        ..DirectoryModel::default()
                    }],
                }),
                Order::Prepare(Prepare {
                    job: "j".into(),
                    ..Prepare::default()
                }),
            ] {
                let order = OperatorMessage {
                    message: Some(order),
                };
                if orders.send(Ok(order)).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(message)) = messages.next().await {
                let _ = seen.send(message.message.unwrap());
            }
            // Keeps the stream of orders open until the agent leaves.
            drop(orders);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_blob(&self, _: Request<GetBlobRequest>) -> Result<Response<Chunks>, Status> {
        Err(Status::unimplemented("no blobs here"))
    }

    async fn enroll(&self, _: Request<EnrollRequest>) -> Result<Response<EnrollReply>, Status> {
        Err(Status::unimplemented("no certificates here"))
    }

    async fn put_blob(
        &self,
        _: Request<Streaming<PutBlobChunk>>,
    ) -> Result<Response<PutBlobReply>, Status> {
        Err(Status::unimplemented("no blobs here"))
    }
}

async fn operator() -> (String, mpsc::UnboundedReceiver<Message>) {
    fake_operator(false).await
}

async fn fake_operator(takes_over: bool) -> (String, mpsc::UnboundedReceiver<Message>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (seen, messages) = mpsc::unbounded_channel();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(ControlServer::new(FakeOperator { seen, takes_over }))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    (address, messages)
}

fn config(endpoint: OperatorEndpoint, cache: &std::path::Path) -> SessionConfig {
    let peers = Peers::default();
    let options = BlobOptions {
        dir: cache.to_owned(),
        ..BlobOptions::default()
    };
    let telemetry = Telemetry::default();
    let blobs = Blobs::open(options, endpoint.clone(), telemetry.clone()).unwrap();
    SessionConfig {
        node: "cam-1".into(),
        address: "10.0.0.7:8001".into(),
        token_file: Some("/nowhere".into()),
        uplink: None,
        cpu_millis: 1000,
        endpoint,
        prober: Prober::new(telemetry.clone(), Trust::default()),
        peers,
        telemetry,
        blobs: Arc::new(blobs),
        directory: Directory::default(),
        keys: Keys::default(),
        leaving: CancellationToken::new(),
        is_heard: watch::Sender::new(false),
        jobs: Jobs::new(Arc::new(|job, updates, _| {
            let _ = updates.send(PrepareUpdate {
                job: job.job,
                update: None,
            });
        })),
    }
}

async fn next(messages: &mut mpsc::UnboundedReceiver<Message>) -> Message {
    timeout(Duration::from_secs(10), messages.recv())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_comes_first_then_heartbeats_even_when_every_core_burns() {
    let (address, mut messages) = operator().await;
    let endpoint = OperatorEndpoint::default();
    endpoint.set(&address);
    let cache = tempfile::tempdir().unwrap();
    let held = lamina_model::Digest::of(b"block").to_string();
    std::fs::write(cache.path().join(&held), b"block").unwrap();
    let config = config(endpoint, cache.path());
    let directory = config.directory.clone();
    let peers = config.peers.clone();
    let stop = Arc::new(AtomicBool::new(false));
    for _ in 0..std::thread::available_parallelism().unwrap().get() * 2 {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {});
    }
    spawn(config).unwrap();
    let Message::Hello(hello) = next(&mut messages).await else {
        panic!("no hello first");
    };
    assert_eq!(
        (hello.node.as_str(), hello.address.as_str()),
        ("cam-1", "10.0.0.7:8001")
    );
    let Message::Blobs(inventory) = next(&mut messages).await else {
        panic!("no inventory behind it");
    };
    assert!(inventory.complete);
    assert_eq!(inventory.held, [held]);
    let (mut beats, mut job) = (0, false);
    while beats < 3 || !job {
        match next(&mut messages).await {
            Message::Heartbeat(h) => {
                assert!(h.memory_free_bytes > 0);
                beats += 1;
            }
            Message::Prepare(update) => job = update.job == "j",
            _ => {}
        }
        assert!(beats < 10, "the job's update did not come");
    }
    stop.store(true, Ordering::Relaxed);
    assert!(directory.now().get("default/m").is_some());
    assert_eq!(
        peers.list(),
        [("edge-1".to_owned(), "127.0.0.1:1".to_owned())]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_follows_the_operator_to_another_address() {
    let (first, mut at_first) = operator().await;
    let (second, mut at_second) = operator().await;
    let endpoint = OperatorEndpoint::default();
    endpoint.set("127.0.0.1:1");
    let cache = tempfile::tempdir().unwrap();
    spawn(config(endpoint.clone(), cache.path())).unwrap();
    sleep(Duration::from_millis(300)).await;
    endpoint.set(&first);
    assert!(matches!(next(&mut at_first).await, Message::Hello(_)));
    endpoint.set(&second);
    assert!(matches!(next(&mut at_second).await, Message::Hello(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_being_replaced_does_not_fight_for_the_session() {
    let (address, mut messages) = fake_operator(true).await;
    let (elsewhere, mut at_another) = operator().await;
    let endpoint = OperatorEndpoint::default();
    endpoint.set(&address);
    let cache = tempfile::tempdir().unwrap();
    let config = config(endpoint.clone(), cache.path());
    let mut is_heard = config.is_heard.subscribe();
    spawn(config).unwrap();
    assert!(matches!(next(&mut messages).await, Message::Hello(_)));
    // Many times the pause after another end.
    let again = timeout(SHORTEST_PAUSE * 10, messages.recv()).await;
    assert!(again.is_err(), "it came back: {again:?}");
    assert!(!*is_heard.borrow_and_update(), "its successor is");
    endpoint.set(&elsewhere);
    assert!(matches!(next(&mut at_another).await, Message::Hello(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_to_end_says_so_at_once() {
    let (address, mut messages) = operator().await;
    let endpoint = OperatorEndpoint::default();
    endpoint.set(&address);
    let cache = tempfile::tempdir().unwrap();
    let config = config(endpoint, cache.path());
    let (leaving, mut is_heard) = (config.leaving.clone(), config.is_heard.subscribe());
    spawn(config).unwrap();
    let mut beat = async || loop {
        if let Message::Heartbeat(heartbeat) = next(&mut messages).await {
            return heartbeat.leaving;
        }
    };
    assert!(!beat().await);
    assert!(*is_heard.wait_for(|is_heard| *is_heard).await.unwrap());
    leaving.cancel();
    let told = async { while !beat().await {} };
    timeout(BEAT / 2, told).await.expect("before the next beat");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_session_ended_is_known_though_reports_find_it_closed_first() {
    let (address, mut messages) = fake_operator(true).await;
    let endpoint = OperatorEndpoint::default();
    let cache = tempfile::tempdir().unwrap();
    let config = config(endpoint.clone(), cache.path());
    let (sender, receiver) = mpsc::channel(8);
    let mut orders = open(&config, &address, receiver, &sender).await.unwrap();
    assert!(matches!(next(&mut messages).await, Message::Hello(_)));
    let (closed, _) = mpsc::channel(1);
    let mut meter = CpuMeter::new(1000);
    let mut endpoint = endpoint.subscribe();
    let end = attend(
        &config,
        &address,
        &mut endpoint,
        &mut meter,
        &mut orders,
        &closed,
    )
    .await;
    assert!(matches!(end, SessionEnd::TakenOver), "{end}");
}
