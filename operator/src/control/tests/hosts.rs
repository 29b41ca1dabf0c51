//! Hosts without a Node, over TLS, against an API server of a few lines.

use super::tls::Secured;
use super::*;
use crate::control::{Callers, TokenReviews};
use crate::hosts::Hosts;
use crate::kube::objects::Objects;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::client::Body;
use kube::core::ObjectMeta;
use lamina_crds::ComputeNode;
use lamina_identity::authority::request;
use lamina_identity::{Credentials, join_id, read};
use lamina_proto::control::{EnrollRequest, HostReport};
use serde_json::{Value, json};
use std::sync::Mutex;

const HOST: &str = "roof-1";
const TOKEN: &str = "a-token-that-is-good-once";

/// One ComputeNode, with the versions of the API server.
#[derive(Clone)]
struct Cluster {
    object: Arc<Mutex<Value>>,
    objects: Objects,
}

impl Cluster {
    /// With a host that may join by [`TOKEN`].
    fn new() -> Self {
        let object = json!({
            "apiVersion": "serving.lamina.dev/v1alpha1",
            "kind": "ComputeNode",
            "metadata": {"name": HOST, "uid": "u", "generation": 1, "resourceVersion": "1"},
            "spec": {"join": {
                "tokenSha256": Digest::of(TOKEN.as_bytes()).as_str(),
                "expiresAt": "2100-01-01T00:00:00Z",
            }},
        });
        let cluster = Self {
            object: Arc::new(Mutex::new(object)),
            objects: Objects::default(),
        };
        cluster.listed();
        cluster.objects.nodes.list([]);
        cluster
    }

    /// Delivers the objects of a watch.
    fn listed(&self) {
        let object: ComputeNode = serde_json::from_value(self.now()).unwrap();
        self.objects.compute_nodes.list([object]);
    }

    fn now(&self) -> Value {
        self.object.lock().unwrap().clone()
    }

    fn client(&self) -> Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let cluster = cluster.clone();
            async move { Ok::<_, std::convert::Infallible>(cluster.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Merges a status if the version is current.
    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let body = request.into_body().collect_bytes().await.unwrap();
        let patch: Value = serde_json::from_slice(&body).unwrap();
        let mut object = self.object.lock().unwrap();
        let version = object["metadata"]["resourceVersion"].clone();
        if patch["metadata"]["resourceVersion"] != version {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "it was changed", "reason": "Conflict", "code": 409,
            });
            return reply(StatusCode::CONFLICT, &status);
        }
        let next = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
        object["metadata"]["resourceVersion"] = json!(next.to_string());
        object["status"] = patch["status"].clone();
        reply(StatusCode::OK, &object)
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Response::builder().status(status).body(body).unwrap()
}

/// An operator that lets hosts of `cluster` join, and its world.
async fn operator(cluster: &Cluster) -> (Secured, Hosts) {
    let client = cluster.client();
    let hosts = Hosts::new(cluster.objects.clone(), client.clone());
    let agents = TokenReviews::new(client, "lamina", "agent");
    let auth = Arc::new(Callers::new(agents, hosts.clone(), true));
    let known = hosts.clone();
    let server = Secured::start_as(auth, true, None, |service| service.with_hosts(known)).await;
    (server, hosts)
}

/// A machine's key and the request for its certificate.
struct Machine {
    key: String,
    csr: Vec<u8>,
}

impl Machine {
    fn new() -> Self {
        let (key, csr) = request().unwrap();
        Self { key, csr }
    }

    /// The response to `token` as `host`, or to `own`.
    async fn enroll(
        &self,
        server: &Secured,
        own: Option<&Credentials>,
        shown: &str,
    ) -> Result<Credentials, tonic::Status> {
        let mut asked = tonic::Request::new(EnrollRequest {
            csr: self.csr.clone().into(),
        });
        if !shown.is_empty() {
            let shown = shown.parse().unwrap();
            asked.metadata_mut().insert("authorization", shown);
        }
        let reply = server.client(own).enroll(asked).await?.into_inner();
        let own = Credentials::from_pem(reply.certificate.as_bytes(), self.key.as_bytes());
        Ok(own.unwrap())
    }
}

fn join() -> String {
    format!("Join {HOST}.{TOKEN}")
}

/// Opens a session as `node` at `address`.
async fn session(
    server: &Secured,
    own: &Credentials,
    node: &str,
    address: &str,
) -> (
    mpsc::Sender<AgentMessage>,
    Result<Streaming<OperatorMessage>, Code>,
) {
    let (sender, receiver) = mpsc::channel(8);
    let hello = FromAgent::Hello(Hello {
        node: node.into(),
        version: "0.1.0".into(),
        address: address.into(),
        started_unix_ms: 0,
    });
    let message = Some(hello);
    sender.send(AgentMessage { message }).await.unwrap();
    let mut client = server.client(Some(own));
    let opened = client.session(ReceiverStream::new(receiver)).await;
    (
        sender,
        opened
            .map(tonic::Response::into_inner)
            .map_err(|s| s.code()),
    )
}

/// Messages until one is of interest.
async fn hear<T>(
    stream: &mut Streaming<OperatorMessage>,
    mut pick: impl FnMut(FromOperator) -> Option<T>,
) -> Result<T, Code> {
    let hearing = async {
        loop {
            let message = stream.message().await.map_err(|s| s.code())?;
            let message = message.and_then(|m| m.message);
            if let Some(found) = message.and_then(&mut pick) {
                return Ok(found);
            }
        }
    };
    tokio::time::timeout(PATIENCE, hearing).await.unwrap()
}

