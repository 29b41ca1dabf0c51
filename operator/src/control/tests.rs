//! Real gRPC over loopback.

use super::auth::{Addresses, Who};
use super::bearer::Token;
use super::{AuthError, Authenticate, Call, Caller, ControlService, Insecure, Refusal, serve};
use crate::prepare::manifests::Manifests;
use crate::store::BlobStore;
use crate::world::{PrepareRequest, PrepareState, World};
use bytes::Bytes;
use futures::StreamExt as _;
use lamina_crds::Hop;
use lamina_model::Digest;
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::control_client::ControlClient;
use lamina_proto::control::operator_message::Message as FromOperator;
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{
    AgentMessage, BlobChunk, BlobInventory, GetBlobRequest, Heartbeat, Hello, LinkSample,
    LinkSamples, OperatorMessage, PrepareDone, PrepareUpdate, PutBlobChunk,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

mod floods;
mod guests;
mod hosts;
mod tls;

const PATIENCE: Duration = Duration::from_secs(10);

struct Server {
    world: World,
    store: BlobStore,
    client: ControlClient<Channel>,
    channel: Channel,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(Insecure, |service| service).await
    }

    async fn start_with(
        auth: impl Authenticate,
        change: impl Fn(ControlService) -> ControlService,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let (world, stop) = (World::new(), CancellationToken::new());
        let service =
            ControlService::new(world.clone(), store.clone(), Arc::new(auth), stop.clone());
        let service = change(service);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, service, stop.clone()));
        let watched = world.clone();
        tokio::spawn(async move { watched.watch_over().await });
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            world,
            store,
            client: ControlClient::new(channel.clone()),
            channel,
            address,
            stop,
            _folder: folder,
        }
    }

    async fn get(&self, digest: &Digest, offset: u64, length: u64) -> Result<Vec<u8>, Code> {
        let request = GetBlobRequest {
            digest: digest.to_string(),
            offset,
            length,
        };
        let reply = self.client.clone().get_blob(request).await;
        let mut chunks = reply.map_err(|s| s.code())?.into_inner();
        let mut data = Vec::new();
        while let Some(chunk) = chunks.message().await.map_err(|s| s.code())? {
            data.extend_from_slice(&chunk.data);
        }
        Ok(data)
    }

    async fn put(&self, digest: &str, pieces: &[&[u8]]) -> Result<bool, tonic::Status> {
        let chunks: Vec<PutBlobChunk> = pieces
            .iter()
            .enumerate()
            .map(|(i, data)| PutBlobChunk {
                digest: if i == 0 {
                    digest.to_owned()
                } else {
                    String::new()
                },
                data: Bytes::copy_from_slice(data),
            })
            .collect();
        let reply = self
            .client
            .clone()
            .put_blob(tokio_stream::iter(chunks))
            .await?;
        Ok(reply.into_inner().existed)
    }

    /// Waits until the world satisfies `holds`.
    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let waiting = async {
            while !holds(&self.world) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("not in time: {what}"));
    }
}

/// Admits the token `good.good.good` as the agent of cam-1 at 10.0.0.7, until it expires.
#[derive(Clone, Default)]
struct Doorkeeper {
    has_run_out: Arc<std::sync::atomic::AtomicBool>,
    /// The pod's other address.
    at: Option<IpAddr>,
}

#[async_trait::async_trait]
impl Authenticate for Doorkeeper {
    async fn authenticate(&self, call: &Call<'_>) -> Result<Caller, AuthError> {
        assert_eq!(
            call.from.map(|ip| ip.to_canonical()),
            Some("127.0.0.1".parse().unwrap())
        );
        let token = Token::of(call.headers)?;
        if token.expose() != "good.good.good" {
            return Err(Refusal::Rejected("unknown or expired".into()).into());
        }
        let agent = super::auth::Agent {
            node: "cam-1".into(),
            pod: "lamina-agent-x".into(),
            pod_uid: "uid".into(),
        };
        Ok(Caller(Who::Agent(agent, token)))
    }

