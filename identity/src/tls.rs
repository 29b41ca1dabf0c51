//! TLS settings of both ends of a connection: TLS 1.3, only our names, and no session resumption.

use crate::certificate::{CertificateError, certificates};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// HTTP/2 in TLS.
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// The protocol inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// HTTP/1.1, for web clients.
    Http1,
    /// HTTP/2, for gRPC.
    Http2,
}

/// Unusable TLS settings.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum TlsError {
    #[error("the certificate cannot be used")]
    Certificate(#[from] CertificateError),
    #[error("the private key cannot be read: {0}")]
    Key(String),
    #[error("the authorities cannot be used")]
    Roots(#[from] VerifierBuilderError),
    #[error("certificate and key cannot be used together")]
    Rustls(#[from] rustls::Error),
}

/// A certificate with its private key, which is never logged.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// From PEM: the certificate first, then those between it and the authority.
    ///
    /// # Errors
    /// One of them is invalid.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(key);
        Ok(Self {
            chain: certificates(chain)?,
            key: key.map_err(|error| TlsError::Key(error.to_string()))?,
        })
    }

    /// The certificate itself.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone())?;
    }
    Ok(Arc::new(roots))
}

/// For a server: it shows `own`, and requests a certificate of `authorities`, which may be
/// missing.
///
/// # Errors
/// Certificates or key cannot be used.
pub fn server_config(
    own: &Credentials,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = vec![H2.to_vec()];
    // A resumed session shows no certificate: an expired one would stay in use.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a server for clients, which do not know our authorities: it shows `own` and requests
/// no certificate. TLS 1.2 is accepted too, for old clients.
///
/// # Errors
/// Certificate or key cannot be used, or do not match.
pub fn front_config(own: &Credentials, speech: Speech) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    let spoken = match speech {
        Speech::Http1 => HTTP1,
        Speech::Http2 => H2,
    };
    config.alpn_protocols = vec![spoken.to_vec()];
    Ok(Arc::new(config))
}

/// For a client: it trusts `authorities`, and shows `own` if given.
///
/// # Errors
/// Certificates or key cannot be used.
pub fn client_config(
    own: Option<&Credentials>,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<ClientConfig>, TlsError> {
    let servers = WebPkiServerVerifier::builder_with_provider(roots(authorities)?, provider());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(servers.build()?);
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
