use super::dial::{DialError, Profile, Target, connect};
use super::trust::Trust;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

type Connecting = Shared<BoxFuture<'static, Result<Channel, DialError>>>;

/// Persistent connections to other agents, by address and name: an address that another
/// node has taken over is another host. Clones share them.
///
/// tonic's own channel reconnects by itself, but requests that wait in it try one
/// after the other, each for the whole connect timeout. Here all waiting requests
/// share one try, and a failed connection is dropped at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    trust: Trust,
    open: Arc<Mutex<BTreeMap<Key, Connection>>>,
}

/// Address and node.
type Key = (String, String);

#[derive(Debug, Clone)]
pub(crate) struct Connection {
    connecting: Connecting,
    /// Fires when the host cannot be reached, for all that wait on it.
    pub(crate) lost: CancellationToken,
    used: Instant,
}

impl Connection {
    /// The channel, once the host is connected.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) async fn channel(&self) -> Result<Channel, DialError> {
        self.connecting.clone().await
    }
}

impl Pool {
    /// Connections are opened according to `trust`.
    pub(crate) fn new(trust: Trust) -> Self {
        Self {
            trust,
            open: Arc::default(),
        }
    }

    /// The connection to `node` at `address`, started if there is none.
    pub(crate) fn connection(&self, node: &str, address: &str) -> Connection {
        let mut open = self.lock();
        let connection = open
            .entry((address.to_owned(), node.to_owned()))
            .or_insert_with(|| begin(node, address, self.trust.clone()));
        connection.used = Instant::now();
        connection.clone()
    }

    /// Drops `failed`; the next request reconnects. `unreachable` also ends requests that wait on
    /// it.
    pub(crate) fn leave(&self, failed: &Connection, unreachable: bool) {
        let is_failed = |c: &Connection| c.connecting.ptr_eq(&failed.connecting);
        self.lock().retain(|_, present| !is_failed(present));
        if unreachable {
            failed.lost.cancel();
        }
    }

    /// Closes connections unused for `unused`, once their last request is done.
    pub(crate) fn drop_unused(&self, unused: Duration) {
        self.lock().retain(|_, c| c.used.elapsed() < unused);
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.lock()
            .keys()
            .map(|(address, _)| address.clone())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a task, so that it continues if the request that started it is gone.
fn begin(node: &str, address: &str, trust: Trust) -> Connection {
    let (node, address) = (node.to_owned(), address.to_owned());
    let task = tokio::spawn(async move {
        let target = Target::Agent {
            node: &node,
            address: &address,
        };
        connect(target, &Profile::REQUESTS, &trust).await
    });
    let outcome = async move {
        let ended = task.await;
        ended.unwrap_or_else(|e| Err(DialError::Unreachable(e.to_string())))
    };
    Connection {
        connecting: outcome.boxed().shared(),
        lost: CancellationToken::new(),
        used: Instant::now(),
    }
}