    async fn again(&self, _: &Caller) -> Result<(), AuthError> {
        if self.has_run_out.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Refusal::Rejected("token has expired".into()).into());
        }
        Ok(())
    }

    async fn addresses(&self, _: &Caller) -> Result<Option<Addresses>, AuthError> {
        let at = self.at.unwrap_or_else(|| [10, 0, 0, 7].into());
        Ok(Some(Addresses {
            pod: vec![at],
            host: vec![[192, 0, 2, 7].into()],
        }))
    }
}

/// Opens a session with that token, and returns the first answer.
async fn hello(
    server: &Server,
    token: &str,
    address: &str,
) -> Result<Streaming<OperatorMessage>, Code> {
    let hello = AgentMessage {
        message: Some(FromAgent::Hello(Hello {
            node: "cam-1".into(),
            version: "0.1.0".into(),
            address: address.into(),
            started_unix_ms: 0,
        })),
    };
    let messages = tokio_stream::once(hello).chain(tokio_stream::pending());
    let mut request = tonic::Request::new(messages);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let answer = server.client.clone().session(request).await;
    let mut answer = answer.map_err(|s| s.code())?.into_inner();
    let first = tokio::time::timeout(PATIENCE, answer.message())
        .await
        .unwrap();
    first.map_err(|s| s.code())?;
    Ok(answer)
}

#[tokio::test]
async fn nobody_is_read_before_it_is_known_who_it_is() {
    let server = Server::start_with(Doorkeeper::default(), |s| s).await;
    // Its one message never comes: a handler that waited for it would wait forever.
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/lamina.control.v1.Control/GetBlob");
    let codec: tonic_prost::ProstCodec<GetBlobRequest, BlobChunk> = Default::default();
    let never = tonic::Request::new(tokio_stream::pending::<GetBlobRequest>());
    let refused = tokio::time::timeout(PATIENCE, grpc.streaming(never, path, codec)).await;
    let refused = refused.expect("an answer though nothing was sent");
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    for token in ["bad.bad.bad", "garbage", ""] {
        let refused = hello(&server, token, "10.0.0.7:8001").await;
        assert_eq!(refused.unwrap_err(), Code::Unauthenticated, "{token}");
    }
    assert!(server.world.nodes().is_empty());
}

#[tokio::test]
async fn a_message_is_no_larger_than_its_method_needs() {
    let server = Server::start().await;
    let digest = "0".repeat(2 << 20);
    let request = GetBlobRequest {
        digest: digest.clone(),
        ..GetBlobRequest::default()
    };
    let large = "decoded message length too large";
    let error = server.client.clone().get_blob(request).await.unwrap_err();
    assert!(error.message().contains(large), "{error}");
    let error = server.put(&digest, &[&vec![0; 3 << 20]]).await.unwrap_err();
    assert!(error.message().contains(large), "{error}");
    let mut agent = Agent::connect(&server, "cam-1").await;
    agent.hear().await.unwrap();
    let peer = "x".repeat(2 << 20);
    let sample = LinkSample {
        peer,
        ..LinkSample::default()
    };
    let samples = vec![sample];
    agent.say(FromAgent::Links(LinkSamples { samples })).await;
    assert_eq!(agent.hear().await.unwrap_err(), Code::OutOfRange);
}

