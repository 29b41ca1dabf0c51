//! With TLS on the control port.

use super::*;
use crate::identity::Identity;
use hyper_util::rt::TokioIo;
use lamina_identity::authority::{Authority, request};
use lamina_identity::{
    CertificateDer, ConnectError, Credentials, OPERATOR, Plain, Reached, Validity, Workload,
    client_config, connect, read, server_config,
};
use lamina_proto::control::EnrollRequest;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

fn now() -> i64 {
    k8s_openapi::jiff::Timestamp::now().as_second()
}

fn lasting(seconds: i64) -> Validity {
    Validity {
        not_before: now() - 3600,
        not_after: now() + seconds,
    }
}

fn workload(account: &str) -> Workload {
    Workload {
        trust_domain: "lamina".into(),
        namespace: "lamina".into(),
        account: account.into(),
    }
}

/// An operator with TLS that knows the agent of cam-1 by its token.
pub(super) struct Secured {
    pub(super) authority: Arc<Authority>,
    address: SocketAddr,
    stop: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Secured {
    async fn start(is_strict: bool) -> Self {
        Self::start_for([127, 0, 0, 1].into(), is_strict).await
    }

    /// For an existing pod.
    async fn start_for(pod: IpAddr, is_strict: bool) -> Self {
        Self::start_with(pod, is_strict, None).await
    }

    /// For an existing pod, reached by clients at `front`.
    async fn start_with(pod: IpAddr, is_strict: bool, front: Option<Reached>) -> Self {
        let auth = Arc::new(Doorkeeper {
            at: Some(pod),
            ..Doorkeeper::default()
        });
        Self::start_as(auth, is_strict, front, |service| service).await
    }

    /// For clients that `auth` admits.
    pub(super) async fn start_as(
        auth: Arc<dyn Authenticate>,
        is_strict: bool,
        front: Option<Reached>,
        change: impl FnOnce(ControlService) -> ControlService,
    ) -> Self {
        let authority = Arc::new(Authority::new(lasting(7200)).unwrap());
        let plain = if is_strict {
            Plain::Refused
        } else {
            Plain::Taken
        };
        let identity = Identity::new(workload("agent"), Duration::from_secs(3600), plain);
        let identity = match front {
            Some(front) => identity.for_clients(front),
            None => identity,
        };
        let own = authority
            .issue_operator(&workload("operator"), [127, 0, 0, 1].into(), lasting(3600))
            .unwrap();
        let own = Credentials::from_pem(own.certificate.as_bytes(), own.key.as_bytes()).unwrap();
        let roots = [authority.der().clone()];
        identity
            .acceptor()
            .set(server_config(&own, &roots).unwrap());
        identity.set(Arc::clone(&authority));
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let stop = CancellationToken::new();
        let service = ControlService::new(World::new(), store, auth, stop.clone());
        identity.set_bundle(authority.certificate());
        let service = change(service.with_identity(identity, is_strict, true));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, service, stop.clone()));
        Self {
            authority,
            address,
            stop,
            _folder: folder,
        }
    }

    fn roots(&self) -> [CertificateDer<'static>; 1] {
        [self.authority.der().clone()]
    }

    /// A client that presents `own`.
    pub(super) fn client(&self, own: Option<&Credentials>) -> ControlClient<Channel> {
        let config = client_config(own, &self.roots()).unwrap();
        let address = self.address;
        let connector = tower::service_fn(move |_: http::Uri| {
            let config = Arc::clone(&config);
            async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let stream = connect(config, OPERATOR, stream).await?;
                Ok::<_, ConnectError>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://operator");
        ControlClient::new(endpoint.connect_with_connector_lazy(connector))
    }

    /// The response to the agent with that token and no certificate.
    async fn enroll(&self, token: &str) -> Result<Credentials, Code> {
        let (key, csr) = request().unwrap();
        let asked = with_token(EnrollRequest { csr: csr.into() }, token);
        let reply = self.client(None).enroll(asked).await;
        let certificate = reply.map_err(|s| s.code())?.into_inner().certificate;
        let own = Credentials::from_pem(certificate.as_bytes(), key.as_bytes());
        Ok(own.unwrap())
    }

    fn issued(&self, node: &str) -> Credentials {
        let (key, csr) = request().unwrap();
        let issued = self
            .authority
            .issue_agent(&workload("agent"), node, &csr, lasting(600));
        Credentials::from_pem(issued.unwrap().as_bytes(), key.as_bytes()).unwrap()
    }

    /// The operator's answer to a request for a blob that it lacks.
    async fn asked(&self, own: Option<&Credentials>, token: &str) -> Code {
        let digest = Digest::of(b"none").to_string();
        let asked = GetBlobRequest {
            digest,
            ..GetBlobRequest::default()
        };
        let reply = self.client(own).get_blob(with_token(asked, token)).await;
        reply.map(|_| ()).unwrap_err().code()
    }
}

fn with_token<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

#[tokio::test]
async fn a_certificate_names_the_node_of_the_token_and_is_needed_beside_it() {
    let server = Secured::start(true).await;
    assert_eq!(
        server.asked(None, "good.good.good").await,
        Code::Unauthenticated
    );
    let own = server.enroll("good.good.good").await.unwrap();
    let facts = read(own.certificate().unwrap()).unwrap();
    assert_eq!(facts.node.as_deref(), Some("cam-1"));
    assert_eq!(
        server.asked(Some(&own), "good.good.good").await,
        Code::NotFound
    );
    // The certificate alone grants nothing.
    assert_eq!(
        server.asked(Some(&own), "bad.bad.bad").await,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn a_certificate_says_where_clients_reach_its_agent_where_they_do() {
    let server = Secured::start(true).await;
    let own = server.enroll("good.good.good").await.unwrap();
    let facts = read(own.certificate().unwrap()).unwrap();
    assert_eq!(facts.reached.names, ["cam-1.agents.lamina"]);
    assert!(facts.reached.addresses.is_empty());
    let front = Reached::parse(["lamina.lamina-system.svc", "10.96.0.7"]).unwrap();
    let server = Secured::start_with([127, 0, 0, 1].into(), true, Some(front)).await;
    let own = server.enroll("good.good.good").await.unwrap();
    let facts = read(own.certificate().unwrap()).unwrap();
    // Service, node, pod and host.
    let wanted = [
        "lamina.lamina-system.svc",
        "10.96.0.7",
        "cam-1",
        "127.0.0.1",
        "192.0.2.7",
    ];
    let wanted = Reached::parse(wanted).unwrap();
    assert_eq!(facts.reached.lacks(&wanted), None);
    assert_eq!(facts.node.as_deref(), Some("cam-1"));
}

#[tokio::test]
async fn nobody_enrolls_without_a_token_and_nobody_as_another() {
    let server = Secured::start(true).await;
    let refused = server.enroll("bad.bad.bad").await;
    assert_eq!(refused.err(), Some(Code::Unauthenticated));
    // A stolen token comes with the certificate of another pod.
    let other = server.issued("edge-1");
    assert_eq!(
        server.asked(Some(&other), "good.good.good").await,
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn a_token_is_of_no_use_in_another_pod() {
    let server = Secured::start_for([10, 0, 0, 7].into(), true).await;
    let refused = server.enroll("good.good.good").await;
    assert_eq!(refused.err(), Some(Code::PermissionDenied));
    assert_eq!(
        server.asked(None, "good.good.good").await,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn without_tls_nothing_is_heard_but_where_a_cluster_is_changed_over() {
    for is_strict in [true, false] {
        let server = Secured::start(is_strict).await;
        let plain = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let mut client = ControlClient::new(plain.connect_lazy());
        let asked = GetBlobRequest {
            digest: Digest::of(b"none").to_string(),
            ..GetBlobRequest::default()
        };
        let reply = client.get_blob(with_token(asked, "good.good.good")).await;
        let code = reply.map(|_| ()).unwrap_err().code();
        // The error of a closed connection depends on timing.
        assert_eq!(code == Code::NotFound, !is_strict, "{code:?}");
    }
}

#[tokio::test]
async fn an_operator_of_a_foreign_authority_is_not_taken_for_ours() {
    let server = Secured::start(true).await;
    let foreign = Authority::new(lasting(7200)).unwrap();
    let config = client_config(None, &[foreign.der().clone()]).unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let refused = connect(config, OPERATOR, stream).await.err();
    assert!(
        matches!(refused, Some(ConnectError::Certificate { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn without_an_authority_nobody_is_given_a_certificate() {
    let server = Server::start_with(Doorkeeper::default(), |service| service).await;
    let (_, csr) = request().unwrap();
    let asked = with_token(EnrollRequest { csr: csr.into() }, "good.good.good");
    let refused = server.client.clone().enroll(asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
