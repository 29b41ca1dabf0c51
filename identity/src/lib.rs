//! Identities of operator and agents: names in certificates, reading and issuing them, and the
//! TLS that uses them.
//!
//! Both sides trust only the operator's authorities: neither the system's nor names in DNS. A
//! certificate names the node of an agent, or the operator.
//!
//! Clients of an agent see a certificate with the names by which they reach it ([`Reached`]),
//! and need none of their own.

mod accept;
pub mod authority;
mod certificate;
mod connect;
mod name;
mod reached;
mod tls;

pub use accept::{AcceptError, Accepted, Acceptor, Peer, Plain};
pub use certificate::{CertificateError, Facts, Validity, certificates, is_issued_by, read};
pub use connect::{ConnectError, connect};
pub use name::{Named, OPERATOR, Workload, agent, is_node_name, join_id};
pub use reached::{Reached, ReachedError};
pub use rustls::pki_types::CertificateDer;
pub use rustls::{ClientConfig, ServerConfig};
pub use tls::{Credentials, Speech, TlsError, client_config, front_config, server_config};

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection, with TLS or without.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection of either kind.
pub type Stream = Box<dyn Io>;

#[cfg(test)]
mod tests;
