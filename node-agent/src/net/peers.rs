use super::trust::Trust;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// Addresses of the other agents, from the operator's session.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    by_node: Arc<RwLock<BTreeMap<String, String>>>,
}

impl Peers {
    /// Replaces the list by `(node, address)` pairs.
    pub fn replace(&self, peers: impl IntoIterator<Item = (String, String)>) {
        let mut held = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        *held = peers.into_iter().collect();
    }

    /// Every `(node, address)`, ordered by node.
    pub fn list(&self) -> Vec<(String, String)> {
        let held = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(n, a)| (n.clone(), a.clone())).collect()
    }

    /// Name of the node at `address`.
    pub fn node_at(&self, address: &str) -> Option<String> {
        let held = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        held.iter()
            .find(|(_, a)| *a == address)
            .map(|(n, _)| n.clone())
    }
}

/// The operator's address, `10.0.0.3:9000`, from the ComputeNode's spec; empty while unknown.
/// Follows an operator that restarts elsewhere. Also authenticates it.
#[derive(Debug, Clone)]
pub struct OperatorEndpoint {
    sender: Arc<watch::Sender<String>>,
    trust: Trust,
}

impl Default for OperatorEndpoint {
    fn default() -> Self {
        Self::trusted(Trust::default())
    }
}

impl OperatorEndpoint {
    /// With an unknown address, for an operator that `trust` authenticates.
    pub fn trusted(trust: Trust) -> Self {
        Self {
            sender: Arc::new(watch::Sender::new(String::new())),
            trust,
        }
    }

    /// How the operator is authenticated.
    pub(crate) const fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Sets the address; waiting receivers wake only if it differs.
    pub fn set(&self, address: &str) {
        self.sender.send_if_modified(|held| {
            let changed = held != address;
            if changed {
                address.clone_into(held);
            }
            changed
        });
    }

    /// Receives the present address and every change.
    pub fn subscribe(&self) -> watch::Receiver<String> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_replaced_as_a_whole() {
        let peers = Peers::default();
        peers.replace([("a".into(), "10.0.0.1:1".into())]);
        peers.replace([("b".into(), "10.0.0.2:1".into())]);
        assert_eq!(peers.list(), [("b".to_owned(), "10.0.0.2:1".to_owned())]);
        assert_eq!(peers.node_at("10.0.0.2:1").as_deref(), Some("b"));
        assert_eq!(peers.node_at("10.0.0.1:1"), None);
    }

    #[test]
    fn an_endpoint_wakes_its_readers_only_when_it_changes() {
        let endpoint = OperatorEndpoint::default();
        let mut seen = endpoint.subscribe();
        endpoint.set("10.0.0.3:9000");
        assert!(seen.has_changed().unwrap());
        assert_eq!(*seen.borrow_and_update(), "10.0.0.3:9000");
        endpoint.set("10.0.0.3:9000");
        assert!(!seen.has_changed().unwrap());
    }
}
