//! Answers the pings of real agents, which measure their links to a fleet's hosts too.

use lamina_proto::MAX_MESSAGE_BYTES;
use lamina_proto::hop::hop_server::{Hop, HopServer};
use lamina_proto::hop::{ForwardReply, ForwardRequest, PingReply, PingRequest};
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

struct Pings;

#[tonic::async_trait]
impl Hop for Pings {
    async fn forward(&self, _: Request<ForwardRequest>) -> Result<Response<ForwardReply>, Status> {
        Err(Status::failed_precondition("this host holds no slice"))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Ok(Response::new(PingReply { server_us: 0 }))
    }
}

/// Answers pings on `address`, whose port may be 0; returns the bound address, and the task
/// that answers until it is aborted.
///
/// # Errors
/// The address is taken.
pub async fn answer_pings(address: SocketAddr) -> std::io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let service = HopServer::new(Pings).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let serving = tokio::spawn(async move {
        let server = Server::builder().add_service(service);
        if let Err(error) = server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
        {
            tracing::warn!(%error, "pings are not answered any more");
        }
    });
    Ok((address, serving))
}
