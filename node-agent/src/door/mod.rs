//! Incoming connections: how many there may be, and how long one may be idle.
//!
//! A connection costs a descriptor and some memory before its peer is authenticated. So their
//! number is limited, which leaves descriptors for files, workers and outgoing calls. Idle
//! connections are closed; at the limit, an idle one makes room for a new one. No single
//! address can use up the limit.

mod seats;

pub(crate) use seats::Pulse;

use crate::causes::with_causes;
use crate::net::{Backoff, CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use lamina_identity::{AcceptError, Accepted, Acceptor, Peer};
use rustix::process::{Resource, getrlimit};
use seats::{Busy, Seat, Seats};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// A connection whose other end is gone is dropped. Slow: a client at a tenth of a core
/// must keep its own.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit for the head of an HTTP/1 request; hyper counts from the end of the previous request,
/// so pooled connections live no longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// All headers of a request together.
const HEADER_BYTES: u32 = 16 << 10;
/// Time for a connection to close gracefully.
const GOODBYE: Duration = Duration::from_secs(2);
/// Pauses after failed accepts: most likely no descriptor is left.
const AFTER_ERRORS: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
/// Interval between log lines about refused connections.
const TOLD_EVERY: Duration = Duration::from_secs(30);

/// Limits on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorLimits {
    /// Concurrent connections.
    pub connections: usize,
    /// Concurrent requests on one connection.
    pub streams: u32,
    /// A connection without a request is closed after this.
    pub idle: Duration,
    /// A connection with a request that takes longer is closed, since its client reads no answer;
    /// see [`Endless`] and [`Pulse`].
    pub longest: Duration,
}

impl DoorLimits {
    /// For clients and other agents: 1024 connections, but no more than a quarter of the files that
    /// this process may open.
    pub fn for_requests() -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            connections: usize::try_from(files / 4).unwrap_or(1024).clamp(1, 1024),
            streams: 512,
            idle: Duration::from_secs(300),
            // Twice the longest deadline.
            longest: Duration::from_secs(600),
        }
    }

    /// For probes and Prometheus.
    pub const fn for_probes() -> Self {
        Self {
            connections: 32,
            streams: 16,
            idle: Duration::from_secs(60),
            longest: Duration::from_secs(60),
        }
    }
}

/// The protocol of a door's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// HTTP/1.1, as probes do.
    Http1,
    /// HTTP/2 without TLS, as gRPC does.
    Http2,
}

/// The origin of a request, in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// A unique number of the connection.
    pub connection: u64,
    /// The address at its other end.
    pub address: IpAddr,
}

impl Origin {
    /// Its client, by address.
    pub(crate) fn client(self) -> IpAddr {
        client_of(self.address)
    }
}

/// An address that stands for all of a client's: an IPv6 client has its whole network.
pub(crate) fn client_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// In the extensions of an answer that lasts as long as its client likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endless;

/// A listener with limits.
#[derive(Debug, Clone)]
pub struct Door {
    /// The protocol.
    pub speech: Speech,
    /// The limits.
    pub limits: DoorLimits,
    /// Accepts TLS connections too, if set. Requests on connections with a client certificate have
    /// a [`Peer`] in their extensions.
    pub acceptor: Option<Acceptor>,
}

impl Door {
    /// Has `service` answer on `listener` until `shutdown`; then it accepts no more connections,
    /// and finishes requests in progress.
    pub async fn serve<S, B>(self, listener: TcpListener, service: S, shutdown: CancellationToken)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let builder = self.builder();
        let seats = Seats::new(self.limits.connections);
        let tasks = TaskTracker::new();
        let mut quiet = Quiet::default();
        while let Some((stream, peer)) = accepted(&listener, &shutdown, &mut quiet).await {
            // An IPv4 connection to a dual-stack socket counts as IPv4.
            let address = peer.ip().to_canonical();
            let Some(seat) = seats.take(address, Instant::now()) else {
                quiet.say(|| tracing::warn!(%peer, "too many connections; one is turned away"));
                continue;
            };
            // Send small messages at once. If that cannot be set, they are sent later.
            let _ = stream.set_nodelay(true);
            let (builder, service) = (builder.clone(), service.clone());
            let (limits, shutdown) = (self.limits, shutdown.clone());
            let acceptor = self.acceptor.clone();
            tasks.spawn(async move {
                let opening = open(stream, acceptor);
                let Some(accepted) = opened(opening, &seat, limits, &shutdown).await else {
                    return;
                };
                attend(accepted, seat, &builder, service, limits, shutdown).await;
            });
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let builder = auto::Builder::new(TokioExecutor::new());
        match self.speech {
            Speech::Http1 => {
                let mut builder = builder.http1_only();
                builder
                    .http1()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT);
                builder
            }
            Speech::Http2 => {
                let mut builder = builder.http2_only();
                builder
                    .http2()
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW_BYTES)
                    .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                    .max_concurrent_streams(self.limits.streams)
                    .max_header_list_size(HEADER_BYTES)
                    .keep_alive_interval(KEEPALIVE)
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT);
                builder
            }
        }
    }
}

