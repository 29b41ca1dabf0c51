//! Opening connections.

use crate::Stream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Error};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A TLS connection cannot be established.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ConnectError {
    #[error("a certificate cannot name `{0}`: it is too long, or no DNS name")]
    Name(String),
    #[error("`{name}` has no trusted certificate: {reason}")]
    Certificate { name: String, reason: String },
    #[error("the peer does not use TLS: {0}")]
    NoTls(String),
    #[error("the connection broke during the TLS handshake: {0}")]
    Broken(String),
}

/// TLS on `stream`, whose other end must show a certificate that names `name`.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    config: Arc<ClientConfig>,
    name: &str,
    stream: TcpStream,
) -> Result<Stream, ConnectError> {
    let wanted = ServerName::try_from(name.to_owned());
    let wanted = wanted.map_err(|_| ConnectError::Name(name.to_owned()))?;
    match TlsConnector::from(config).connect(wanted, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(told(name, &error)),
    }
}

fn told(name: &str, error: &io::Error) -> ConnectError {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => {
            ConnectError::Certificate {
                name: name.to_owned(),
                reason: error.to_string(),
            }
        }
        // The received bytes are not TLS.
        Some(Error::InvalidMessage(_)) => ConnectError::NoTls(error.to_string()),
        Some(_) => ConnectError::Broken(error.to_string()),
        // An HTTP/2 server hangs up on the first bytes of TLS.
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            ConnectError::NoTls(error.to_string())
        }
        None if error.kind() == io::ErrorKind::ConnectionReset => {
            ConnectError::NoTls(error.to_string())
        }
        None => ConnectError::Broken(error.to_string()),
    }
}
