//! This host's certificate, and the authorities that it trusts.

use lamina_identity::{
    Acceptor, CertificateDer, ClientConfig, Credentials, Plain, TlsError, client_config,
    server_config,
};
use std::sync::Arc;
use tokio::sync::watch;

/// Whether TLS is used with other agents and the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TlsMode {
    /// No TLS.
    Disabled,
    /// TLS with those that support it; others are accepted without, for migration.
    Optional,
    /// TLS with all.
    Required,
}

/// This host's certificate, and the authorities it trusts. Clones share it. The default is no TLS.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    is_optional: bool,
    acceptor: Acceptor,
    held: watch::Sender<Held>,
    trouble: watch::Sender<Option<String>>,
}

/// Settings for opening connections.
#[derive(Debug, Clone, Default)]
struct Held {
    /// Without a certificate, for a host that has none yet.
    unknown: Option<Arc<ClientConfig>>,
    /// With it.
    own: Option<Arc<ClientConfig>>,
}

/// How to open a connection.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// Without TLS.
    Plain,
    /// With TLS; without, if the other end does not support it and `is_optional` is set.
    Tls {
        config: Arc<ClientConfig>,
        is_optional: bool,
    },
    /// There is no certificate yet.
    NotYet,
}

impl Trust {
    /// For `mode`, without a certificate so far.
    pub fn new(mode: TlsMode) -> Self {
        let is_optional = match mode {
            TlsMode::Disabled => return Self::default(),
            TlsMode::Optional => true,
            TlsMode::Required => false,
        };
        Self {
            shared: Some(Arc::new(Shared {
                is_optional,
                // Clients need no TLS; requests of other agents are checked by their certificates.
                acceptor: Acceptor::new(Plain::Taken),
                held: watch::Sender::default(),
                trouble: watch::Sender::default(),
            })),
        }
    }

    /// Whether TLS is used at all.
    pub(crate) const fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether requests of other agents need a certificate.
    pub(crate) fn is_required(&self) -> bool {
        self.shared.as_ref().is_some_and(|s| !s.is_optional)
    }

    /// Accepts connections, if TLS is used.
    pub(crate) fn acceptor(&self) -> Option<Acceptor> {
        self.shared.as_ref().map(|s| s.acceptor.clone())
    }

    /// Trusts `authorities` from the next connection on, and uses `own`, if given. Open
    /// connections stay.
    ///
    /// # Errors
    /// They cannot be used; the previous ones stay.
    pub(crate) fn set(
        &self,
        own: Option<&Credentials>,
        authorities: &[CertificateDer<'static>],
    ) -> Result<(), TlsError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let held = Held {
            unknown: Some(client_config(None, authorities)?),
            own: match own {
                Some(own) => Some(client_config(Some(own), authorities)?),
                None => None,
            },
        };
        if let Some(own) = own {
            shared.acceptor.set(server_config(own, authorities)?);
        }
        shared.held.send_replace(held);
        Ok(())
    }

    /// Sets why there is no certificate, if so; returns whether that is news.
    pub(crate) fn set_trouble(&self, trouble: Option<String>) -> bool {
        let Some(shared) = &self.shared else {
            return false;
        };
        shared.trouble.send_if_modified(|held| {
            let is_new = *held != trouble;
            *held = trouble;
            is_new
        })
    }

    /// The last value of [`Trust::set_trouble`].
    pub(crate) fn trouble(&self) -> Option<String> {
        let shared = self.shared.as_ref()?;
        shared.trouble.borrow().clone()
    }

    /// How to reach an agent, or the operator as an agent with a certificate.
    pub(crate) fn way(&self) -> Way {
        self.choose(|held| held.own.clone())
    }

    /// How to reach the operator to request a certificate.
    pub(crate) fn way_without_certificate(&self) -> Way {
        self.choose(|held| held.unknown.clone())
    }

    fn choose(&self, config: impl Fn(&Held) -> Option<Arc<ClientConfig>>) -> Way {
        let Some(shared) = &self.shared else {
            return Way::Plain;
        };
        let is_optional = shared.is_optional;
        match config(&shared.held.borrow()) {
            Some(config) => Way::Tls {
                config,
                is_optional,
            },
            None if is_optional => Way::Plain,
            None => Way::NotYet,
        }
    }

    /// Waits until connections to others can be opened.
    pub(crate) async fn ready(&self) {
        let Some(shared) = self.shared.as_ref().filter(|s| !s.is_optional) else {
            return;
        };
        let mut held = shared.held.subscribe();
        // The sender lives as long as `self`.
        let _ = held.wait_for(|held| held.own.is_some()).await;
    }
}
