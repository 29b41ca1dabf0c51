//! Who may call: agents of Nodes by the tokens of their pods, and hosts that are not Nodes by the
//! one-time token of their join, and by their certificate from then on.

use super::auth::{Addresses, AuthError, Authenticate, Call, Caller, TokenReviews, Who};
use crate::hosts::Hosts;
use async_trait::async_trait;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use lamina_model::Digest;
use std::net::IpAddr;

/// The scheme by which a machine shows its join token: `Join HOST.TOKEN`.
const SCHEME: &str = "Join";
/// Longest token considered; those of `kubectl lamina join` have 64 characters.
const LONGEST_TOKEN: usize = 128;

/// A host that is not a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Its name.
    pub(super) name: String,
    /// SHA-256 of its join token.
    pub(super) token: String,
    /// It shows that token, and may only request a certificate.
    pub(super) is_new: bool,
    /// Where it calls from.
    pub(super) from: Option<IpAddr>,
}

/// Admits agents of Nodes, and hosts that are not Nodes.
pub(crate) struct Callers {
    agents: TokenReviews,
    hosts: Hosts,
    /// Whether a host's address is the one from which it calls.
    checks_source: bool,
}

impl Callers {
    pub(crate) const fn new(agents: TokenReviews, hosts: Hosts, checks_source: bool) -> Self {
        Self {
            agents,
            hosts,
            checks_source,
        }
    }

    /// The calling host, if the caller is not the agent of a Node.
    fn host(&self, call: &Call<'_>) -> Result<Option<Host>, AuthError> {
        if let Some((name, token)) = shown(call.headers).filter(|_| call.enrolls) {
            self.hosts.by_token(&name, &token)?;
            return Ok(Some(Host {
                name,
                token,
                is_new: true,
                from: call.from,
            }));
        }
        let Some((peer, join)) = call.peer.and_then(|p| Some((p, p.join.as_ref()?))) else {
            return Ok(None);
        };
        Ok(Some(Host {
            name: peer.node.to_string(),
            token: self.hosts.by_certificate(&peer.node, join)?,
            is_new: false,
            from: call.from,
        }))
    }
}

#[async_trait]
impl Authenticate for Callers {
    async fn authenticate(&self, call: &Call<'_>) -> Result<Caller, AuthError> {
        match self.host(call)? {
            Some(host) => Ok(Caller(Who::Host(host))),
            None => self.agents.authenticate(call).await,
        }
    }

    async fn again(&self, caller: &Caller) -> Result<(), AuthError> {
        let Who::Host(host) = &caller.0 else {
            return self.agents.again(caller).await;
        };
        if host.is_new {
            return Ok(self.hosts.by_token(&host.name, &host.token)?);
        }
        let join = lamina_identity::join_id(&host.token);
        self.hosts.by_certificate(&host.name, join)?;
        Ok(())
    }

    async fn addresses(&self, caller: &Caller) -> Result<Option<Addresses>, AuthError> {
        let Who::Host(host) = &caller.0 else {
            return self.agents.addresses(caller).await;
        };
        let said = self.hosts.address(&host.name);
        let seen = host.from.filter(|_| self.checks_source);
        let address = said.or(seen).map(|ip| ip.to_canonical());
        Ok(address.map(|address| Addresses {
            pod: vec![address],
            host: Vec::new(),
        }))
    }
}

/// The host whose token is in `headers`, and the token's SHA-256.
fn shown(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, shown) = value.split_once(' ')?;
    // Names contain dots, tokens do not.
    let (name, token) = shown.trim().rsplit_once('.')?;
    let is_it = scheme.eq_ignore_ascii_case(SCHEME)
        && lamina_identity::is_node_name(name)
        && (1..=LONGEST_TOKEN).contains(&token.len());
    is_it.then(|| {
        (
            name.to_owned(),
            Digest::of(token.as_bytes()).as_str().to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_join_names_its_host_and_is_known_by_its_hash() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            shown(&headers)
        };
        let hash = Digest::of(b"abc").as_str().to_owned();
        assert_eq!(
            of("Join cam-9.site.abc"),
            Some(("cam-9.site".to_owned(), hash.clone()))
        );
        assert_eq!(of("join cam-9.abc"), Some(("cam-9".to_owned(), hash)));
        let long = format!("Join cam-9.{}", "a".repeat(LONGEST_TOKEN + 1));
        for none in [
            "Bearer a.b.c",
            "Join abc",
            "Join .abc",
            "Join cam-9.",
            "Join Cam_9.abc",
            &long,
        ] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(shown(&HeaderMap::new()), None);
    }
}
