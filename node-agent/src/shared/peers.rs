use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::watch;

/// Addresses of the other agents, as the operator tells them in a session.
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

/// Where the operator listens, `10.0.0.3:9000`, as the ComputeNode's spec says;
/// empty while it is not known. Follows an operator that restarts elsewhere.
#[derive(Debug, Clone)]
pub struct OperatorEndpoint {
    sender: Arc<watch::Sender<String>>,
}

impl Default for OperatorEndpoint {
    fn default() -> Self {
        Self {
            sender: Arc::new(watch::Sender::new(String::new())),
        }
    }
}

impl OperatorEndpoint {
    /// Sets the address; waiting receivers wake only when it differs.
    pub fn set(&self, address: &str) {
        self.sender.send_if_modified(|held| {
            let changed = held != address;
            if changed {
                address.clone_into(held);
            }
            changed
        });
    }

    /// Sees the present address and every change.
    pub fn subscribe(&self) -> watch::Receiver<String> {
        self.sender.subscribe()
    }
}

/// The kept-open connections to other agents, so that the kernel can be asked
/// for their round-trip times (TCP_INFO).
#[derive(Debug, Clone, Default)]
pub struct PeerSockets {
    open: Arc<Mutex<SocketTable>>,
}

#[derive(Debug, Default)]
struct SocketTable {
    next_id: u64,
    sockets: BTreeMap<u64, (String, Arc<OwnedFd>)>,
}

/// Keeps a socket listed for as long as its connection lives.
#[derive(Debug)]
pub struct Registered {
    id: u64,
    table: PeerSockets,
}

impl PeerSockets {
    /// Lists `socket`, connected to `address`, until the answer is dropped.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn register(
        &self,
        address: &str,
        socket: &impl std::os::fd::AsFd,
    ) -> io::Result<Registered> {
        let fd = Arc::new(socket.as_fd().try_clone_to_owned()?);
        let mut table = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let id = table.next_id;
        table.next_id += 1;
        table.sockets.insert(id, (address.to_owned(), fd));
        Ok(Registered {
            id,
            table: self.clone(),
        })
    }

    /// Every open connection as `(address, socket)`. Do not keep the sockets:
    /// the connection stays open for as long as one is held.
    pub fn list(&self) -> Vec<(String, Arc<OwnedFd>)> {
        let table = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        table.sockets.values().cloned().collect()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut table = self
            .table
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        table.sockets.remove(&self.id);
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

    #[test]
    fn a_socket_is_listed_for_as_long_as_its_connection_lives() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockets = PeerSockets::default();
        let kept = sockets.register("10.0.0.1:8001", &listener).unwrap();
        assert_eq!(sockets.list().len(), 1);
        assert_eq!(sockets.list()[0].0, "10.0.0.1:8001");
        drop(kept);
        assert!(sockets.list().is_empty());
    }
}
