//! Requests on one stream. Each is admitted, received, weighed and charged as a single one would
//! be; errors are reported in its answer, and the stream continues.

use super::budget::{Charge, Owner};
use super::feed::Feed;
use super::inflate::Packing;
use super::receive::{self, Refusal, Terms, WHOLE};
use super::{Answer, Gate, Guard, Method, NOWHERE, Whole, packing_of, refused};
use crate::door::{Origin, Pulse};
use crate::serve::access::Caller;
use bytes::Bytes;
use futures::stream::{Stream, unfold};
use http::request::Parts;
use http::{HeaderMap, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Body, Frame, Incoming};
use lamina_identity::Peer;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;
use tonic::service::Routes;
use tower::Service as _;

/// A stream without requests for this long is ended, as an idle connection is.
const IDLE: Duration = Duration::from_secs(300);
/// Replaces a refused message.
const NOTHING: Bytes = Bytes::from_static(&[0; 5]);

/// A message of a stream that may be answered. It is charged until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    charge: Charge,
}

impl Admitted {
    /// The message is answered with so many bytes, which its client has not taken yet.
    ///
    /// # Errors
    /// There is no room for them.
    pub(crate) async fn answered(&mut self, bytes: u64) -> Result<(), Status> {
        let room = self.charge.answered(bytes).await;
        room.map_err(|full| Refusal::from(full).into())
    }
}

/// Whether each message of a stream may be answered, in order: in the extensions of the call, since
/// decoded messages have no place for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<VecDeque<Turn>>>);

type Turn = Result<Admitted, Status>;

impl Turns {
    /// For the message decoded last.
    ///
    /// # Errors
    /// Why it was refused; an empty message replaces it.
    pub(crate) fn next(&self) -> Turn {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let nobody = || Err(Status::unauthenticated("nobody said who calls"));
        turns.pop_front().unwrap_or_else(nobody)
    }

    fn push(&self, turn: Turn) {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.push_back(turn);
    }
}

impl Guard {
    /// Answers a stream of requests for as long as its client likes.
    pub(super) async fn stream(mut self, request: Request<Incoming>) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        self.gate.distrust(&mut parts);
        let origin = parts.extensions.get().copied().unwrap_or(NOWHERE);
        let (caller, charge) = match self.gate.open(&parts, origin).await {
            Ok(opened) => opened,
            Err(refusal) => return refused(refusal, parts.uri.path()),
        };
        let pulse = parts.extensions.get::<Pulse>().cloned();
        let turns = Turns::default();
        parts.extensions.insert(turns.clone());
        let Ok(packing) = packing_of(&parts.headers) else {
            // Let the service report what it accepts.
            let nothing = Request::from_parts(parts, Whole(VecDeque::new()));
            return answer(&mut self.routes, nothing, charge, pulse).await;
        };
        let messages = Messages {
            gate: self.gate,
            headers: parts.headers.clone(),
            peer: parts.extensions.get().cloned(),
            origin,
            packing,
            feed: Feed::new(body),
            opener: Some(caller),
            turns,
            pulse: pulse.clone(),
            ready: VecDeque::new(),
            is_over: false,
        };
        let request = Request::from_parts(parts, StreamBody::new(messages.frames()));
        answer(&mut self.routes, request, charge, pulse).await
    }
}

/// The answer of `routes` to `request`, charged and watched until its end.
async fn answer<B>(
    routes: &mut Routes,
    request: Request<B>,
    charge: Charge,
    pulse: Option<Pulse>,
) -> Response<Answer>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let response = match routes.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    response.map(|body| Answer {
        body,
        _charge: Some(charge),
        pulse,
    })
}

impl Gate {
    /// The client that opens a stream, and the memory for the stream itself.
    async fn open(&self, parts: &Parts, origin: Origin) -> Result<(Caller, Charge), Refusal> {
        let peer = parts.extensions.get::<Peer>();
        let admitted = self.access.admit(&parts.headers, origin.address, peer);
        let caller = admitted.await?;
        let mut charge = self.budget.begin(origin).await?;
        charge.belongs_to(Owner::Stream).await?;
        Ok((caller, charge))
    }
}

