//! The gRPC server for agents: sessions and blobs.

mod admit;
mod auth;
mod bearer;
mod callers;
mod connections;
mod host_session;
mod known;
mod quota;
mod service;
mod standing;
#[cfg(test)]
mod tests;

pub use auth::{Addresses, AuthError, Authenticate, Call, Caller, Insecure, Refusal, TokenReviews};
pub(crate) use callers::Callers;
pub use service::ControlService;

use admit::{Admit, Methods};
use connections::connections;
use standing::Lobby;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// Concurrent calls on one connection.
const STREAMS: u32 = 64;
/// A connection whose other end is gone is dropped. Slow: a host at a tenth of a core must keep its
/// own; sessions detect silence themselves.
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
    let lobby = Lobby::new(service.terms());
    let connections = connections(listener, service.acceptor(), lobby, shutdown.clone());
    Server::builder()
        // Windows grow with what is read: unauthenticated callers get small ones, and blobs still
        // arrive quickly over links with a long round trip.
        .http2_adaptive_window(Some(true))
        .max_concurrent_streams(Some(STREAMS))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(Admit {
            auth: service.auth(),
            is_strict: service.wants_certificates(),
        })
        .add_service(Methods::of(service))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
}
