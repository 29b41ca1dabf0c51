//! Authenticates clients and authorizes their use of models, for gRPC and HTTP alike, before a
//! body is read if the headers suffice.
//!
//! An agent that is not a model's entry forwards the credentials, and the entry decides again:
//! a mere claim that another agent has checked them counts for nothing. A request counts as
//! forwarded if the sender shows a host's certificate; if hosts need none, by its address.

mod caller;
mod denial;
mod keys;
mod rates;
mod remembered;
mod reviews;
mod shown;
mod tokens;
mod visible;

pub(crate) use caller::{AuthMode, Caller};
pub(crate) use denial::Denial;
pub(crate) use keys::Keys;
pub(crate) use reviews::{ApiReviews, NoReviews};
pub(crate) use tokens::Reviews;

use crate::door::client_of;
use crate::telemetry::Telemetry;
use caller::{Admission, Grant, admission};
use http::HeaderMap;
use lamina_identity::Peer;
use lamina_model::Digest;
use rates::{Rate, Rates};
use shown::Shown;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokens::Tokens;

/// Marks a forwarded request, so that two agents that disagree about the entry do not send it back
/// and forth.
pub(crate) const FORWARDED: &str = "lamina-forwarded";
/// Most keys and addresses whose requests are counted.
const MOST_KEYS: usize = 4096;
const MOST_ADDRESSES: usize = 4096;

/// How clients are admitted.
#[derive(Clone)]
pub(crate) struct AccessOptions {
    /// How they authenticate.
    pub(crate) mode: AuthMode,
    /// Namespace of models called by a short name, if the credentials have none.
    pub(crate) default_namespace: Arc<str>,
    /// Audience of tokens.
    pub(crate) audience: String,
    /// Requests per second of one address, if its key has no limit of its own; `None` for no limit.
    pub(crate) requests_per_second: Option<u32>,
}

/// Whether another agent is known at this address.
pub(crate) type IsAgent = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// Admits clients. Clones share the state.
#[derive(Clone)]
pub(crate) struct Access(Arc<Inner>);

struct Inner {
    options: AccessOptions,
    keys: Keys,
    tokens: Tokens,
    is_agent: IsAgent,
    telemetry: Telemetry,
    of_keys: Mutex<Rates<Digest>>,
    of_addresses: Mutex<Rates<IpAddr>>,
}

impl Access {
    /// Admits by `options` clients with one of `keys`, or whose token `reviews` accepts.
    pub(crate) fn new(
        options: AccessOptions,
        keys: Keys,
        reviews: Arc<dyn Reviews>,
        is_agent: IsAgent,
        telemetry: Telemetry,
    ) -> Self {
        Self(Arc::new(Inner {
            options,
            keys,
            tokens: Tokens::new(reviews),
            is_agent,
            telemetry,
            of_keys: Mutex::new(Rates::new(MOST_KEYS)),
            of_addresses: Mutex::new(Rates::new(MOST_ADDRESSES)),
        }))
    }

    /// The client that sent `headers` from `from`; `peer` is the agent named in the certificate, if
    /// one was shown.
    ///
    /// # Errors
    /// It is refused.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        peer: Option<&Peer>,
    ) -> Result<Caller, Denial> {
        let admitted = self.admitted(headers, from, peer).await;
        admitted.inspect_err(|denial| self.0.telemetry.denied(denial.label()))
    }

    /// Whether `caller` may use the model `namespace/name`.
    ///
    /// # Errors
    /// It may not, or that cannot be determined.
    pub(crate) async fn allow(&self, caller: &Caller, full_name: &str) -> Result<(), Denial> {
        let allowed = self.allowed(caller, full_name).await;
        allowed.inspect_err(|denial| self.0.telemetry.denied(denial.label()))
    }

    /// As [`Access::allow`], as far as that is known locally.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn allow_unasked(&self, caller: &Caller, full_name: &str) -> Result<(), Denial> {
        let allowed = caller.may_ask_for(full_name);
        allowed.inspect_err(|denial| self.0.telemetry.denied(denial.label()))
    }

    async fn admitted(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        peer: Option<&Peer>,
    ) -> Result<Caller, Denial> {
        let options = &self.0.options;
        let shown = Shown::of(headers);
        let admission = admission(options.mode, &options.audience, shown, &self.0.keys.now())?;
        let (grant, shown) = match admission {
            Admission::Anyone(shown) => (Grant::Everything, shown),
            Admission::Key(scope, shown) => (Grant::Key(scope), Some(shown)),
            Admission::Ask(token) => {
                let who = self.0.tokens.holder(&token, from).await?;
                let who = who.ok_or_else(|| Denial::BadToken {
                    audience: options.audience.clone(),
                })?;
                (Grant::Token(who), Some(token))
            }
        };
        let caller = Caller::new(&options.default_namespace, grant, shown, from);
        // The forwarding agent has counted it.
        let is_agent = || peer.is_some() || (self.0.is_agent)(from);
        if !(headers.contains_key(FORWARDED) && is_agent()) {
            self.pace(&caller, Instant::now())?;
        }
        Ok(caller)
    }

    /// Counts a request.
    fn pace(&self, caller: &Caller, now: Instant) -> Result<(), Denial> {
        let own = match &caller.grant {
            Grant::Key(scope) => scope.requests_per_second,
            _ => None,
        };
        let taken = if let (Some(limit), Some(key)) = (own, caller.shown()) {
            take(&self.0.of_keys, key.digest(), limit, now)
        } else if let Some(limit) = self.0.options.requests_per_second {
            take(&self.0.of_addresses, &client_of(caller.from), limit, now)
        } else {
            Ok(())
        };
        taken.map_err(Denial::TooFast)
    }

    async fn allowed(&self, caller: &Caller, full_name: &str) -> Result<(), Denial> {
        caller.may_ask_for(full_name)?;
        let (Grant::Token(who), Some(token)) = (&caller.grant, caller.shown()) else {
            return Ok(());
        };
        let tokens = &self.0.tokens;
        if tokens.may_get(full_name, who, token, caller.from).await? {
            Ok(())
        } else {
            Err(Denial::forbidden(full_name))
        }
    }
}

fn take<K: Ord + Clone>(
    rates: &Mutex<Rates<K>>,
    key: &K,
    limit: u32,
    now: Instant,
) -> Result<(), Duration> {
    let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
    rates.take(key, Rate::per_second(limit), now)
}

#[cfg(test)]
pub(crate) mod testing;
