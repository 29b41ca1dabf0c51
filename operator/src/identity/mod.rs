//! The operator as a certificate authority: which authorities exist and when they are replaced
//! ([`rotate`]), what is signed ([`Identity`]), and where it is kept ([`keep`]).

mod keep;
mod rotate;

pub use keep::{IdentityError, Keeper, Options, Source, Told};

use lamina_identity::authority::{Authority, AuthorityError, validity};
use lamina_identity::{Acceptor, Named, Plain, Reached, Validity, Workload};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Bounds of how long the certificates of agents are good.
pub const LIFETIMES: (Duration, Duration) = (
    Duration::from_secs(60),
    Duration::from_secs(366 * 24 * 3600),
);

/// No certificate is issued.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum EnrollError {
    #[error("the operator's certificate authority is not ready yet; try again")]
    NotYet,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Signs for agents, and has the operator's own certificate. Clones share it.
#[derive(Debug, Clone)]
pub struct Identity {
    agents: Workload,
    lifetime: Duration,
    acceptor: Acceptor,
    issuer: Arc<RwLock<Option<Arc<Authority>>>>,
    /// Names by which clients reach every agent; `None` if certificates are only for hosts.
    front: Option<Arc<Reached>>,
    /// The authorities for agents to trust, in PEM.
    bundle: Arc<RwLock<String>>,
}

impl Identity {
    /// Without an authority so far. Certificates name `agents` and are valid for `lifetime`,
    /// clipped to [`LIFETIMES`]; `plain` decides about connections without TLS.
    pub fn new(agents: Workload, lifetime: Duration, plain: Plain) -> Self {
        Self {
            agents,
            lifetime: lifetime.clamp(LIFETIMES.0, LIFETIMES.1),
            acceptor: Acceptor::new(plain),
            issuer: Arc::default(),
            front: None,
            bundle: Arc::default(),
        }
    }

    /// Adds the names by which clients reach an agent to its certificate: its addresses, its node,
    /// and those in `all`.
    #[must_use]
    pub fn for_clients(mut self, all: Reached) -> Self {
        self.front = Some(Arc::new(all));
        self
    }

    /// Whether certificates name the addresses of agents.
    pub const fn names_addresses(&self) -> bool {
        self.front.is_some()
    }

    /// Accepts connections of agents.
    pub const fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Whether there is an authority to sign with.
    pub(crate) fn is_ready(&self) -> bool {
        self.issuer().is_some()
    }

    /// The authorities for agents to trust, in PEM; empty until known.
    pub(crate) fn bundle(&self) -> String {
        let held = self.bundle.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    /// Makes hosts that cannot reach the API server trust `bundle` from now on.
    pub(crate) fn set_bundle(&self, bundle: &str) {
        let mut held = self.bundle.write().unwrap_or_else(PoisonError::into_inner);
        bundle.clone_into(&mut held);
    }

    /// A certificate in PEM, valid from `now` (seconds since 1970), for the agent of `host`,
    /// which requests it with `csr` and is at `addresses`. Blocks for one signature, less than a
    /// millisecond.
    ///
    /// # Errors
    /// See [`EnrollError`].
    pub fn enroll(
        &self,
        host: Named<'_>,
        csr: &[u8],
        addresses: &[IpAddr],
        now: i64,
    ) -> Result<String, EnrollError> {
        let issuer = self.issuer().ok_or(EnrollError::NotYet)?;
        let validity = self.validity(now, issuer.validity());
        let reached = self.front.as_ref().map(|all| {
            let own = Reached {
                names: vec![host.node.to_owned()],
                addresses: addresses.to_vec(),
            };
            own.and(all)
        });
        let named = reached.clone().unwrap_or_default();
        let own = issuer.issue_front(&self.agents, host, csr, validity, &named)?;
        if reached.is_none() {
            return Ok(own);
        }
        // Clients may trust the issuer of a given authority.
        Ok(format!("{own}{}", issuer.certificate()))
    }

    /// Signs with `authority` from now on.
    pub(crate) fn set(&self, authority: Arc<Authority>) {
        *self.issuer.write().unwrap_or_else(PoisonError::into_inner) = Some(authority);
    }

    fn issuer(&self) -> Option<Arc<Authority>> {
        let held = self.issuer.read().unwrap_or_else(PoisonError::into_inner);
        held.clone()
    }

    fn validity(&self, now: i64, authority: Validity) -> Validity {
        validity(now, self.lifetime, authority)
    }
}

#[cfg(test)]
mod tests;
