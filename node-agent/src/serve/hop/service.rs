use super::admit::{self, Caller};
use super::{Forwarder, bytes_of};
use crate::serve::deadline::Deadline;
use crate::serve::guard::AnswerBytes;
use crate::serve::trace;
use lamina_identity::Peer;
use lamina_proto::hop::hop_server::Hop;
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply, PingRequest};
use std::time::Instant;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// The service for other agents.
#[derive(Clone)]
pub(crate) struct HopService {
    pub(crate) forwarder: Forwarder,
    /// Whether callers without a certificate are refused.
    pub(crate) is_strict: bool,
}

impl HopService {
    fn caller<'a, T>(&self, request: &'a Request<T>) -> Caller<'a> {
        match request.extensions().get::<Peer>() {
            Some(peer) => Caller::Agent(&peer.node),
            None if self.is_strict => Caller::Nobody,
            None => Caller::Unchecked,
        }
    }
}

#[tonic::async_trait]
impl Hop for HopService {
    async fn forward(
        &self,
        request: Request<ForwardRequest>,
    ) -> Result<Response<ForwardReply>, Status> {
        let arrived = Instant::now();
        let forwarder = &self.forwarder;
        let callers = forwarder.callers(request.get_ref());
        admit::may_forward(self.caller(&request), callers.as_deref())?;
        let _inside = forwarder.telemetry.hop_began();
        let deadline = Deadline::of(request.metadata());
        let told = request.extensions().get::<AnswerBytes>().cloned();
        let request = request.into_inner();
        let (id, uid) = (&request.request_id, &request.placement_uid);
        let span = trace::span(id, &request.traceparent, uid);
        let running = async {
            let (revision, segment) = (request.revision, request.segment);
            let reply = forwarder.run(request, arrived, deadline).await;
            let error = reply.as_ref().err().map(tracing::field::display);
            tracing::debug!(revision, segment, error, "a hop ended");
            reply
        };
        let reply = running.instrument(span).await?;
        if let Some(told) = told {
            told.are(bytes_of(&reply.tensors));
        }
        Ok(Response::new(reply))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let arrived = Instant::now();
        admit::may_ping(self.caller(&request))?;
        drop(request);
        let inside = arrived.elapsed().as_micros();
        Ok(Response::new(PingReply {
            server_us: u64::try_from(inside).unwrap_or(u64::MAX),
        }))
    }
}