#[tokio::test]
async fn requests_are_sent_to_no_address_but_the_pods() {
    let server = Server::start_with(Doorkeeper::default(), |s| s).await;
    for address in ["10.0.0.66:8001", "[fd00::7]:8001", "cam-1:8001", "10.0.0.7"] {
        let refused = hello(&server, "good.good.good", address).await.unwrap_err();
        let expected = [Code::PermissionDenied, Code::InvalidArgument];
        assert!(expected.contains(&refused), "{address}: {refused}");
    }
    assert!(server.world.nodes().is_empty());
    let _open = hello(&server, "good.good.good", "10.0.0.7:8001")
        .await
        .unwrap();
    let known = server.world.node("cam-1").unwrap();
    assert_eq!(known.address, "10.0.0.7:8001");
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let keeper = Doorkeeper::default();
    let soon = Duration::from_millis(50);
    let server = Server::start_with(keeper.clone(), |s| s.looking_again_after(soon)).await;
    let mut open = hello(&server, "good.good.good", "10.0.0.7:8001")
        .await
        .unwrap();
    tokio::time::sleep(soon * 4).await;
    assert!(is_alive("cam-1")(&server.world), "it is good");
    keeper
        .has_run_out
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let ended = async {
        loop {
            match open.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("token has expired"), "{status}");
}

#[tokio::test]
async fn an_agent_that_takes_no_messages_fills_no_memory() {
    let world = World::new();
    let identity = crate::world::Identity {
        node: "cam-1".into(),
        version: "1".into(),
        address: "10.0.0.7:8001".into(),
        started_unix_ms: 0,
    };
    let (session, mut inbox) = world.open_session(identity);
    // Each is answered, because no such job was requested.
    let mut taken = 0;
    for n in 0..100_000 {
        let update = PrepareUpdate {
            job: format!("made-up-{n}"),
            update: Some(Update::Done(PrepareDone::default())),
        };
        if !session.heard(FromAgent::Prepare(update)) {
            break;
        }
        taken += 1;
    }
    assert!(taken < 5000, "{taken}");
    let mut waiting = 0;
    while inbox.recv().await.is_some() {
        waiting += 1;
    }
    assert!(waiting < 5000, "{waiting}, and then it is over");
}

struct Agent {
    say: mpsc::Sender<AgentMessage>,
    hears: Streaming<OperatorMessage>,
}

impl Agent {
    async fn connect(server: &Server, node: &str) -> Self {
        Self::begun(server, node, 0).await
    }

    /// One that started then.
    async fn begun(server: &Server, node: &str, started_unix_ms: u64) -> Self {
        let (say, said) = mpsc::channel(16);
        let reply = server
            .client
            .clone()
            .session(ReceiverStream::new(said))
            .await
            .unwrap();
        let agent = Self {
            say,
            hears: reply.into_inner(),
        };
        agent
            .say(FromAgent::Hello(Hello {
                node: node.into(),
                version: "0.1.0".into(),
                address: format!("{node}:8001"),
                started_unix_ms,
            }))
            .await;
        agent
    }

    async fn say(&self, message: FromAgent) {
        let message = Some(message);
        self.say.send(AgentMessage { message }).await.unwrap();
    }

    /// The next message, without the directory.
    async fn hear(&mut self) -> Result<FromOperator, Code> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.hears.message());
            let message = next.await.unwrap().map_err(|s| s.code())?;
            match message.unwrap().message.unwrap() {
                FromOperator::Directory(_) => {}
                other => return Ok(other),
            }
        }
    }
}

fn is_alive(node: &'static str) -> impl Fn(&World) -> bool {
    move |world| world.node(node).is_some_and(|n| n.alive)
}

#[tokio::test]
async fn a_session_carries_what_both_sides_have_to_say() {
    let server = Server::start().await;
    server.world.set_operator_node("cloud-1");
    let mut agent = Agent::connect(&server, "cam-1").await;
    let FromOperator::Welcome(welcome) = agent.hear().await.unwrap() else {
        panic!("no welcome");
    };
    assert_eq!(welcome.operator_node, "cloud-1");
    agent
        .say(FromAgent::Heartbeat(Heartbeat {
            cpu_load: 0.5,
            memory_free_bytes: 1 << 20,
            in_flight: 2,
            leaving: false,
        }))
        .await;
    server
        .until("a heartbeat", |w| {
            w.node("cam-1")
                .is_some_and(|n| n.memory_free_bytes == Some(1 << 20))
        })
        .await;
    server.world.set_known(["cam-1".into(), "edge-1".into()]);
    let sample = LinkSample {
        peer: "edge-1".into(),
        rtt_seconds: 0.02,
        bytes_per_second: 1e6,
        bytes: 1 << 20,
        ..LinkSample::default()
    };
    agent
        .say(FromAgent::Links(LinkSamples {
            samples: vec![sample],
        }))
        .await;
    server
        .until("a link", |w| w.links().get("cam-1", "edge-1").is_some())
        .await;
    let peer = Hop {
        node: "edge-1".into(),
        address: "edge-1:8001".into(),
    };
    server.world.set_peers("cam-1", vec![peer]);
    let FromOperator::Peers(peers) = agent.hear().await.unwrap() else {
        panic!("no peers");
    };
    assert_eq!(peers.peers[0].node, "edge-1");
}

