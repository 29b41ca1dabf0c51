//! Connections from agents, with TLS if there is an acceptor.

use super::standing::{Lobby, Standing};
use lamina_identity::{Acceptor, Peer, Stream};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

/// Pause after a failed accept, most likely because no descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// The other end of a connection, in the extensions of its requests.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// Its address.
    pub(super) address: Option<IpAddr>,
    /// The name in its certificate.
    pub(super) peer: Option<Peer>,
    /// Whether it has been authenticated.
    pub(super) standing: Standing,
}

/// A connection of an agent.
pub(super) struct Connection {
    stream: Stream,
    origin: Origin,
    /// When an unauthenticated connection is closed.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// Whether it should have been authenticated by now.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        if !self.origin.standing.is_guest() {
            self.patience = None;
        }
        let patience = self.patience.as_mut();
        patience.is_some_and(|patience| patience.as_mut().poll(context).is_ready())
    }
}

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        self.origin.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_late(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The connections accepted by `listener` until `shutdown`.
pub(super) fn connections(
    listener: TcpListener,
    acceptor: Option<Acceptor>,
    lobby: Lobby,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let accepting = accept(&listener, acceptor, &lobby, &sender);
        tokio::select! {
            () = accepting => {}
            () = sender.closed() => {}
            () = shutdown.cancelled() => {}
        }
    });
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: &TcpListener,
    acceptor: Option<Acceptor>,
    lobby: &Lobby,
    sender: &mpsc::Sender<io::Result<Connection>>,
) {
    while let Some(turn) = lobby.turn().await {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken; trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY on an agent's connection");
        }
        let Some(standing) = lobby.guest(address.ip(), turn) else {
            tracing::debug!(%address, "too many connections of nobody known");
            continue;
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        let patience = lobby.terms.patience;
        tokio::spawn(async move {
            let until = Instant::now() + patience;
            let opening = open(stream, address.ip(), acceptor, (standing, until));
            let opened = timeout_at(until, opening).await;
            match opened {
                // If nobody receives it, the server has ended.
                Ok(Some(connection)) => drop(sender.send(Ok(connection)).await),
                Ok(None) => {}
                Err(_) => tracing::debug!(%address, "a connection on which nothing was said"),
            }
        });
    }
}

async fn open(
    stream: TcpStream,
    address: IpAddr,
    acceptor: Option<Acceptor>,
    (standing, until): (Standing, Instant),
) -> Option<Connection> {
    let (stream, peer): (Stream, _) = match acceptor {
        None => (Box::new(stream), None),
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(accepted) => (accepted.stream, accepted.peer),
            Err(error) => {
                let error = crate::text::with_causes(&error);
                tracing::debug!(%address, error, "a connection was not taken");
                return None;
            }
        },
    };
    let address = Some(address);
    let origin = Origin {
        address,
        peer,
        standing,
    };
    Some(Connection {
        stream,
        origin,
        patience: Some(Box::pin(sleep_until(until))),
    })
}
