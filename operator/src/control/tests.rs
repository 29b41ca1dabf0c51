//! Real gRPC over loopback.

use super::{ControlService, Insecure, serve};
use crate::store::BlobStore;
use crate::world::{PrepareRequest, PrepareState, World};
use bytes::Bytes;
use lamina_crds::Hop;
use lamina_model::Digest;
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::control_client::ControlClient;
use lamina_proto::control::operator_message::Message as FromOperator;
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{
    AgentMessage, GetBlobRequest, Heartbeat, Hello, LinkSample, LinkSamples, OperatorMessage,
    PrepareDone, PrepareUpdate, PutBlobChunk,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

const PATIENCE: Duration = Duration::from_secs(10);

struct Server {
    world: World,
    store: BlobStore,
    client: ControlClient<Channel>,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let (world, stop) = (World::new(), CancellationToken::new());
        let service = ControlService::new(
            world.clone(),
            store.clone(),
            Arc::new(Insecure),
            stop.clone(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, service, stop.clone()));
        let watched = world.clone();
        tokio::spawn(async move { watched.watch_over().await });
        let client = ControlClient::connect(format!("http://{address}"));
        Self {
            world,
            store,
            client: client.await.unwrap(),
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

    /// Waits until the world says so.
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

struct Agent {
    say: mpsc::Sender<AgentMessage>,
    hears: Streaming<OperatorMessage>,
}

impl Agent {
    async fn connect(server: &Server, node: &str) -> Self {
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
            }))
            .await;
        agent
    }

    async fn say(&self, message: FromAgent) {
        let message = Some(message);
        self.say.send(AgentMessage { message }).await.unwrap();
    }

    /// The next message, the directory left out.
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
    // It stays connected and says nothing.
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
    // A transfer that broke off goes on where it was.
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
