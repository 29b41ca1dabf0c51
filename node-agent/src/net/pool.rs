use super::dial::{DialError, Profile, connect};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

type Connecting = Shared<BoxFuture<'static, Result<Channel, DialError>>>;

/// Kept-open connections to other agents, by address. Clones share them.
///
/// tonic's own channel connects again by itself, but requests that wait in it
/// try one after the other, each for the whole connect timeout. Here all that
/// wait share one try, and a connection that failed is left at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    open: Arc<Mutex<BTreeMap<String, Connection>>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Connection {
    connecting: Connecting,
    /// Fires when the host cannot be reached, for all who wait on it.
    pub(crate) lost: CancellationToken,
    used: Instant,
}

impl Connection {
    /// The channel, once the host is connected.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(crate) async fn channel(&self) -> Result<Channel, DialError> {
        self.connecting.clone().await
    }
}

impl Pool {
    /// The connection to `address`, begun where there is none.
    pub(crate) fn connection(&self, address: &str) -> Connection {
        let mut open = self.lock();
        let connection = open
            .entry(address.to_owned())
            .or_insert_with(|| begin(address));
        connection.used = Instant::now();
        connection.clone()
    }

    /// Leaves `failed`; the next request connects anew. `unreachable` ends what
    /// waits on it, too.
    pub(crate) fn leave(&self, address: &str, failed: &Connection, unreachable: bool) {
        let mut open = self.lock();
        let present = open.get(address);
        if present.is_some_and(|c| c.connecting.ptr_eq(&failed.connecting)) {
            open.remove(address);
        }
        drop(open);
        if unreachable {
            failed.lost.cancel();
        }
    }

    /// Closes what no request used for `unused`, once its last request is done.
    pub(crate) fn drop_unused(&self, unused: Duration) {
        self.lock().retain(|_, c| c.used.elapsed() < unused);
    }

    #[cfg(test)]
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a task, so that it goes on when the request that asked for it is gone.
fn begin(address: &str) -> Connection {
    let address = address.to_owned();
    let task = tokio::spawn(async move { connect(&address, &Profile::REQUESTS).await });
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
