//! Taking connections, with TLS and without on the same port: the first byte tells them apart.

use crate::{Stream, read};
use rustls::ServerConfig;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// First byte of a connection with TLS: a record of a handshake.
const HANDSHAKE: u8 = 0x16;
/// A handshake takes two messages; whoever needs longer has a link that serves nobody.
const PATIENCE: Duration = Duration::from_secs(10);

/// The node whose agent is at the other end, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer(pub Arc<str>);

/// What becomes of connections without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// They are taken; nobody is known on them.
    Taken,
    /// They are closed.
    Refused,
}

/// Takes connections. Clones share their certificate, which may be replaced at any time:
/// connections that are open stay so.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<RwLock<Option<Arc<ServerConfig>>>>,
    plain: Plain,
}

/// A connection that was taken.
pub struct Accepted {
    /// What is said on it.
    pub stream: Stream,
    /// Who is at the other end; nobody where no certificate was shown.
    pub peer: Option<Peer>,
}

/// A connection was not taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum AcceptError {
    #[error("it broke before anything was said")]
    Silent(#[source] io::Error),
    #[error("it speaks no TLS, which is needed here")]
    Plain,
    #[error("there is no certificate to show yet")]
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
            config: Arc::default(),
            plain,
        }
    }

    /// Shows what `config` has from the next connection on.
    pub fn set(&self, config: Arc<ServerConfig>) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
    }

    /// Whether there is a certificate to show.
    pub fn is_set(&self) -> bool {
        self.now().is_some()
    }

    fn now(&self) -> Option<Arc<ServerConfig>> {
        let held = self.config.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// Takes `stream` once its other end has said something.
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
                Plain::Refused => Err(AcceptError::Plain),
            };
        }
        let config = self.now().ok_or(AcceptError::NoCertificate)?;
        let shaking = timeout(PATIENCE, TlsAcceptor::from(config).accept(stream));
        let stream = shaking.await.map_err(|_| AcceptError::Slow)?;
        let stream = stream.map_err(AcceptError::Tls)?;
        let shown = stream.get_ref().1.peer_certificates();
        let peer = match shown.and_then(<[_]>::first) {
            None => None,
            Some(certificate) => {
                let node = read(certificate).ok().and_then(|facts| facts.node);
                Some(Peer(node.ok_or(AcceptError::Nobody)?.into()))
            }
        };
        Ok(Accepted {
            stream: Box::new(stream),
            peer,
        })
    }
}
