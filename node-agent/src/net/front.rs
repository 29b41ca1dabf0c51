//! TLS for clients: the certificate that they see, and the handling of those without TLS.

use super::trust::Trust;
use clap::{Args, ValueEnum};
use lamina_identity::{Acceptor, Credentials, Plain, Speech, TlsError, front_config};
use std::path::PathBuf;
use tokio::sync::watch;

/// Whether clients speak TLS, and whose certificate they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FrontMode {
    /// No TLS.
    None,
    /// This host's certificate from the operator, with the names by which clients reach it.
    Auto,
    /// Your certificate, from a folder.
    Given,
}

/// TLS for clients.
#[derive(Debug, Clone, Args)]
pub struct FrontArgs {
    /// TLS for clients, over gRPC and HTTP, and the certificate that they see.
    #[arg(long, value_enum, default_value_t = FrontMode::None)]
    pub front_tls: FrontMode,
    /// Folder with your certificate, as tls.crt and tls.key. It may be replaced at any
    /// time.
    #[arg(long, default_value = "/var/run/lamina/front")]
    pub front_tls_dir: PathBuf,
    /// Also accept requests without TLS, for migration.
    #[arg(long)]
    pub front_tls_optional: bool,
    /// Additional names and addresses that the certificate from the operator must have,
    /// separated by commas; a new one is requested if it lacks one.
    #[arg(long, value_delimiter = ',')]
    pub front_names: Vec<String>,
}

/// The certificate for clients. Clones share it. The default is no TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct FrontTls {
    ports: Option<Ports>,
}

#[derive(Debug, Clone)]
struct Ports {
    grpc: Acceptor,
    http: Acceptor,
    is_set: watch::Sender<bool>,
}

impl FrontTls {
    /// On the port shared with hosts that `trust` authenticates, and on the one for HTTP; without a
    /// certificate so far.
    pub(crate) fn new(mode: FrontMode, is_optional: bool, trust: &Trust) -> Self {
        if mode == FrontMode::None {
            return Self::default();
        }
        let plain = |is_taken| if is_taken { Plain::Taken } else { Plain::Told };
        // Other agents may use this port without TLS if they need none.
        let of_grpc = plain(is_optional || !trust.is_required());
        let shared = trust.acceptor();
        let grpc = shared.map_or_else(|| Acceptor::new(of_grpc), |a| a.with_plain(of_grpc));
        Self {
            ports: Some(Ports {
                grpc,
                http: Acceptor::new(plain(is_optional)),
                is_set: watch::Sender::default(),
            }),
        }
    }

    /// Uses `own` for clients from the next connection on.
    ///
    /// # Errors
    /// It cannot be used; the previous one stays.
    pub(crate) fn set(&self, own: &Credentials) -> Result<(), TlsError> {
        let Some(ports) = &self.ports else {
            return Ok(());
        };
        let (over_grpc, over_http) = (
            front_config(own, Speech::Http2)?,
            front_config(own, Speech::Http1)?,
        );
        ports.grpc.set_for_clients(over_grpc);
        ports.http.set_for_clients(over_http);
        ports.is_set.send_replace(true);
        Ok(())
    }

    /// Accepts connections for gRPC; those of hosts by `trust`.
    pub(crate) fn grpc(&self, trust: &Trust) -> Option<Acceptor> {
        let ports = self.ports.as_ref();
        ports
            .map(|ports| ports.grpc.clone())
            .or_else(|| trust.acceptor())
    }

    /// Accepts connections for HTTP, if clients use TLS.
    pub(crate) fn http(&self) -> Option<Acceptor> {
        self.ports.as_ref().map(|ports| ports.http.clone())
    }

    /// Waits until there is a certificate, if clients need one.
    pub(crate) async fn ready(&self) {
        let Some(ports) = &self.ports else { return };
        let mut is_set = ports.is_set.subscribe();
        // The sender lives as long as `self`.
        let _ = is_set.wait_for(|is_set| *is_set).await;
    }
}