#[tokio::test]
async fn a_job_goes_to_its_agent_and_its_result_comes_back() {
    let server = Server::start().await;
    let mut agent = Agent::connect(&server, "cam-1").await;
    agent.hear().await.unwrap();
    let request = PrepareRequest {
        job: "uid/hash".into(),
        node: "cam-1".into(),
        uri: "http://files/model.pt".into(),
        sha256: String::new(),
        inputs_json: "[]".into(),
        secret: None,
        samples: None,
    };
    server.world.start_prepare(request).unwrap();
    let FromOperator::Prepare(job) = agent.hear().await.unwrap() else {
        panic!("no job");
    };
    assert_eq!(
        (job.job.as_str(), job.uri.as_str()),
        ("uid/hash", "http://files/model.pt")
    );
    agent
        .say(FromAgent::Prepare(PrepareUpdate {
            job: job.job,
            update: Some(Update::Done(PrepareDone {
                manifest_digest: "abc".into(),
            })),
        }))
        .await;
    server
        .until("the result", |w| {
            matches!(
                w.prepare_state("uid/hash"),
                Some(PrepareState::Done { manifest_digest, .. }) if manifest_digest == "abc"
            )
        })
        .await;
}

#[tokio::test]
async fn an_agent_that_goes_silent_or_away_is_lost_and_found() {
    let server = Server::start().await;
    let agent = Agent::connect(&server, "cam-1").await;
    server.until("it is here", is_alive("cam-1")).await;
    // It stays connected but silent.
    server
        .until("its silence is noticed", |w| !is_alive("cam-1")(w))
        .await;
    agent.say(FromAgent::Heartbeat(Heartbeat::default())).await;
    server.until("it speaks again", is_alive("cam-1")).await;
    drop(agent);
    server
        .until("its absence is noticed", |w| !is_alive("cam-1")(w))
        .await;
    let _again = Agent::connect(&server, "cam-1").await;
    server.until("it is back", is_alive("cam-1")).await;
}

#[tokio::test]
async fn a_newer_session_takes_over_and_a_shutdown_ends_all() {
    let server = Server::start().await;
    let mut old = Agent::connect(&server, "cam-1").await;
    old.hear().await.unwrap();
    let mut new = Agent::connect(&server, "cam-1").await;
    new.hear().await.unwrap();
    assert_eq!(old.hear().await.unwrap_err(), Code::Aborted);
    assert!(is_alive("cam-1")(&server.world));
    server.stop.cancel();
    assert_eq!(new.hear().await.unwrap_err(), Code::Unavailable);
}

#[tokio::test]
async fn of_two_agents_of_a_node_the_younger_has_the_session() {
    let server = Server::start().await;
    let mut young = Agent::begun(&server, "cam-1", 2000).await;
    young.hear().await.unwrap();
    // As when the operator was replaced and a stopping agent reconnects to it.
    let mut old = Agent::begun(&server, "cam-1", 1000).await;
    assert_eq!(old.hear().await.unwrap_err(), Code::Aborted);
    young.say(FromAgent::Heartbeat(Heartbeat::default())).await;
    server
        .until("the young one is heard", is_alive("cam-1"))
        .await;
    drop(young);
    // If the young one ended first, the old one would be accepted again.
    for _ in 0..100 {
        let mut old = Agent::begun(&server, "cam-1", 1000).await;
        if old.hear().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("nobody of the node is taken");
}

#[tokio::test]
async fn a_session_begins_with_hello() {
    let server = Server::start().await;
    let (say, said) = mpsc::channel(1);
    let heartbeat = AgentMessage {
        message: Some(FromAgent::Heartbeat(Heartbeat::default())),
    };
    say.send(heartbeat).await.unwrap();
    let reply = server
        .client
        .clone()
        .session(ReceiverStream::new(said))
        .await;
    let error = reply.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("Hello"), "{error}");
}

