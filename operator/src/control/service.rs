use super::admit::to_status;
use super::auth::{Addresses, AuthError, Authenticate, Caller};
use super::callers::Host;
use super::connections::Origin;
use super::host_session::HostSession;
use super::quota::{OverQuota, Putting, Quotas};
use super::standing::Terms;
use crate::hosts::Hosts;
use crate::identity::{self, EnrollError};
use crate::store::{BlobStore, BlobWriter, StoreError};
use crate::text::with_causes;
use crate::world::{Identity, SessionHandle, World};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::jiff::Timestamp;
use lamina_identity::authority::{AuthorityError, request_key};
use lamina_identity::{Acceptor, Named, join_id};
use lamina_model::Digest;
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::control_server::Control;
use lamina_proto::control::{
    AgentMessage, BlobChunk, EnrollReply, EnrollRequest, GetBlobRequest, Hello, OperatorMessage,
    PutBlobChunk, PutBlobReply,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of a blob in one message: small enough that a receiver on a slow link can pause in
/// between.
const CHUNK_BYTES: u64 = 128 << 10;
/// A session that does not say hello within this time is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The holder of a session is checked again after this time: tokens expire, and pods are deleted.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// The same if the last check was inconclusive.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Outgoing messages to an agent, and the time limit of the last one.
const OUT: usize = 16;
const STUCK: Duration = Duration::from_secs(20);
/// Longest name of a node, its address or its version.
const LONGEST_NAME: usize = 253;

/// Default limit for one agent's uploads in an hour.
const PUT_QUOTA_BYTES: u64 = 8 << 30;

/// The Control service.
#[derive(Clone)]
pub struct ControlService {
    world: World,
    store: BlobStore,
    auth: Arc<dyn Authenticate>,
    quotas: Quotas,
    shutdown: CancellationToken,
    look_again: Duration,
    identity: Option<identity::Identity>,
    is_strict: bool,
    checks_source: bool,
    terms: Terms,
    hosts: Option<Hosts>,
}

impl ControlService {
    /// A service on `world` and `store` for callers admitted by `auth`; its sessions end at
    /// `shutdown`.
    pub fn new(
        world: World,
        store: BlobStore,
        auth: Arc<dyn Authenticate>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            world,
            store,
            auth,
            quotas: Quotas::new(PUT_QUOTA_BYTES),
            shutdown,
            look_again: LOOK_AGAIN,
            identity: None,
            is_strict: false,
            checks_source: false,
            terms: Terms::default(),
            hosts: None,
        }
    }

    /// Sends `hosts`, which are not Nodes, their specs, and accepts their reports.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Hosts) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// Sets the upload limit of one agent per hour.
    #[must_use]
    pub fn taking(mut self, bytes_an_hour: u64) -> Self {
        self.quotas = Quotas::new(bytes_an_hour);
        self
    }

    /// Speaks TLS as `identity`, and issues its certificates to agents; if `is_strict`, callers
    /// without one may only enrol. With `checks_source` a certificate is issued only to an address
    /// of the token's pod.
    pub fn with_identity(
        mut self,
        identity: identity::Identity,
        is_strict: bool,
        checks_source: bool,
    ) -> Self {
        self.identity = Some(identity);
        self.is_strict = is_strict;
        self.checks_source = checks_source;
        self
    }

    /// Accepts connections, if TLS is enabled.
    pub(super) fn acceptor(&self) -> Option<Acceptor> {
        self.identity.as_ref().map(|i| i.acceptor().clone())
    }

    /// Limits on connections.
    pub(super) const fn terms(&self) -> Terms {
        self.terms
    }

    /// With other limits on connections.
    #[cfg(test)]
    pub(super) const fn on_terms(mut self, terms: Terms) -> Self {
        self.terms = terms;
        self
    }

    /// Whether agents need a certificate.
    pub(super) const fn wants_certificates(&self) -> bool {
        self.is_strict
    }

    /// Checks holders of sessions again after `pause`.
    #[cfg(test)]
    pub(super) fn looking_again_after(mut self, pause: Duration) -> Self {
        self.look_again = pause;
        self
    }

    /// The authenticator.
    pub(super) fn auth(&self) -> Arc<dyn Authenticate> {
        Arc::clone(&self.auth)
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type SessionStream = BoxStream<'static, Result<OperatorMessage, Status>>;
    type GetBlobStream = BoxStream<'static, Result<BlobChunk, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller(&request)?;
        let (out, stream) = mpsc::channel(OUT);
        let (service, inbound) = (self.clone(), request.into_inner());
        // The answer's stream starts at once: a client may wait for it before it says hello.
        tokio::spawn(async move {
            if let Err(status) = service.hold_session(caller, inbound, &out).await {
                // The other end may be gone, or not reading.
                let _ = tokio::time::timeout(STUCK, out.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn get_blob(
        &self,
        request: Request<GetBlobRequest>,
    ) -> Result<Response<Self::GetBlobStream>, Status> {
        caller(&request)?;
        let wanted = request.into_inner();
        let digest = parse_digest(&wanted.digest)?;
        let size = self.store.size(&digest).await.map_err(from_store)?;
        let size = size.ok_or_else(|| from_store(StoreError::NotFound(digest.clone())))?;
        if wanted.offset > size {
            return Err(from_store(StoreError::Range {
                digest,
                offset: wanted.offset,
                length: wanted.length,
                size,
            }));
        }
        let end = match wanted.length {
            0 => size,
            length => wanted.offset.saturating_add(length).min(size),
        };
        let store = self.store.clone();
        let chunks = read_chunks(store, digest, wanted.offset, end, size);
        Ok(Response::new(chunks.boxed()))
    }

    async fn put_blob(
        &self,
        request: Request<Streaming<PutBlobChunk>>,
    ) -> Result<Response<PutBlobReply>, Status> {
        let caller = caller(&request)?;
        let mut chunks = request.into_inner();
        let first = chunks.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("no chunk; send the digest"))?;
        let digest = parse_digest(&first.digest)?;
        let existed = self.store.renew(&digest).await.map_err(from_store)?;
        if !existed {
            let node = caller.node().unwrap_or_default();
            let wanted = self.world.was_asked_for(&digest, node);
            let putting = self.quotas.begin(node, wanted, Instant::now());
            let putting = putting.map_err(from_quota)?;
            self.receive(&digest, first, &mut chunks, putting).await?;
            tracing::debug!(blob = digest.short(), node, "stored");
        }
        Ok(Response::new(PutBlobReply { existed }))
    }

    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollReply>, Status> {
        let caller = caller(&request)?;
        let Some(identity) = &self.identity else {
            return Err(Status::unimplemented("TLS is not in use here"));
        };
        if !identity.is_ready() {
            return Err(from_enroll(&EnrollError::NotYet));
        }
        // A certificate outlives the token: a check from some minutes ago is too old.
        let again = self.auth.again(&caller).await;
        again.map_err(|error| to_status(&error))?;
        if let Some(host) = caller.host() {
            return self.enroll_host(identity, host, &caller, request).await;
        }
        let Some(node) = caller.node() else {
            return Err(Status::permission_denied("nobody said whose token it is"));
        };
        let addresses = if self.checks_source || identity.names_addresses() {
            let addresses = self.auth.addresses(&caller).await;
            addresses.map_err(|error| to_status(&error))?
        } else {
            None
        };
        if self.checks_source {
            check_source(&request, addresses.as_ref())?;
        }
        give(identity, node.into(), &request.get_ref().csr, addresses)
    }
}

/// A certificate for `host`, which clients reach at `addresses`.
fn give(
    identity: &identity::Identity,
    host: Named<'_>,
    csr: &[u8],
    addresses: Option<Addresses>,
) -> Result<Response<EnrollReply>, Status> {
    let now = Timestamp::now().as_second();
    let reached = addresses.map(|known| [known.pod, known.host].concat());
    let issued = identity.enroll(host, csr, &reached.unwrap_or_default(), now);
    let certificate = issued.map_err(|error| from_enroll(&error))?;
    tracing::info!(node = host.node, "a certificate was issued");
    Ok(Response::new(EnrollReply { certificate }))
}

/// A stolen token used elsewhere comes from another address.
fn check_source<T>(request: &Request<T>, known: Option<&Addresses>) -> Result<(), Status> {
    let Some(known) = known else {
        return Ok(());
    };
    let origin = request.extensions().get::<Origin>();
    let from = origin.and_then(|origin| origin.address);
    if from.is_some_and(|ip| known.pod.contains(&ip.to_canonical())) {
        return Ok(());
    }
    let from = from.map_or_else(|| "nowhere".to_owned(), |ip| ip.to_canonical().to_string());
    Err(Status::permission_denied(format!(
        "the token comes from {from}, which is no address of its pod; where addresses are translated on the way, set the chart's value `tls.checkSource` to false"
    )))
}

fn from_enroll(error: &EnrollError) -> Status {
    let text = with_causes(error);
    match error {
        EnrollError::NotYet => Status::unavailable(text),
        EnrollError::Authority(
            AuthorityError::Node(_) | AuthorityError::Request(_) | AuthorityError::RequestKey,
        ) => Status::invalid_argument(text),
        EnrollError::Authority(_) => Status::internal(text),
    }
}

impl ControlService {
    /// A certificate for a host that is not a Node: once for its token, and any number of times for
    /// its certificate.
    async fn enroll_host(
        &self,
        identity: &identity::Identity,
        host: &Host,
        caller: &Caller,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollReply>, Status> {
        let csr = &request.get_ref().csr;
        let key = request_key(csr).map_err(|error| from_enroll(&error.into()))?;
        if host.is_new {
            let Some(hosts) = &self.hosts else {
                return Err(Status::unimplemented("no hosts join here"));
            };
            let key = Digest::of(&key);
            let used = hosts.use_token(&host.name, &host.token, key.as_str()).await;
            used.map_err(|refusal| to_status(&refusal.into()))?;
        }
        let addresses = self.auth.addresses(caller).await;
        let addresses = addresses.map_err(|error| to_status(&error))?;
        let named = Named {
            node: &host.name,
            join: Some(join_id(&host.token)),
        };
        give(identity, named, csr, addresses)
    }

    /// Forwards messages until the agent, a newer session of it or `shutdown` ends the session.
    async fn hold_session(
        &self,
        caller: Caller,
        mut inbound: Streaming<AgentMessage>,
        out: &Sender<Result<OperatorMessage, Status>>,
    ) -> Result<(), Status> {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let identity = check_hello(hello, caller.node())?;
        let addresses = self.auth.addresses(&caller).await;
        let addresses = addresses.map_err(|error| to_status(&error))?;
        let known = addresses.as_ref().map(|known| &known.pod[..]);
        check_address(&identity, known)?;
        if self.world.is_superseded(&identity) {
            return Err(superseded());
        }
        tracing::info!(
            node = identity.node,
            address = identity.address,
            "session opened"
        );
        let mut host = self.host_session(&caller, &identity);
        let (session, mut inbox) = self.world.open_session(identity);
        let mut look = std::pin::pin!(self.look_again(&caller, self.look_again));
        let mut next = None;
        let ended = loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => hear(&session, host.as_ref(), message)?,
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status),
                },
                message = inbox.recv(), if next.is_none() => match message {
                    Some(message) => next = Some(message),
                    None => break Err(over()),
                },
                // Messages of an agent that reads nothing are still handled.
                room = out.reserve(), if next.is_some() => match room {
                    Ok(room) => if let Some(message) = next.take() { room.send(Ok(message)) },
                    Err(_) => break Ok(()),
                },
                () = changed(&mut host), if next.is_none() => {
                    // A removed host gets no more messages.
                    if let Err(error) = self.auth.again(&caller).await {
                        break Err(to_status(&error));
                    }
                    next = host.as_mut().and_then(HostSession::news);
                }
                () = out.closed() => break Ok(()),
                looked = &mut look => match looked {
                    Ok(()) => look.set(self.look_again(&caller, self.look_again)),
                    // An admitted caller stays admitted while this cannot be checked.
                    Err(AuthError::Unavailable(_)) => {
                        look.set(self.look_again(&caller, ASK_AGAIN.min(self.look_again)));
                    }
                    Err(error) => break Err(to_status(&error)),
                },
                () = self.shutdown.cancelled() => {
                    break Err(Status::unavailable("the operator is shutting down; come back"));
                }
            }
        };
        let cause = ended.as_ref().err().map_or("", Status::message);
        tracing::info!(node = session.node(), cause, "session closed");
        ended
    }

    /// Additional messages, if the caller is not a Node.
    fn host_session(&self, caller: &Caller, identity: &Identity) -> Option<HostSession> {
        let (hosts, host) = (self.hosts.clone()?, caller.host()?);
        let known_as = self.identity.clone();
        Some(HostSession::new(
            hosts,
            known_as,
            &host.name,
            &identity.address,
        ))
    }

    /// Whether the caller would still be admitted after `pause`.
    async fn look_again(&self, caller: &Caller, pause: Duration) -> Result<(), AuthError> {
        // Callers that came together are not checked together.
        let pause = pause.mul_f64(rand::random_range(0.8..1.2));
        tokio::time::sleep(pause).await;
        self.auth.again(caller).await
    }

    async fn receive(
        &self,
        digest: &Digest,
        first: PutBlobChunk,
        chunks: &mut Streaming<PutBlobChunk>,
        mut putting: Putting,
    ) -> Result<(), Status> {
        let writer = self.store.writer(digest.clone()).await;
        let mut writer = writer.map_err(from_store)?;
        match write_all(&mut writer, first, chunks, &mut putting).await {
            Ok(()) => writer.finish().await.map_err(from_store),
            Err(status) => {
                writer.abort().await;
                Err(status)
            }
        }
    }
}

async fn write_all(
    writer: &mut BlobWriter,
    first: PutBlobChunk,
    chunks: &mut Streaming<PutBlobChunk>,
    putting: &mut Putting,
) -> Result<(), Status> {
    let mut next = Some(first);
    while let Some(chunk) = next {
        let counted = putting.take(chunk.data.len(), Instant::now());
        counted.map_err(from_quota)?;
        writer.write(chunk.data).await.map_err(from_store)?;
        next = chunks.message().await?;
    }
    Ok(())
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn from_quota(error: OverQuota) -> Status {
    Status::resource_exhausted(error.to_string())
}

/// The sender of `request`, as authenticated before it was read.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("nobody said who calls"))
}

fn check_hello(message: Option<AgentMessage>, allowed: Option<&str>) -> Result<Identity, Status> {
    let Some(FromAgent::Hello(hello)) = message.and_then(|m| m.message) else {
        return Err(Status::invalid_argument(
            "the first message of a session must be Hello",
        ));
    };
    if hello.node.is_empty() {
        return Err(Status::invalid_argument("Hello names no node"));
    }
    let longest = [&hello.node, &hello.version, &hello.address];
    if longest.into_iter().any(|text| text.len() > LONGEST_NAME) {
        return Err(Status::invalid_argument("Hello names something too long"));
    }
    match allowed {
        Some(node) if node != hello.node => Err(wrong_node(&hello, node)),
        _ => Ok(hello.into()),
    }
}

/// Other agents connect to the address that an agent reports: it must be one of its pod.
fn check_address(identity: &Identity, known: Option<&[IpAddr]>) -> Result<(), Status> {
    let Some(known) = known else {
        return Ok(());
    };
    let told: Result<SocketAddr, _> = identity.address.parse();
    let Ok(told) = told else {
        return Err(Status::invalid_argument(format!(
            "Hello says the address `{}`; send ADDRESS:PORT",
            identity.address
        )));
    };
    if known.contains(&told.ip()) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    Err(Status::permission_denied(format!(
        "Hello says the address {}, the pod has {}",
        told.ip(),
        known.join(" and ")
    )))
}

fn wrong_node(hello: &Hello, node: &str) -> Status {
    Status::permission_denied(format!(
        "the token belongs to node `{node}`, Hello says `{}`",
        hello.node
    ))
}

/// Returns when there may be messages for a host; never for an agent of a Node.
async fn changed(host: &mut Option<HostSession>) {
    match host {
        Some(host) => host.changed().await,
        None => std::future::pending().await,
    }
}

fn hear(
    session: &SessionHandle,
    host: Option<&HostSession>,
    message: AgentMessage,
) -> Result<(), Status> {
    if let Some(FromAgent::Report(report)) = &message.message {
        // Agents of Nodes write theirs themselves.
        if let Some(host) = host.filter(|_| session.is_current()) {
            host.report(&report.status_json);
        }
    }
    // Unknown messages of a newer version are ignored.
    let is_current = message.message.is_none_or(|known| session.heard(known));
    if is_current { Ok(()) } else { Err(over()) }
}

fn superseded() -> Status {
    Status::aborted("a younger agent of this node has the session")
}

fn over() -> Status {
    Status::aborted("a newer session of this node took over, or this one took no messages")
}

fn read_chunks(
    store: BlobStore,
    digest: Digest,
    offset: u64,
    end: u64,
    total_bytes: u64,
) -> impl Stream<Item = Result<BlobChunk, Status>> {
    // An empty range still gets one chunk, which has the blob's size.
    let starts = (offset..end.max(offset + 1)).step_by(usize::try_from(CHUNK_BYTES).unwrap_or(1));
    futures::stream::iter(starts.map(Ok)).and_then(move |start| {
        let (store, digest) = (store.clone(), digest.clone());
        async move {
            let length = CHUNK_BYTES.min(end.saturating_sub(start));
            let data = store.get_range(&digest, start, length).await;
            let data = data.map_err(from_store)?;
            Ok(BlobChunk { data, total_bytes })
        }
    })
}

fn parse_digest(text: &str) -> Result<Digest, Status> {
    text.parse()
        .map_err(|error: lamina_model::DigestError| Status::invalid_argument(error.to_string()))
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn from_store(error: StoreError) -> Status {
    let text = with_causes(&error);
    match error {
        StoreError::NotFound(_) => Status::not_found(text),
        StoreError::HashMismatch { .. } => Status::data_loss(text),
        StoreError::Range { .. } => Status::out_of_range(text),
        StoreError::Full(_) => Status::resource_exhausted(text),
        StoreError::Folder(_)
        | StoreError::Authorities(_)
        | StoreError::Bucket(_)
        | StoreError::Storage(_) => Status::internal(text),
    }
}
