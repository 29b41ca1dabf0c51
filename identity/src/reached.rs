//! Names by which clients reach an agent, in its certificate besides the node's.

use crate::name::{OPERATOR, is_agent, is_node_name};
use std::net::IpAddr;

/// Most names or addresses of one certificate.
const MOST: usize = 64;

/// The names and addresses by which clients reach an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// DNS names; the first label may be `*`.
    pub names: Vec<String>,
    /// IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
}

/// A name that a certificate cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ReachedError {
    #[error(
        "`{0}` is neither an address nor a name of DNS; give lower-case labels with dots between"
    )]
    Name(String),
    #[error("`{0}` is a name that agents and operator use for each other; clients need another")]
    Ours(String),
    #[error("more than {MOST} names and addresses are given")]
    TooMany,
}

impl Reached {
    /// Parses names and addresses.
    ///
    /// # Errors
    /// See [`ReachedError`].
    pub fn parse<'a>(given: impl IntoIterator<Item = &'a str>) -> Result<Self, ReachedError> {
        let mut reached = Self::default();
        for text in given {
            if let Ok(address) = text.parse::<IpAddr>() {
                reached.addresses.push(address.to_canonical());
            } else if !is_name(text) {
                return Err(ReachedError::Name(text.to_owned()));
            } else if is_ours(text) {
                return Err(ReachedError::Ours(text.to_owned()));
            } else {
                reached.names.push(text.to_owned());
            }
            if reached.names.len() + reached.addresses.len() > MOST {
                return Err(ReachedError::TooMany);
            }
        }
        Ok(reached)
    }

    /// Merged with `more`.
    #[must_use]
    pub fn and(mut self, more: &Self) -> Self {
        for name in &more.names {
            if !self.names.contains(name) {
                self.names.push(name.clone());
            }
        }
        for address in &more.addresses {
            if !self.addresses.contains(address) {
                self.addresses.push(*address);
            }
        }
        self
    }

    /// The first of `wanted` that is missing here.
    pub fn lacks(&self, wanted: &Self) -> Option<String> {
        let name = wanted.names.iter().find(|name| !self.names.contains(name));
        let address = wanted.addresses.iter();
        let address = address.copied().find(|ip| !self.addresses.contains(ip));
        name.cloned().or_else(|| address.map(|ip| ip.to_string()))
    }
}

/// Whether hosts would accept this name as one of theirs.
pub(crate) fn is_ours(name: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name == OPERATOR || is_agent(name),
        Some(parent) => {
            let of_operator = OPERATOR.split_once('.').map(|(_, parent)| parent);
            is_agent(&format!("any.{parent}")) || of_operator == Some(parent)
        }
    }
}

fn is_name(text: &str) -> bool {
    is_node_name(text.strip_prefix("*.").unwrap_or(text))
}

/// An address in a certificate.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_told_apart() {
        let given = [
            "lamina",
            "lamina.site.svc",
            "10.0.0.7",
            "fd12::1",
            "*.cams.example",
        ];
        let reached = Reached::parse(given).unwrap();
        assert_eq!(
            reached.names,
            ["lamina", "lamina.site.svc", "*.cams.example"]
        );
        assert_eq!(reached.addresses.len(), 2);
        for bad in [
            "",
            "Cam_1",
            "a..b",
            "*",
            "https://a",
            "a.*.b",
            "10.0.0.7:8001",
        ] {
            assert!(
                matches!(Reached::parse([bad]), Err(ReachedError::Name(_))),
                "{bad}"
            );
        }
        let many: Vec<String> = (0..=MOST).map(|n| format!("n{n}")).collect();
        let many = Reached::parse(many.iter().map(String::as_str));
        assert_eq!(many, Err(ReachedError::TooMany));
    }

    #[test]
    fn no_client_is_shown_a_name_by_which_hosts_look_for_each_other() {
        for ours in [
            OPERATOR,
            "cam-1.agents.lamina",
            "*.agents.lamina",
            "*.lamina",
        ] {
            let refused = Reached::parse([ours]);
            assert_eq!(refused, Err(ReachedError::Ours(ours.to_owned())));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let has = Reached::parse(["a", "10.0.0.1"]).unwrap();
        assert_eq!(has.lacks(&has), None);
        let more = Reached::parse(["b", "10.0.0.2"]).unwrap();
        assert_eq!(has.lacks(&more).as_deref(), Some("b"));
        assert_eq!(has.clone().and(&more).and(&has).lacks(&more), None);
        let address = Reached::parse(["10.0.0.2"]).unwrap();
        assert_eq!(has.lacks(&address).as_deref(), Some("10.0.0.2"));
    }
}
