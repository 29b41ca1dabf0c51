//! Against an operator of a few lines, over real sockets.

use super::{Files, Keeper, Shown};
use crate::door::{Door, DoorLimits, Speech};
use crate::net::{OperatorEndpoint, Profile, Target, TlsMode, Trust, connect};
use crate::telemetry::Telemetry;
use crate::testing::{agents, authority, lasting};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use lamina_identity::authority::Authority;
use lamina_identity::{Acceptor, Credentials, Peer, Plain, Validity, server_config};
use lamina_proto::control::control_client::ControlClient;
use lamina_proto::control::control_server::{Control, ControlServer};
use lamina_proto::control::{
    AgentMessage, BlobChunk, EnrollReply, EnrollRequest, GetBlobRequest, OperatorMessage,
    PutBlobChunk, PutBlobReply,
};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(10);

/// Signs for any client with the token `good`, as the agent of cam-1.
#[derive(Clone)]
struct Operator {
    authority: Arc<Mutex<Arc<Authority>>>,
    lasts: Arc<Mutex<Validity>>,
    issued: Arc<AtomicU32>,
    acceptor: Acceptor,
}

type Items<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl Control for Operator {
    type SessionStream = Items<OperatorMessage>;
    type GetBlobStream = Items<BlobChunk>;

    async fn session(
        &self,
        _: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented("no sessions here"))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        let peer = request.extensions().get::<Peer>();
        let seen = peer.map_or("nobody", |peer| &*peer.node).to_owned();
        Err(Status::not_found(seen))
    }

    async fn put_blob(
        &self,
        _: Request<Streaming<PutBlobChunk>>,
    ) -> Result<Response<PutBlobReply>, Status> {
        Err(Status::unimplemented("no blobs here"))
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollReply>, Status> {
        let token = request.metadata().get("authorization");
        if token.is_none_or(|token| token != "Bearer good") {
            return Err(Status::unauthenticated("the token has expired"));
        }
        let csr = &request.get_ref().csr;
        let authority = self.authority.lock().unwrap().clone();
        let lasts = *self.lasts.lock().unwrap();
        let certificate = authority.issue_agent(&agents(), "cam-1", csr, lasts);
        self.issued.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(EnrollReply {
            certificate: certificate.unwrap(),
        }))
    }
}

impl Operator {
    fn new(by: &Arc<Authority>) -> Self {
        let operator = Self {
            authority: Arc::new(Mutex::new(Arc::clone(by))),
            lasts: Arc::new(Mutex::new(lasting())),
            issued: Arc::default(),
            acceptor: Acceptor::new(Plain::Refused),
        };
        operator.sign_with(by);
        operator
    }

    fn sign_with(&self, by: &Arc<Authority>) {
        let pair = by
            .issue_operator(&agents(), [127, 0, 0, 1].into(), lasting())
            .unwrap();
        let own = Credentials::from_pem(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
        let config = server_config(&own, &[by.der().clone()]).unwrap();
        self.acceptor.set(config);
        *self.authority.lock().unwrap() = Arc::clone(by);
    }

    async fn serve(&self) -> (String, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let routes = Routes::new(ControlServer::new(self.clone())).prepare();
        let door = Door {
            speech: Speech::Http2,
            limits: DoorLimits::for_requests(),
            acceptor: Some(self.acceptor.clone()),
        };
        let serving = door.serve(listener, routes, CancellationToken::new());
        (address, AbortOnDropHandle::new(tokio::spawn(serving)))
    }

    fn issued(&self) -> u32 {
        self.issued.load(Ordering::Relaxed)
    }
}

/// The agent of cam-1, reduced to its certificate.
struct Agent {
    trust: Trust,
    bundles: UnboundedSender<String>,
    _keeping: AbortOnDropHandle<()>,
}

impl Agent {
    fn start(cache: &Path, address: &str) -> Self {
        let trust = Trust::new(TlsMode::Required);
        let endpoint = OperatorEndpoint::trusted(trust.clone());
        endpoint.set(address);
        let token = cache.join("token");
        let files = Files::in_dir(cache);
        let told = (Telemetry::default(), Arc::default());
        let keeper = Keeper::new("cam-1", files, Shown::Pod(token), endpoint, told);
        let (bundles, published) = unbounded();
        let keeping = tokio::spawn(keeper.run(published));
        Self {
            trust,
            bundles,
            _keeping: AbortOnDropHandle::new(keeping),
        }
    }

    fn publish(&self, believed: &[&Authority]) {
        let bundle: String = believed.iter().map(|one| one.certificate()).collect();
        self.bundles.unbounded_send(bundle).unwrap();
    }

    async fn ready(&self) {
        timeout(PATIENCE, self.trust.ready()).await.unwrap();
    }