#[tokio::test]
async fn of_two_that_show_a_token_one_is_let_in() {
    let cluster = Cluster::new();
    let (server, _) = operator(&cluster).await;
    let (one, two) = (Machine::new(), Machine::new());
    let shown = join();
    let (first, second) = tokio::join!(
        one.enroll(&server, None, &shown),
        two.enroll(&server, None, &shown)
    );
    let refused = match (&first, &second) {
        (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
        both => panic!("{:?}", both.0.is_ok()),
    };
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("another machine has joined"));
    let joined = cluster.now()["status"]["joined"].clone();
    assert_eq!(joined["tokenSha256"], Digest::of(TOKEN.as_bytes()).as_str());
    // An admitted host may ask again: the answer might have been lost.
    let again = if first.is_ok() { one } else { two };
    let own = again.enroll(&server, None, &shown).await.unwrap();
    let facts = read(own.certificate().unwrap()).unwrap();
    assert_eq!(facts.node.as_deref(), Some(HOST));
    // The certificate gets the next one, with another key, and grants nothing else.
    let own = Machine::new()
        .enroll(&server, Some(&own), "")
        .await
        .unwrap();
    assert!(read(own.certificate().unwrap()).unwrap().join.is_some());
    for nobody in ["", "Join roof-1.other", "Join roof-2.a-token", "Bearer a.b"] {
        let refused = Machine::new().enroll(&server, None, nobody).await;
        assert!(refused.is_err(), "{nobody}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_a_certificate_and_nothing_else() {
    let cluster = Cluster::new();
    let (server, _) = operator(&cluster).await;
    let digest = Digest::of(b"none").to_string();
    let mut asked = tonic::Request::new(GetBlobRequest {
        digest,
        ..GetBlobRequest::default()
    });
    let shown = join().parse().unwrap();
    asked.metadata_mut().insert("authorization", shown);
    let refused = server.client(None).get_blob(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_host_is_who_its_certificate_names_at_its_own_address() {
    let cluster = Cluster::new();
    let (server, _) = operator(&cluster).await;
    let own = Machine::new().enroll(&server, None, &join()).await.unwrap();
    for (node, address) in [
        ("cam-1", "127.0.0.1:8001"),
        (HOST, "10.0.0.66:8001"),
        (HOST, "localhost:8001"),
    ] {
        let (_sender, opened) = session(&server, &own, node, address).await;
        let refused = match opened {
            Ok(mut stream) => hear(&mut stream, |_| Some(())).await.unwrap_err(),
            Err(code) => code,
        };
        let expected = [Code::PermissionDenied, Code::InvalidArgument];
        assert!(expected.contains(&refused), "{node} {address}: {refused}");
    }
    let (_sender, opened) = session(&server, &own, HOST, "127.0.0.1:8001").await;
    let wish = |m| match m {
        FromOperator::Wish(wish) => Some(wish),
        _ => None,
    };
    let wish = hear(&mut opened.unwrap(), wish).await.unwrap();
    let wish: Value = serde_json::from_slice(&wish.compute_node_json).unwrap();
    assert_eq!(wish["metadata"]["name"], HOST);
    assert!(wish["spec"].get("join").is_none(), "{wish}");
    // A Node of that name becomes the host.
    let node = Node {
        metadata: ObjectMeta {
            name: Some(HOST.into()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    cluster.objects.nodes.list([node]);
    let refused = Machine::new().enroll(&server, Some(&own), "").await;
    assert!(refused.unwrap_err().message().contains("a Node is called"));
}

#[tokio::test]
async fn one_that_is_removed_is_heard_no_more() {
    let cluster = Cluster::new();
    let (server, hosts) = operator(&cluster).await;
    let own = Machine::new().enroll(&server, None, &join()).await.unwrap();
    let (sender, opened) = session(&server, &own, HOST, "127.0.0.1:8001").await;
    let mut stream = opened.unwrap();
    let pem = |m| match m {
        FromOperator::Authorities(told) => Some(told.pem),
        _ => None,
    };
    let told = hear(&mut stream, pem).await.unwrap();
    assert_eq!(told, server.authority.certificate());
    // Its report waits to be written.
    let status = json!({"observedGeneration": 1, "address": "10.0.0.66:1"});
    let status_json = status.to_string().into_bytes().into();
    let report = FromAgent::Report(HostReport { status_json });
    let message = Some(report);
    sender.send(AgentMessage { message }).await.unwrap();
    let reported = async {
        while !hosts.has_reports() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reported).await.unwrap();
    // With another token, what the former one gave is invalid.
    let other = Digest::of(b"another token");
    cluster.object.lock().unwrap()["spec"]["join"]["tokenSha256"] = json!(other.as_str());
    cluster.listed();
    hosts.touch();
    let ended = hear(&mut stream, |_| None::<()>).await;
    assert_eq!(ended, Err(Code::PermissionDenied));
    let refused = Machine::new().enroll(&server, Some(&own), "").await;
    assert!(refused.unwrap_err().message().contains("counts no more"));
    let facts = read(own.certificate().unwrap()).unwrap();
    assert_ne!(facts.join.as_deref(), Some(join_id(other.as_str())));
}
