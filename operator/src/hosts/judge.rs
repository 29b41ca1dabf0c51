//! Whether a machine that is not a Node may be the host that it claims to be. Pure.

use k8s_openapi::jiff::Timestamp;
use lamina_crds::ComputeNode;
use lamina_identity::join_id;

/// Why it may not.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum HostRefusal {
    #[error("the operator does not know its hosts yet; try again")]
    NotYet,
    #[error(
        "a Node is called `{0}`, and its agent alone may be that host; join under another name"
    )]
    IsNode(String),
    #[error(
        "`{0}` is not to join by this token; make one with `kubectl lamina join`, which replaces the one before"
    )]
    Unknown(String),
    #[error("the token of `{0}` ran out at {1}; make another one with `kubectl lamina join`")]
    Expired(String, Timestamp),
    #[error(
        "another machine has joined as `{0}` by this token, which is good once; if that was not yours, delete the ComputeNode"
    )]
    Used(String),
    #[error("the certificate of `{0}` counts no more: the host was removed, or joined anew")]
    Revoked(String),
    #[error("that the token was used could not be written; try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What is known about a host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its object, if there is one.
    pub(super) object: Option<&'a ComputeNode>,
    /// Whether a Node has that name.
    pub(super) is_node: bool,
}

/// The meaning of a shown token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The first use: it must be recorded before a certificate is issued.
    First,
    /// The machine that used it first asks again.
    Again,
}

impl Known<'_> {
    /// Whether the holder of the token with this SHA-256 `now`, whose public key has the
    /// SHA-256 `key` if that is known yet, may become the host.
    ///
    /// # Errors
    /// See [`HostRefusal`].
    pub(super) fn by_token(
        &self,
        token: &str,
        key: Option<&str>,
        now: Timestamp,
    ) -> Result<Use, HostRefusal> {
        let name = || self.name.to_owned();
        if self.is_node {
            return Err(HostRefusal::IsNode(name()));
        }
        let join = self.object.and_then(|object| object.spec.join.as_ref());
        let join = join.filter(|join| join.token_sha256 == token);
        let join = join.ok_or_else(|| HostRefusal::Unknown(name()))?;
        if join.expires_at.0 < now {
            return Err(HostRefusal::Expired(name(), join.expires_at.0));
        }
        let status = self.object.and_then(|object| object.status.as_ref());
        let joined = status.and_then(|status| status.joined.as_ref());
        match joined.filter(|joined| joined.token_sha256 == token) {
            None => Ok(Use::First),
            Some(joined) if key.is_none_or(|key| joined.key_sha256 == key) => Ok(Use::Again),
            Some(_) => Err(HostRefusal::Used(name())),
        }
    }

    /// Whether the holder of a certificate for this join still is the host. Returns the
    /// SHA-256 of the join's token.
    ///
    /// # Errors
    /// See [`HostRefusal`].
    pub(super) fn by_certificate(&self, join: &str) -> Result<String, HostRefusal> {
        if self.is_node {
            return Err(HostRefusal::IsNode(self.name.to_owned()));
        }
        let joined = self.object.filter(|object| object.is_joined());
        let token = joined.and_then(|object| object.spec.join.as_ref());
        let token = token.map(|of| &of.token_sha256);
        let token = token.filter(|token| join_id(token) == join);
        token
            .cloned()
            .ok_or_else(|| HostRefusal::Revoked(self.name.to_owned()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use lamina_crds::compute_node::{Join, Joined};
    use lamina_crds::{ComputeNodeSpec, ComputeNodeStatus};

    const NAME: &str = "cam-9";

    pub(in crate::hosts) fn token(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A host that may join by `token` until second 100, and joined with the token and key in
    /// `joined`.
    pub(in crate::hosts) fn host(of: &str, joined: Option<(&str, &str)>) -> ComputeNode {
        let mut object = ComputeNode::new(
            NAME,
            ComputeNodeSpec {
                join: Some(Join {
                    token_sha256: of.to_owned(),
                    expires_at: Time(at(100)),
                    address: None,
                }),
                ..ComputeNodeSpec::default()
            },
        );
        object.status = Some(ComputeNodeStatus {
            joined: joined.map(|(token, key)| Joined {
                token_sha256: token.to_owned(),
                key_sha256: key.to_owned(),
                at: Time(at(50)),
            }),
            ..ComputeNodeStatus::default()
        });
        object
    }

    fn known(object: Option<&ComputeNode>) -> Known<'_> {
        Known {
            name: NAME,
            object,
            is_node: false,
        }
    }

    #[test]
    fn a_token_is_good_once_until_it_runs_out() {
        let fresh = host(&token(1), None);
        let known = known(Some(&fresh));
        let first = known.by_token(&token(1), Some("key"), at(99));
        assert!(matches!(first, Ok(Use::First)));
        let late = known.by_token(&token(1), Some("key"), at(101));
        assert!(matches!(late, Err(HostRefusal::Expired(..))), "{late:?}");
        for other in [token(2), String::new()] {
            let refused = known.by_token(&other, None, at(99));
            assert!(matches!(refused, Err(HostRefusal::Unknown(_))), "{other}");
        }
    }

    #[test]
    fn a_token_that_was_used_helps_its_user_alone() {
        let used = host(&token(1), Some((&token(1), "key")));
        let known = known(Some(&used));
        let again = |key| known.by_token(&token(1), key, at(60));
        assert!(matches!(again(Some("key")), Ok(Use::Again)));
        assert!(matches!(again(Some("other")), Err(HostRefusal::Used(_))));
        // The key is checked once the message has been read.
        assert!(again(None).is_ok());
        // A machine that lost the answer may ask again while the token is valid.
        let late = known.by_token(&token(1), Some("key"), at(101));
        assert!(matches!(late, Err(HostRefusal::Expired(..))));
        // A new token may be used, even though the previous one was.
        let renewed = host(&token(2), Some((&token(1), "key")));
        let next = self::known(Some(&renewed)).by_token(&token(2), Some("other"), at(60));
        assert!(matches!(next, Ok(Use::First)));
    }

    #[test]
    fn a_node_of_that_name_keeps_everybody_else_out() {
        let object = host(&token(1), Some((&token(1), "key")));
        let known = Known {
            is_node: true,
            ..known(Some(&object))
        };
        let by_token = known.by_token(&token(1), Some("key"), at(60));
        assert!(matches!(by_token, Err(HostRefusal::IsNode(_))));
        let by_certificate = known.by_certificate(join_id(&token(1)));
        assert!(matches!(by_certificate, Err(HostRefusal::IsNode(_))));
    }

    #[test]
    fn a_certificate_counts_for_the_join_that_it_names_alone() {
        let joined = host(&token(1), Some((&token(1), "key")));
        let counts = |object: Option<&ComputeNode>| {
            let known = self::known(object);
            known.by_certificate(join_id(&token(1))).is_ok()
        };
        assert!(counts(Some(&joined)));
        assert!(!counts(None), "removed");
        assert!(!counts(Some(&host(&token(1), None))), "made anew");
        let replaced = host(&token(2), Some((&token(1), "key")));
        assert!(!counts(Some(&replaced)), "to be joined anew");
        let anew = host(&token(2), Some((&token(2), "key")));
        assert!(!counts(Some(&anew)), "joined anew");
        let of_node = ComputeNode::new(NAME, ComputeNodeSpec::default());
        assert!(!counts(Some(&of_node)), "a Node's that is gone");
    }
}
