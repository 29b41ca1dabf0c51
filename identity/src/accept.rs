//! Accepts connections with and without TLS on the same port: the first byte distinguishes them.
//! With TLS, the requested server name distinguishes other hosts from clients.

use crate::name::is_agent;
use crate::{Stream, read};
use rustls::ServerConfig;
use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// First byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 0x16;
/// A handshake takes two messages; a slower peer has an unusable link.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time to send the refusal to a client without TLS.
const FAREWELL: Duration = Duration::from_secs(1);
/// This much of such a client's data is read, or it would see a reset instead of the answer.
const HEARD_BYTES: usize = 4096;
/// The answer for HTTP/1.1 clients, which gRPC clients report as the reason of their failure.
const NEEDS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: application/json\r\n\
    content-length: 67\r\n\
    connection: close\r\n\r\n\
    {\"error\":\"this port speaks TLS alone: use https, or gRPC with TLS\"}";

/// The host whose agent is at the other end, by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub node: Arc<str>,
    /// Its join, if it is not a Node; see [`join_id`](crate::join_id).
    pub join: Option<Arc<str>>,
}

impl From<&str> for Peer {
    /// The agent of the Node `node`.
    fn from(node: &str) -> Self {
        Self {
            node: node.into(),
            join: None,
        }
    }
}

/// How connections without TLS are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// They are accepted, unauthenticated.
    Taken,
    /// They are closed.
    Refused,
    /// HTTP clients are told to use TLS; all are closed.
    Told,
}

/// Accepts connections. Clones share the certificates, which may be replaced at any time: open
/// connections stay open.
#[derive(Debug, Clone)]
pub struct Acceptor {
    shown: Arc<RwLock<Shown>>,
    plain: Plain,
}

/// The certificates for each kind of peer.
#[derive(Debug, Clone, Default)]
struct Shown {
    /// For hosts, which must show theirs.
    hosts: Option<Arc<ServerConfig>>,
    /// For everybody else; the same if absent.
    clients: Option<Arc<ServerConfig>>,
}

impl Shown {
    /// The one for a peer that asks for `name`. Hosts ask for each other by reserved names.
    fn to(self, name: Option<&str>) -> Option<Arc<ServerConfig>> {
        if name.is_some_and(is_agent) {
            self.hosts.or(self.clients)
        } else {
            self.clients.or(self.hosts)
        }
    }
}

/// An accepted connection.
pub struct Accepted {
    /// Its data.
    pub stream: Stream,
    /// The other end; `None` if it showed no certificate.
    pub peer: Option<Peer>,
}

/// A connection was not accepted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum AcceptError {
    #[error("the connection broke before any data arrived")]
    Silent(#[source] io::Error),
    #[error("it does not use TLS, which is required here")]
    Plain,
    #[error("there is no certificate yet")]
    NoCertificate,
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    #[error("TLS took longer than {} s", PATIENCE.as_secs())]
    Slow,
    #[error("its certificate names no agent")]
    Nobody,
}

impl Acceptor {
    /// Without a certificate so far.
    pub fn new(plain: Plain) -> Self {
        Self {
            shown: Arc::default(),
            plain,
        }
    }

    /// The same certificates, with `plain` for connections without TLS.
    #[must_use]
    pub fn with_plain(&self, plain: Plain) -> Self {
        Self {
            shown: Arc::clone(&self.shown),
            plain,
        }
    }

    /// Uses `config` from the next connection on: for everybody, unless there is another one for
    /// clients.
    pub fn set(&self, config: Arc<ServerConfig>) {
        self.lock().hosts = Some(config);
    }

    /// Uses `config` for peers that ask for no host's name, from the next connection on.
    pub fn set_for_clients(&self, config: Arc<ServerConfig>) {
        self.lock().clients = Some(config);
    }

    /// Whether there is a certificate.
    pub fn is_set(&self) -> bool {
        self.now().to(None).is_some()
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Shown> {
        self.shown.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Shown {
        let held = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// Accepts `stream` once its other end has sent something.
    ///
    /// # Errors
    /// See [`AcceptError`].
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, AcceptError> {
        let mut first = [0];
        let peeked = stream.peek(&mut first).await;
        let is_tls = peeked.map_err(AcceptError::Silent)? == 1 && first[0] == HANDSHAKE;
        if !is_tls {
            return match self.plain {
                Plain::Taken => Ok(Accepted {
                    stream: Box::new(stream),
                    peer: None,
                }),
                Plain::Told if first[0].is_ascii_uppercase() => {
                    // Whether it arrives makes no difference.
                    let _ = timeout(FAREWELL, turn_away(stream)).await;
                    Err(AcceptError::Plain)
                }
                Plain::Refused | Plain::Told => Err(AcceptError::Plain),
            };
        }
        let shaken = timeout(PATIENCE, self.shake_hands(stream)).await;
        let stream = shaken.map_err(|_| AcceptError::Slow)??;
        let shown = stream.get_ref().1.peer_certificates();
        let peer = match shown.and_then(<[_]>::first) {
            None => None,
            Some(certificate) => {
                let facts = read(certificate).map_err(|_| AcceptError::Nobody)?;
                Some(Peer {
                    node: facts.node.ok_or(AcceptError::Nobody)?.into(),
                    join: facts.join.map(Into::into),
                })
            }
        };
        Ok(Accepted {
            stream: Box::new(stream),
            peer,
        })
    }

    async fn shake_hands(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, AcceptError> {
        let shown = self.now();
        if shown.hosts.is_none() && shown.clients.is_none() {
            return Err(AcceptError::NoCertificate);
        }
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await;
        let begun = begun.map_err(AcceptError::Tls)?;
        let config = shown.to(begun.client_hello().server_name());
        let config = config.ok_or(AcceptError::NoCertificate)?;
        begun.into_stream(config).await.map_err(AcceptError::Tls)
    }
}

async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let mut heard = [0; HEARD_BYTES];
    let _ = stream.read(&mut heard).await?;
    stream.write_all(NEEDS_TLS).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_who_speaks_no_tls_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NEEDS_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = format!("content-length: {}\r\n", body.len());
        assert!(head.contains(&length), "{length}");
    }
}
