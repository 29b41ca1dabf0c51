//! The side of the operator that agents call: sessions and blobs over gRPC.

mod auth;
mod service;
#[cfg(test)]
mod tests;

pub use auth::{AuthError, Authenticate, Caller, Insecure, TokenReviews};
pub use service::ControlService;

use lamina_proto::control::control_server::ControlServer;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// Blobs come in over links with a long round trip.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection whose other end is gone is dropped. Slow: a host at a tenth of
/// a core must keep its own; sessions notice silence by themselves.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves agents on `listener` until `shutdown`.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    service: ControlService,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let connections = TcpListenerStream::new(listener);
    // Accepted sockets are not the server's own, so its option misses them.
    let connections = tokio_stream::StreamExt::map(connections, |accepted| {
        accepted.inspect(|socket| {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "no TCP_NODELAY on an agent's connection");
            }
        })
    });
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(
            ControlServer::new(service).max_decoding_message_size(lamina_proto::MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
}
