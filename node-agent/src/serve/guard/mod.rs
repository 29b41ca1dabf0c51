//! Checks before any request is decoded: its size, its memory, and whether it fits.
//!
//! tonic reserves the announced size of a message, decompresses without a limit, and decodes
//! the result. So messages are received here, whole, with limits that are enforced as they
//! arrive, and handed on uncompressed.

mod budget;
mod feed;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod inflate;
mod receive;
mod rope;
mod shapes;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod weigh;

pub(crate) use budget::{Budget, Charge, Full, Owner};
pub(crate) use stream::Turns;

use crate::door::{Endless, Origin, Pulse};
use crate::serve::access::{Access, Caller, Denial, FORWARDED};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use inflate::Packing;
use lamina_identity::Peer;
use lamina_proto::MAX_MESSAGE_BYTES;
use receive::{Refusal, Terms, receive};
use shapes::Shape;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tower::Service;

/// Size limit of a request, over gRPC and HTTP, unless a model needs more.
pub(crate) const MESSAGE_BYTES: usize = 64 << 20;
/// Limit for messages without tensors.
const SMALL_BYTES: usize = 64 << 10;
/// Methods whose messages may be compressed: those of users.
const UNPACKED: &str = "/inference.GRPCInferenceService/";
/// For requests that did not come through the door.
pub(crate) const NOWHERE: Origin = Origin {
    connection: u64::MAX,
    address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
};
/// Size of a request besides its tensors.
const OVERHEAD_BYTES: u64 = 1 << 20;
/// The budget for requests is this fraction of the memory, within these limits.
const ROOM_PART: u64 = 4;
const LEAST_ROOM_BYTES: u64 = 128 << 20;
const MOST_ROOM_BYTES: u64 = 2 << 30;

/// The budget for the requests of a host with `memory_bytes`.
pub(crate) fn room(memory_bytes: u64) -> Budget {
    let bytes = memory_bytes / ROOM_PART;
    Budget::new(bytes.clamp(LEAST_ROOM_BYTES, MOST_ROOM_BYTES))
}

/// The models here, as far as the guard needs to know them.
pub(crate) trait Models: Send + Sync {
    /// Whether the model `namespace/name` exists.
    fn knows(&self, full_name: &str) -> bool;
    /// Whether this host runs a part of the Placement.
    fn runs(&self, placement_uid: &str) -> bool;
    /// Bytes of tensors in the largest request for a model here, if known.
    fn largest_request(&self) -> u64;
    /// As [`Models::largest_request`], for requests of other agents.
    fn largest_hop(&self) -> u64;
}

/// How large the tensors of an answer are: in the extensions of its request, for whoever
/// gives it to say.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnswerBytes(Arc<AtomicU64>);

impl AnswerBytes {
    /// They have `bytes`.
    pub(crate) fn are(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Answers with `routes` what is fit for them.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) routes: Routes,
    pub(crate) gate: Gate,
}

/// Decides which requests are acceptable.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) budget: Budget,
    pub(crate) models: Arc<dyn Models>,
    pub(crate) access: Access,
    /// Whether other agents need a certificate.
    pub(crate) is_strict: bool,
    /// Once it fires, streams accept no more requests.
    pub(crate) closing: CancellationToken,
}

/// The methods, by their messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Infer,
    /// Inference requests, one after the other.
    Stream,
    Forward,
    Ping,
    /// The one with an unlimited answer.
    Watch,
    Other,
}

impl Method {
    fn of(path: &str) -> Self {
        match path {
            "/inference.GRPCInferenceService/ModelInfer" => Self::Infer,
            "/inference.GRPCInferenceService/ModelStreamInfer" => Self::Stream,
            "/lamina.hop.v1.Hop/Forward" => Self::Forward,
            "/lamina.hop.v1.Hop/Ping" => Self::Ping,
            "/grpc.health.v1.Health/Watch" => Self::Watch,
            _ => Self::Other,
        }
    }

    /// Whether agents alone call it.
    const fn is_agents(self) -> bool {
        matches!(self, Self::Forward | Self::Ping)
    }

    const fn shape(self) -> &'static Shape {
        match self {
            Self::Infer | Self::Stream => &shapes::INFER,
            Self::Forward => &shapes::FORWARD,
            Self::Ping | Self::Watch | Self::Other => &shapes::FLAT,
        }
    }
}

impl Guard {
    async fn answer(mut self, request: Request<Incoming>) -> Response<Answer> {
        if Method::of(request.uri().path()) == Method::Stream {
            return self.stream(request).await;
        }
        let (mut parts, body) = request.into_parts();
        let origin = parts.extensions.get().copied().unwrap_or(NOWHERE);
        self.gate.distrust(&mut parts);
        let (message, mut charge, caller) = match self.gate.let_in(&parts, origin, body).await {
            Ok(taken) => taken,
            Err(refusal) => return refused(refusal, parts.uri.path()),
        };
        if let Some(caller) = caller {
            parts.extensions.insert(caller);
        }
        let uri = parts.uri.clone();
        let method = Method::of(uri.path());
        let told = AnswerBytes::default();
        let has_tensors = matches!(method, Method::Infer | Method::Forward);
        if has_tensors {
            parts.extensions.insert(told.clone());
        }
        let request = Request::from_parts(parts, Whole(message.into()));
        let mut response = match self.routes.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if has_tensors {
            let bytes = told.0.load(Ordering::Relaxed);
            if let Err(full) = charge.answered(bytes).await {
                return refused(full.into(), uri.path());
            }
        }
        if method == Method::Watch {
            response.extensions_mut().insert(Endless);
        }
        response.map(|body| Answer {
            body,
            _charge: Some(charge),
            pulse: None,
        })
    }
}

