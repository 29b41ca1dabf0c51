use super::Forwarder;
use crate::serve::deadline::Deadline;
use lamina_proto::hop::hop_server::Hop;
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply, PingRequest};
use std::time::Instant;
use tonic::{Request, Response, Status};

/// What other agents call.
#[derive(Clone)]
pub(crate) struct HopService(pub(crate) Forwarder);

#[tonic::async_trait]
impl Hop for HopService {
    async fn forward(
        &self,
        request: Request<ForwardRequest>,
    ) -> Result<Response<ForwardReply>, Status> {
        let arrived = Instant::now();
        let _inside = self.0.telemetry.request_began();
        let deadline = Deadline::of(request.metadata());
        let reply = self.0.run(request.into_inner(), arrived, deadline).await?;
        Ok(Response::new(reply))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let arrived = Instant::now();
        drop(request);
        let inside = arrived.elapsed().as_micros();
        Ok(Response::new(PingReply {
            server_us: u64::try_from(inside).unwrap_or(u64::MAX),
        }))
    }
}