    async fn trouble(&self) -> String {
        for _ in 0..500 {
            if let Some(trouble) = self.trust.trouble() {
                return trouble;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("no trouble was told");
    }

    /// The identity that the operator at `address` sees for this agent.
    async fn seen(&self, address: &str) -> String {
        let operator = Target::Operator { address };
        let channel = connect(operator, &Profile::SESSION, &self.trust).await;
        let mut client = ControlClient::new(channel.unwrap());
        let asked = client.get_blob(GetBlobRequest::default()).await;
        asked.map(|_| ()).unwrap_err().message().to_owned()
    }
}

fn cache(token: &str) -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    std::fs::write(cache.path().join("token"), token).unwrap();
    cache
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test]
async fn an_agent_enrolls_once_it_knows_whom_to_believe() {
    let by = Arc::new(authority());
    let operator = Operator::new(&by);
    let (address, _serving) = operator.serve().await;
    let cache = cache("good");
    let agent = Agent::start(cache.path(), &address);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(operator.issued(), 0, "nobody is asked before");
    agent.publish(&[&by]);
    agent.ready().await;
    assert_eq!(agent.seen(&address).await, "cam-1");
    assert_eq!(operator.issued(), 1);
}

#[tokio::test]
async fn an_agent_that_starts_anew_while_the_operator_is_away_shows_its_certificate() {
    let by = Arc::new(authority());
    let operator = Operator::new(&by);
    let (address, serving) = operator.serve().await;
    let cache = cache("good");
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&by]);
    agent.ready().await;
    until("it is on the disk", || {
        !Files::in_dir(cache.path()).read().own.is_empty()
    })
    .await;
    drop((agent, serving));
    let again = Agent::start(cache.path(), &address);
    again.ready().await;
    let (elsewhere, _serving) = operator.serve().await;
    assert_eq!(again.seen(&elsewhere).await, "cam-1");
    assert_eq!(operator.issued(), 1, "the one of before");
}

#[tokio::test]
async fn a_certificate_that_is_to_end_soon_is_renewed_and_one_of_another_host_is_not_used() {
    let by = Arc::new(authority());
    let operator = Operator::new(&by);
    let (address, _serving) = operator.serve().await;
    let cache = cache("good");
    // More than two thirds of its lifetime are over.
    let now = lasting().not_after - 3600;
    let old = Validity {
        not_before: now - 3000,
        not_after: now + 600,
    };
    let (key, csr) = lamina_identity::authority::request().unwrap();
    let files = Files::in_dir(cache.path());
    files.write_authorities(by.certificate()).unwrap();
    let own = by.issue_agent(&agents(), "cam-1", &csr, old).unwrap();
    files.write_own(&format!("{own}{key}")).unwrap();
    let agent = Agent::start(cache.path(), &address);
    agent.ready().await;
    until("it is renewed", || operator.issued() == 1).await;
    drop(agent);

    let other = by.issue_agent(&agents(), "cam-2", &csr, lasting()).unwrap();
    files.write_own(&format!("{other}{key}")).unwrap();
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&by]);
    agent.ready().await;
    assert_eq!(agent.seen(&address).await, "cam-1");
    assert_eq!(operator.issued(), 2);
}

#[tokio::test]
async fn why_there_is_no_certificate_is_told_until_there_is_one() {
    let by = Arc::new(authority());
    let operator = Operator::new(&by);
    let (address, _serving) = operator.serve().await;
    let cache = cache("bad");
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&by]);
    let trouble = agent.trouble().await;
    assert!(trouble.contains("the token has expired"), "{trouble}");
    std::fs::write(cache.path().join("token"), "good").unwrap();
    agent.ready().await;
    until("it is over", || agent.trust.trouble().is_none()).await;
}

#[tokio::test]
async fn an_operator_of_a_foreign_authority_is_told_nothing() {
    let (by, foreign) = (Arc::new(authority()), Arc::new(authority()));
    let operator = Operator::new(&foreign);
    let (address, _serving) = operator.serve().await;
    let cache = cache("good");
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&by]);
    let trouble = agent.trouble().await;
    assert!(trouble.contains("certificate"), "{trouble}");
    assert_eq!(operator.issued(), 0);
}

#[tokio::test]
async fn a_certificate_that_is_not_good_by_this_clock_is_told_and_not_asked_for_all_the_time() {
    let by = Arc::new(authority());
    let operator = Operator::new(&by);
    let Validity { not_after, .. } = lasting();
    *operator.lasts.lock().unwrap() = Validity {
        not_before: not_after,
        not_after: not_after + 60,
    };
    let (address, _serving) = operator.serve().await;
    let cache = cache("good");
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&by]);
    let trouble = agent.trouble().await;
    assert!(trouble.contains("check both clocks"), "{trouble}");
    sleep(Duration::from_millis(500)).await;
    assert!(operator.issued() < 10, "{}", operator.issued());
}

#[tokio::test]
async fn a_certificate_whose_authority_goes_is_replaced_and_two_are_believed_meanwhile() {
    let (old, new) = (Arc::new(authority()), Arc::new(authority()));
    let operator = Operator::new(&old);
    let (address, _serving) = operator.serve().await;
    let cache = cache("good");
    let agent = Agent::start(cache.path(), &address);
    agent.publish(&[&old]);
    agent.ready().await;
    agent.publish(&[&old, &new]);
    operator.sign_with(&new);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(operator.issued(), 1, "the old one is good still");
    agent.publish(&[&new]);
    until("it has one of the new", || operator.issued() == 2).await;
    let authorities = || Files::in_dir(cache.path()).read().authorities;
    until("it is on the disk", || authorities() == new.certificate()).await;
    agent.ready().await;
    assert_eq!(agent.seen(&address).await, "cam-1");
}
