//! The state of each connection. A guest is not yet authenticated: there are few of them, fewer
//! from one address, and not for long. An admitted connection counts for its node, and each node
//! has enough of them. So nobody can exhaust the descriptors that agents and the operator need.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits for guests and agents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Guests at the same time; others wait unaccepted.
    pub(super) guests: usize,
    /// Guests from one address; more are disconnected.
    pub(super) of_address: usize,
    /// A guest must be admitted within this time.
    pub(super) patience: Duration,
    /// Connections of one node's agent. It needs one, and a second while it is replaced or the link
    /// breaks.
    pub(super) of_node: usize,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            guests: 256,
            of_address: 192,
            patience: Duration::from_secs(15),
            of_node: 32,
        }
    }
}

/// Accepts connections. Clones share the counts.
#[derive(Debug, Clone)]
pub(super) struct Lobby {
    pub(super) terms: Terms,
    turns: Arc<Semaphore>,
    addresses: Counts<IpAddr>,
    nodes: Counts<String>,
}

impl Lobby {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            turns: Arc::new(Semaphore::new(terms.guests)),
            addresses: Counts::default(),
            nodes: Counts::default(),
        }
    }

    /// Waits until there is room for one more guest.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// A guest from `address`, unless there are too many from there.
    pub(super) fn guest(&self, address: IpAddr, turn: OwnedSemaphorePermit) -> Option<Standing> {
        let counted = self
            .addresses
            .take(network(address), self.terms.of_address)?;
        let guest = Stands::Guest {
            _turn: turn,
            _counted: counted,
        };
        Some(Standing {
            lobby: self.clone(),
            stands: Arc::new(Mutex::new(guest)),
        })
    }
}

/// An IPv6 network counts as one address: its owner can use any number.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

#[derive(Debug)]
enum Stands {
    Guest {
        _turn: OwnedSemaphorePermit,
        _counted: Counted<IpAddr>,
    },
    Known {
        _of_node: Option<Counted<String>>,
    },
}

/// The state of one connection, until it is dropped. Clones belong to the same connection.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    lobby: Lobby,
    stands: Arc<Mutex<Stands>>,
}

impl Standing {
    /// A request of `node`'s agent was admitted, or of anybody if nothing is checked. False if the
    /// agent has too many connections.
    pub(super) fn let_in(&self, node: Option<&str>) -> bool {
        let mut stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*stands, Stands::Known { .. }) {
            return true;
        }
        let of_node = match node {
            None => None,
            Some(node) => {
                let most = self.lobby.terms.of_node;
                let Some(counted) = self.lobby.nodes.take(node.to_owned(), most) else {
                    return false;
                };
                Some(counted)
            }
        };
        *stands = Stands::Known { _of_node: of_node };
        true
    }

    /// Whether it is not yet authenticated.
    pub(super) fn is_guest(&self) -> bool {
        let stands = self.stands.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*stands, Stands::Guest { .. })
    }
}

/// Counts by key. Clones share it.
#[derive(Debug)]
struct Counts<K: Eq + Hash>(Arc<Mutex<HashMap<K, usize>>>);

impl<K: Eq + Hash> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Counts<K> {
    /// One more of `key`, unless there are `most`.
    fn take(&self, key: K, most: usize) -> Option<Counted<K>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(key.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            counts: self.clone(),
            key,
        })
    }
}

/// One counted item.
#[derive(Debug)]
struct Counted<K: Eq + Hash> {
    counts: Counts<K>,
    key: K,
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut all = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}
