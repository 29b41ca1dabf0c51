//! Admission before the service: no message is read before its sender is
//! authenticated, and no message may be larger than its method needs.

use super::auth::{AuthError, Authenticate, Call, Caller, Refusal, Who};
use super::connections::Origin;
use super::service::ControlService;
use crate::hosts::HostRefusal;
use crate::text::with_causes;
use futures::future::BoxFuture;
use http::{Request, Response};
use lamina_identity::Peer;
use lamina_proto::control::control_server::ControlServer;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::{Layer, Service};

/// Largest message of a session: a thousand digests, or a second's measurements.
const SESSION_BYTES: usize = 1 << 20;
/// Largest chunk of an uploaded blob. Agents send a quarter of a megabyte.
const CHUNK_BYTES: usize = 4 << 20;
/// The method that needs no certificate, since it issues one.
const ENROLL: &str = "Enroll";
/// Largest request for a blob, or for a certificate.
const REQUEST_BYTES: usize = 4 << 10;

/// Admits only callers that `auth` authenticates by the headers.
#[derive(Clone)]
pub(super) struct Admit {
    pub(super) auth: Arc<dyn Authenticate>,
    /// Whether everything but enrolling needs a certificate.
    pub(super) is_strict: bool,
}

/// A service behind [`Admit`]. Requests that reach it have a [`super::Caller`] among
/// their extensions.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    inner: S,
    auth: Arc<dyn Authenticate>,
    is_strict: bool,
}

impl<S> Layer<S> for Admit {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted {
            inner,
            auth: Arc::clone(&self.auth),
            is_strict: self.is_strict,
        }
    }
}

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Take the one that is ready, and leave another in its place.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (auth, is_strict) = (Arc::clone(&self.auth), self.is_strict);
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let origin = head.extensions.get::<Origin>();
            let from = origin.and_then(|origin| origin.address);
            let shown = origin.and_then(|origin| origin.peer.clone());
            let standing = origin.map(|origin| origin.standing.clone());
            let enrolls = method(head.uri.path()) == Some(ENROLL);
            let is_needed = is_strict && !enrolls;
            let call = Call {
                headers: &head.headers,
                from,
                peer: shown.as_ref(),
                enrolls,
            };
            let known = auth.authenticate(&call).await;
            let known = known.and_then(|caller| {
                certified(&caller, shown.as_ref(), is_needed)?;
                let is_in = standing.is_none_or(|standing| standing.let_in(caller.node()));
                is_in.then_some(caller).ok_or(AuthError::Connections)
            });
            match known {
                Ok(caller) => {
                    head.extensions.insert(caller);
                    inner.call(Request::from_parts(head, body)).await
                }
                Err(error) => Ok(to_status(&error).into_http()),
            }
        })
    }
}

fn method(path: &str) -> Option<&str> {
    path.rsplit('/').next()
}

/// Whether the certificate of a connection is the caller's. A host that is not a Node was
/// authenticated by it already.
fn certified(caller: &Caller, shown: Option<&Peer>, is_needed: bool) -> Result<(), AuthError> {
    let of_agent = match &caller.0 {
        Who::Anyone => None,
        Who::Agent(agent, _) => Some(agent.node.as_str()),
        Who::Host(_) => return Ok(()),
    };
    match (shown, of_agent) {
        (None, _) if is_needed => Err(AuthError::NoCertificate),
        (Some(shown), Some(node)) if *shown.node != *node => Err(AuthError::OtherCertificate {
            node: node.to_owned(),
            shown: shown.node.to_string(),
        }),
        (Some(shown), Some(_)) if shown.join.is_some() => Err(AuthError::JoinedCertificate),
        _ => Ok(()),
    }
}

/// The service, each method with its own limit.
#[derive(Clone)]
pub(super) struct Methods {
    session: ControlServer<ControlService>,
    put_blob: ControlServer<ControlService>,
    others: ControlServer<ControlService>,
}

impl Methods {
    pub(super) fn of(service: ControlService) -> Self {
        let service = Arc::new(service);
        let limited = |bytes| {
            let server = ControlServer::from_arc(Arc::clone(&service));
            server.max_decoding_message_size(bytes)
        };
        Self {
            session: limited(SESSION_BYTES),
            put_blob: limited(CHUNK_BYTES),
            others: limited(REQUEST_BYTES),
        }
    }
}

impl NamedService for Methods {
    const NAME: &'static str = <ControlServer<ControlService> as NamedService>::NAME;
}

impl Service<Request<Body>> for Methods {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = match method(request.uri().path()) {
            Some("Session") => &mut self.session,
            Some("PutBlob") => &mut self.put_blob,
            _ => &mut self.others,
        };
        Service::call(server, request)
    }
}

/// The error as agents receive it.
pub(super) fn to_status(error: &AuthError) -> Status {
    let text = with_causes(error);
    match error {
        AuthError::MissingToken
        | AuthError::Malformed
        | AuthError::Refused(Refusal::Rejected(_) | Refusal::OtherAudience) => {
            Status::unauthenticated(text)
        }
        AuthError::NoCertificate => Status::unauthenticated(text),
        AuthError::Refused(Refusal::OtherUser { .. } | Refusal::NotBound)
        | AuthError::NoPod(_)
        | AuthError::JoinedCertificate
        | AuthError::OtherCertificate { .. } => Status::permission_denied(text),
        AuthError::Host(HostRefusal::NotYet | HostRefusal::Unavailable(_)) => {
            Status::unavailable(text)
        }
        AuthError::Host(_) => Status::permission_denied(text),
        AuthError::TooMany | AuthError::Connections => Status::resource_exhausted(text),
        AuthError::NoAddress(_) | AuthError::Unavailable(_) => Status::unavailable(text),
    }
}
