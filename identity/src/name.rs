//! Names in certificates.

/// The operator's name in its certificate. Agents dial it by address and check this name, so that
/// it may move.
pub const OPERATOR: &str = "operator.lamina";
/// Suffix of a node's name.
const AGENTS: &str = "agents.lamina";
/// Longest node name that a certificate can hold: the whole name has 253.
const LONGEST_NODE: usize = 253 - AGENTS.len() - 1;

/// The name of `node`'s agent in its certificate.
pub fn agent(node: &str) -> String {
    format!("{node}.{AGENTS}")
}

/// Whether `name` is one that hosts use for an agent.
pub(crate) fn is_agent(name: &str) -> bool {
    name.strip_suffix(AGENTS)
        .is_some_and(|node| node.ends_with('.'))
}

/// Whether a certificate can name `node`: Kubernetes' names are lower-case labels separated by
/// dots, of at most 63 characters each in DNS.
pub fn is_node_name(node: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    node.len() <= LONGEST_NODE && node.split('.').all(is_label)
}

/// Owner of certificates, in SPIFFE's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The domain in which the names are unique, such as `lamina`.
    pub trust_domain: String,
    /// Namespace of the pods.
    pub namespace: String,
    /// Their service account.
    pub account: String,
}

impl Workload {
    /// `spiffe://lamina/ns/lamina-system/sa/lamina-operator`.
    pub fn uri(&self) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.account
        )
    }

    /// The same with `/node/NODE` appended.
    pub fn uri_on(&self, node: &str) -> String {
        format!("{}/node/{node}", self.uri())
    }

    /// The name of `host`: [`Workload::uri`] with `/node/NODE`, and `/join/JOIN` if it joined.
    pub fn uri_of(&self, host: Named<'_>) -> String {
        let on = self.uri_on(host.node);
        match host.join {
            None => on,
            Some(join) => format!("{on}/join/{join}"),
        }
    }
}

/// A host as named in certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// Its name, which is that of its Node if it is one.
    pub node: &'a str,
    /// Its join, if it is not a Node; see [`join_id`].
    pub join: Option<&'a str>,
}

impl<'a> From<&'a str> for Named<'a> {
    /// The Node `node`.
    fn from(node: &'a str) -> Self {
        Self { node, join: None }
    }
}

/// Characters that identify a join in a certificate.
const JOIN_CHARACTERS: usize = 16;

/// The id, in certificates, of the join by the token with this SHA-256 (in hexadecimal): a later
/// join of the same host has another id.
pub fn join_id(token_sha256: &str) -> &str {
    token_sha256.get(..JOIN_CHARACTERS).unwrap_or(token_sha256)
}

fn is_join_id(text: &str) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == JOIN_CHARACTERS && text.bytes().all(is_digit)
}

/// The host named by `uri`, if it is an agent's.
pub(crate) fn named_in(uri: &str) -> Option<Named<'_>> {
    let parts: Vec<&str> = uri.strip_prefix("spiffe://")?.split('/').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    match parts[..] {
        [_, "ns", _, "sa", _, "node", node] if is_node_name(node) => Some(node.into()),
        [_, "ns", _, "sa", _, "node", node, "join", join]
            if is_node_name(node) && is_join_id(join) =>
        {
            let join = Some(join);
            Some(Named { node, join })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents() -> Workload {
        Workload {
            trust_domain: "lamina".into(),
            namespace: "lamina-system".into(),
            account: "lamina-agent".into(),
        }
    }

    #[test]
    fn a_name_in_a_certificate_says_the_node() {
        let uri = agents().uri_on("cam-1.site");
        assert_eq!(
            uri,
            "spiffe://lamina/ns/lamina-system/sa/lamina-agent/node/cam-1.site"
        );
        assert_eq!(named_in(&uri), Some("cam-1.site".into()));
        assert_eq!(agent("cam-1"), "cam-1.agents.lamina");
    }

    #[test]
    fn a_host_that_joined_is_told_from_a_node_and_from_an_earlier_join() {
        let (first, second) = ("01".repeat(32), "02".repeat(32));
        let uri = |token: &str| {
            let join = Some(join_id(token));
            let node = "cam-9";
            agents().uri_of(Named { node, join })
        };
        assert_ne!(uri(&first), uri(&second));
        let whole = uri(&first);
        let found = named_in(&whole).unwrap();
        assert_eq!((found.node, found.join), ("cam-9", Some(&first[..16])));
        assert_eq!(agents().uri_of("cam-9".into()), agents().uri_on("cam-9"));
    }

    #[test]
    fn hosts_have_names_of_their_own() {
        assert!(is_agent("cam-1.agents.lamina") && is_agent("cam-1.site.agents.lamina"));
        for other in ["agents.lamina", "xagents.lamina", "cam-1", OPERATOR, ""] {
            assert!(!is_agent(other), "{other}");
        }
    }

    #[test]
    fn what_is_nearly_such_a_name_is_none() {
        let bad = [
            agents().uri(),
            format!("{}/more", agents().uri_on("cam-1")),
            format!("{}/join/", agents().uri_on("cam-1")),
            format!("{}/join/0123456789ABCDEF", agents().uri_on("cam-1")),
            format!("{}/join/0123456789abcdef/more", agents().uri_on("cam-1")),
            agents().uri_on(""),
            agents().uri_on("Cam_1"),
            "spiffe:///ns/a/sa/b/node/c".to_owned(),
            "https://lamina/ns/a/sa/b/node/c".to_owned(),
            "spiffe://lamina/sa/b/ns/a/node/c".to_owned(),
        ];
        for uri in bad {
            assert_eq!(named_in(&uri), None, "{uri}");
        }
    }

    #[test]
    fn names_of_nodes_are_those_that_dns_takes() {
        assert!(is_node_name("ip-10-0-0-7.eu.compute.internal"));
        let long = "a".repeat(64);
        let whole = vec!["a".repeat(60); 4].join(".");
        for bad in ["", "a..b", "-a", "a-", "a/b", "A", &long, &whole] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