/// The messages of an open stream.
struct Messages<B> {
    gate: Gate,
    headers: HeaderMap,
    /// The forwarding agent, if there is one.
    peer: Option<Peer>,
    origin: Origin,
    packing: Option<Packing>,
    feed: Feed<B>,
    /// The client that opened the stream, whose first request was counted then.
    opener: Option<Caller>,
    turns: Turns,
    pulse: Option<Pulse>,
    /// Pieces of a complete message.
    ready: VecDeque<Bytes>,
    is_over: bool,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: std::fmt::Display + Send,
{
    /// All of them, as frames of a body.
    fn frames(self) -> impl Stream<Item = Result<Frame<Bytes>, Status>> + Send {
        unfold(self, |mut messages| async move {
            let piece = messages.piece().await.transpose()?;
            Some((piece.map(Frame::data), messages))
        })
    }

    /// The next piece; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Status> {
        if self.ready.is_empty() && !self.is_over {
            match self.message().await {
                Ok(message) => {
                    self.is_over = message.is_empty();
                    self.ready = message.into();
                }
                Err(refusal) => {
                    self.is_over = true;
                    tracing::debug!(%refusal, "a stream of requests ends");
                    return Err(refusal.into());
                }
            }
        }
        Ok(self.ready.pop_front())
    }

    /// The next message with its header; empty at the end. Whether it may be answered is in
    /// the turns.
    ///
    /// # Errors
    /// Errors that end the stream.
    async fn message(&mut self) -> Result<Vec<Bytes>, Refusal> {
        let closing = self.gate.closing.clone();
        let goes_on = tokio::select! {
            biased;
            () = closing.cancelled() => return Err(Refusal::Closing),
            goes_on = self.feed.goes_on(IDLE) => goes_on?,
        };
        if !goes_on {
            return Ok(Vec::new());
        }
        if let Some(pulse) = &self.pulse {
            pulse.beat();
        }
        let received = timeout(WHOLE, self.receive()).await;
        received.map_err(|_| Refusal::Slow)?
    }

    async fn receive(&mut self) -> Result<Vec<Bytes>, Refusal> {
        let refusal = match self.admitted().await {
            Ok((message, admitted)) => {
                self.turns.push(Ok(admitted));
                return Ok(message);
            }
            Err(refusal) if refusal.ends_a_stream() => return Err(refusal),
            Err(refusal) => refusal,
        };
        tracing::debug!(%refusal, "refused on a stream");
        self.feed.pass_over().await?;
        self.turns.push(Err(refusal.into()));
        Ok(vec![NOTHING])
    }

    /// A message and its admission. Only its header is read before its sender is checked again: the
    /// credentials may have become invalid.
    async fn admitted(&mut self) -> Result<(Vec<Bytes>, Admitted), Refusal> {
        let Some(header) = self.feed.header().await? else {
            return Err(Refusal::Cut);
        };
        let access = &self.gate.access;
        let caller = match self.opener.take() {
            Some(opener) => opener,
            None => {
                let peer = self.peer.as_ref();
                let admitted = access.admit(&self.headers, self.origin.address, peer);
                admitted.await?
            }
        };
        let mut charge = self.gate.budget.begin(self.origin).await?;
        let terms = Terms {
            shape: Method::Infer.shape(),
            limit: self.gate.limit(Method::Infer),
            packing: self.packing,
            owner: &|name| self.gate.owner(Method::Infer, Some(&caller), name),
        };
        let message = receive::next(&mut self.feed, header, &terms, &mut charge).await?;
        let admitted = Admitted { caller, charge };
        Ok((message, admitted))
    }
}

#[cfg(test)]
mod tests;