/// The next connection; `None` at the shutdown. Pauses after errors, instead of looping.
async fn accepted(
    listener: &TcpListener,
    shutdown: &CancellationToken,
    quiet: &mut Quiet,
) -> Option<(TcpStream, SocketAddr)> {
    let mut pauses = AFTER_ERRORS;
    let next = async {
        loop {
            match listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    quiet
                        .say(|| tracing::warn!(%error, "no connection can be taken; trying again"));
                    sleep(pauses.next_wait()).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = next => Some(accepted),
    }
}

async fn open(stream: TcpStream, acceptor: Option<Acceptor>) -> Result<Accepted, AcceptError> {
    match acceptor {
        Some(acceptor) => acceptor.accept(stream).await,
        None => Ok(Accepted {
            stream: Box::new(stream),
            peer: None,
        }),
    }
}

/// The connection once it is open; `None` if its place is needed before, or it idles.
async fn opened(
    opening: impl Future<Output = Result<Accepted, AcceptError>>,
    seat: &Seat,
    limits: DoorLimits,
    shutdown: &CancellationToken,
) -> Option<Accepted> {
    tokio::select! {
        opened = opening => {
            if let Err(error) = &opened {
                tracing::debug!(error = with_causes(error), "a connection was not taken");
            }
            opened.ok()
        }
        () = seat.closed() => None,
        () = seat.idled(limits.idle) => None,
        () = shutdown.cancelled() => None,
    }
}

async fn attend<S, B>(
    accepted: Accepted,
    seat: Seat,
    builder: &auto::Builder<TokioExecutor>,
    service: S,
    limits: DoorLimits,
    shutdown: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = TowerToHyperService::new(Counted {
        service,
        seat: seat.clone(),
        peer: accepted.peer,
    });
    let stream = TokioIo::new(accepted.stream);
    let mut serving = pin!(builder.serve_connection(stream, service));
    tokio::select! {
        served = serving.as_mut() => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection broke");
            }
            return;
        }
        () = seat.closed() => return,
        () = seat.overdue(limits.longest) => return,
        () = seat.idled(limits.idle) => {
            serving.as_mut().graceful_shutdown();
            // A silent client does not hear the goodbye either.
            let _ = timeout(GOODBYE, serving).await;
            return;
        }
        () = shutdown.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        _ = serving => {}
        () = seat.closed() => {}
    }
}

/// Requests of one connection, counted.
#[derive(Clone)]
struct Counted<S> {
    service: S,
    seat: Seat,
    peer: Option<Peer>,
}

impl<S, B> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Held<B>>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Held<B>>, Infallible>> + Send + 'static>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let busy = self.seat.begin();
        request.extensions_mut().insert(self.seat.origin());
        request.extensions_mut().insert(busy.pulse());
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let answering = self.service.call(request);
        Box::pin(async move {
            let response = answering.await?;
            if response.extensions().get::<Endless>().is_some() {
                busy.may_stay();
            }
            Ok(response.map(|body| Held { body, _busy: busy }))
        })
    }
}

/// The body of an answer; its request counts until it ends.
struct Held<B> {
    body: B,
    _busy: Busy,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Rate-limits log lines.
#[derive(Debug, Default)]
struct Quiet {
    said: Option<Instant>,
}

impl Quiet {
    fn say(&mut self, words: impl FnOnce()) {
        if self.said.is_none_or(|said| said.elapsed() >= TOLD_EVERY) {
            self.said = Some(Instant::now());
            words();
        }
    }
}

#[cfg(test)]
mod tests;