/// The answer to a client whose call of `path` is refused.
fn refused(refusal: Refusal, path: &str) -> Response<Answer> {
    tracing::debug!(%refusal, path, "refused");
    let refused = Status::from(refusal).into_http();
    refused.map(|body| Answer {
        body,
        _charge: None,
        pulse: None,
    })
}

/// A message uses an unsupported compression.
struct UnknownPacking;

/// The compression of a call's messages, if they are compressed.
fn packing_of(headers: &HeaderMap) -> Result<Option<Packing>, UnknownPacking> {
    let encoding = headers.get("grpc-encoding").map(HeaderValue::as_bytes);
    match encoding.filter(|encoding| *encoding != b"identity") {
        None => Ok(None),
        Some(encoding) => Packing::of(encoding).map(Some).ok_or(UnknownPacking),
    }
}

/// Whether clients must authenticate for a call: health and server metadata are open, and other
/// agents are authenticated by other means.
fn is_about_a_model(path: &str) -> bool {
    let method = path.strip_prefix(UNPACKED);
    method.is_some_and(|m| !matches!(m, "ServerLive" | "ServerReady" | "ServerMetadata"))
}

impl Gate {
    /// If agents have certificates, only these mark a request as forwarded.
    fn distrust(&self, parts: &mut Parts) {
        if self.is_strict && parts.extensions.get::<Peer>().is_none() {
            parts.headers.remove(FORWARDED);
        }
    }

    /// The message, after authenticating its caller.
    async fn let_in(
        &self,
        parts: &Parts,
        origin: Origin,
        body: Incoming,
    ) -> Result<(Vec<Bytes>, Charge, Option<Caller>), Refusal> {
        let path = parts.uri.path();
        let peer = parts.extensions.get::<Peer>();
        // Else whoever is nobody takes of the room of all requests.
        if self.is_strict && peer.is_none() && Method::of(path).is_agents() {
            return Err(Refusal::NoCertificate);
        }
        let caller = if is_about_a_model(path) {
            let admitted = self.access.admit(&parts.headers, origin.address, peer);
            Some(admitted.await?)
        } else {
            None
        };
        let taken = self.take(path, &parts.headers, origin, caller.as_ref(), body);
        let (message, charge) = taken.await?;
        Ok((message, charge, caller))
    }

    async fn take<B>(
        &self,
        path: &str,
        headers: &HeaderMap,
        origin: Origin,
        caller: Option<&Caller>,
        body: B,
    ) -> Result<(Vec<Bytes>, Charge), Refusal>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display + Send,
    {
        let method = Method::of(path);
        let mut charge = self.budget.begin(origin).await?;
        let unpacks = path.starts_with(UNPACKED);
        let packing = match packing_of(headers) {
            Ok(packing) if packing.is_none() || unpacks => packing,
            // Let the service report what it accepts.
            _ => return Ok((Vec::new(), charge)),
        };
        let terms = Terms {
            shape: method.shape(),
            limit: self.limit(method),
            packing,
            owner: &|name| self.owner(method, caller, name),
        };
        let message = receive(body, &terms, &mut charge).await?;
        Ok((message, charge))
    }

    fn limit(&self, method: Method) -> usize {
        let said = match method {
            Method::Infer | Method::Stream => self.models.largest_request(),
            // An encoded value is held as received and as FP32.
            Method::Forward => self.models.largest_hop().saturating_mul(3) / 2,
            Method::Ping => 0,
            Method::Watch | Method::Other => return SMALL_BYTES,
        };
        let said = said
            .saturating_add(OVERHEAD_BYTES)
            .min(self.budget.largest());
        let said = usize::try_from(said).unwrap_or(usize::MAX);
        said.clamp(MESSAGE_BYTES, MAX_MESSAGE_BYTES)
    }

    /// The owner of a message that names `name`.
    fn owner(
        &self,
        method: Method,
        caller: Option<&Caller>,
        name: Option<String>,
    ) -> Result<Owner, Denial> {
        let known = match method {
            Method::Infer | Method::Stream => match caller.zip(name) {
                Some((caller, name)) => {
                    let full_name = caller.full_name(&name);
                    self.access.allow_unasked(caller, &full_name)?;
                    Some(full_name).filter(|full_name| self.models.knows(full_name))
                }
                None => None,
            },
            Method::Forward => name.filter(|uid| self.models.runs(uid)),
            Method::Watch => return Ok(Owner::Watch),
            Method::Ping | Method::Other => return Ok(Owner::Other),
        };
        Ok(known.map_or(Owner::Unknown, Owner::Model))
    }
}

impl Service<Request<Incoming>> for Guard {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send + 'static>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let guard = self.clone();
        Box::pin(async move { Ok(guard.answer(request).await) })
    }
}

/// A complete message.
struct Whole(VecDeque<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// An answer; its request is charged until it ends.
pub(crate) struct Answer {
    body: tonic::body::Body,
    _charge: Option<Charge>,
    /// Of a stream: each answer that its client reads shows that it is alive.
    pulse: Option<Pulse>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        if let (Poll::Ready(_), Some(pulse)) = (&next, &self.pulse) {
            pulse.beat();
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
