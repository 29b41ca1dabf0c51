//! Connections of probes: few and brief. New ones are always accepted, and beyond the limit the
//! oldest is closed, so that nobody who opens connections can lock out the kubelet or exhaust the
//! operator's descriptors.

use axum::serve::Listener;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Most concurrent connections: the kubelet's probes and a few scrapers.
const MOST: usize = 32;
/// Longest life of a connection; a scraper opens another one.
const LONGEST: Duration = Duration::from_secs(30);
/// Pause after a failed accept, most likely because no descriptor is left.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections.
pub(super) struct Few {
    listener: TcpListener,
    /// Tokens that close the connections, the oldest first.
    held: VecDeque<CancellationToken>,
}

impl Few {
    pub(super) const fn of(listener: TcpListener) -> Self {
        Self {
            listener,
            held: VecDeque::new(),
        }
    }

    fn hold(&mut self, stream: TcpStream) -> Brief {
        self.held.retain(|end| !end.is_cancelled());
        if self.held.len() >= MOST
            && let Some(oldest) = self.held.pop_front()
        {
            oldest.cancel();
        }
        let end = CancellationToken::new();
        self.held.push_back(end.clone());
        Brief {
            stream,
            until: Box::pin(sleep(LONGEST)),
            ends: Box::pin(end.clone().cancelled_owned()),
            end,
        }
    }
}

impl Listener for Few {
    type Io = Brief;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Brief, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => return (self.hold(stream), address),
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken; trying again");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection.
pub(super) struct Brief {
    stream: TcpStream,
    until: Pin<Box<Sleep>>,
    ends: Pin<Box<WaitForCancellationFutureOwned>>,
    end: CancellationToken,
}

impl Brief {
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.ends.as_mut().poll(context).is_ready() || self.until.as_mut().poll(context).is_ready()
    }
}

impl Drop for Brief {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl AsyncRead for Brief {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Brief {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    /// The first bytes of the answer to a probe; empty if the connection ends before.
    async fn probe(to: SocketAddr) -> String {
        let mut socket = TcpStream::connect(to).await.unwrap();
        let asked = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        socket.write_all(asked).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await;
        let _ = read.expect("an answer, or an end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn idle_connections_keep_no_probe_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let router = Router::new().route("/livez", get(async || "alive"));
        let serving = axum::serve(Few::of(listener), router);
        tokio::spawn(async move { serving.await.unwrap() });
        let mut idle = Vec::new();
        for _ in 0..10 {
            for _ in 0..MOST {
                let mut socket = TcpStream::connect(to).await.unwrap();
                // An endless head.
                socket.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
                idle.push(socket);
            }
            let answer = probe(to).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.ends_with("alive"), "{answer}");
        }
        // All but the last ones are closed.
        let is_open = |socket: &TcpStream| {
            let read = socket.try_read(&mut [0; 16]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        let closing = async {
            while idle.iter().filter(|socket| is_open(socket)).count() > MOST {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let closed = timeout(Duration::from_secs(10), closing).await;
        closed.expect("the oldest ones are closed");
    }
}