#[tokio::test]
async fn blobs_go_in_and_come_out_whole_or_in_ranges() {
    let server = Server::start().await;
    let content: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let digest = Digest::of(&content);
    let pieces = [
        &content[..1000],
        &content[1000..200_000],
        &content[200_000..],
    ];
    assert!(!server.put(digest.as_str(), &pieces).await.unwrap());
    assert!(
        server.put(digest.as_str(), &pieces).await.unwrap(),
        "it existed"
    );
    assert_eq!(server.get(&digest, 0, 0).await.unwrap(), content);
    // An interrupted transfer resumes.
    assert_eq!(
        server.get(&digest, 150_000, 0).await.unwrap(),
        content[150_000..]
    );
    assert_eq!(server.get(&digest, 5, 10).await.unwrap(), content[5..15]);
    assert!(server.get(&digest, 300_000, 0).await.unwrap().is_empty());
    assert_eq!(server.get(&digest, 300_001, 0).await, Err(Code::OutOfRange));
    let unknown = Digest::of(b"unknown");
    assert_eq!(server.get(&unknown, 0, 0).await, Err(Code::NotFound));
}

#[tokio::test]
async fn a_blob_with_another_content_is_not_stored() {
    let server = Server::start().await;
    let digest = Digest::of(b"announced");
    let error = server
        .put(digest.as_str(), &[b"something else"])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    assert!(!server.store.has(&digest).await.unwrap());
    let error = server.put("no digest", &[b"x"]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_agent_fills_the_store_no_further_than_its_quota() {
    let server = Server::start_with(Insecure, |service| service.taking(10_000)).await;
    let small = b"a block".to_vec();
    let put = server.put(Digest::of(&small).as_str(), &[&small]).await;
    assert!(!put.unwrap());
    let large = vec![7; 6000];
    let digest = Digest::of(&[&large[..], &large].concat());
    let refused = server.put(digest.as_str(), &[&large, &large]).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(!server.store.has(&digest).await.unwrap());
    // An existing blob costs nothing.
    let put = server.put(Digest::of(&small).as_str(), &[&small]).await;
    assert!(put.unwrap());
}

/// The operator's store is lost, the source is unavailable, and a host of the path dies: other
/// hosts with the blocks send them back.
#[tokio::test]
async fn a_lost_store_is_filled_from_the_hosts_that_are_left() {
    let server = Server::start().await;
    let contents = ["block 0", "block 1", "probe"].map(|text| text.as_bytes().to_vec());
    let manifest = serde_json::to_vec(&crate::testing::manifest(2)).unwrap();
    let named = Digest::of(&manifest).to_string();
    let held: Vec<Vec<u8>> = contents.into_iter().chain([manifest]).collect();
    let inventory = || {
        FromAgent::Blobs(BlobInventory {
            held: held.iter().map(|c| Digest::of(c).to_string()).collect(),
            complete: true,
            gone: Vec::new(),
        })
    };
    // The host that dies would be the first to be asked.
    let dies = Agent::connect(&server, "cloud-1").await;
    dies.say(inventory()).await;
    let mut lives = Agent::connect(&server, "edge-1").await;
    lives.say(inventory()).await;
    let both_came = |world: &World| is_alive("cloud-1")(world) && is_alive("edge-1")(world);
    server.until("both came", both_came).await;
    drop(dies);
    let is_gone = |world: &World| !is_alive("cloud-1")(world);
    server.until("one is gone", is_gone).await;
    let mut manifests = Manifests::new(server.store.clone());
    let filling = async {
        loop {
            let loaded = manifests.load(&BTreeSet::from([named.clone()])).await;
            if loaded.manifests.contains_key(&named) {
                return;
            }
            let missing = loaded.missing.values().flatten();
            let asked = missing
                .filter(|of| server.world.take_back(&of.blob, of.most_bytes))
                .count();
            for _ in 0..asked {
                let Ok(FromOperator::WantBlobs(wants)) = lives.hear().await else {
                    continue;
                };
                let wanted = held
                    .iter()
                    .find(|c| Digest::of(c).as_str() == wants.digests[0]);
                let wanted = wanted.unwrap();
                server.put(&wants.digests[0], &[wanted]).await.unwrap();
            }
        }
    };
    let filled = tokio::time::timeout(PATIENCE, filling).await;
    assert!(filled.is_ok(), "the store was not filled again");
}
