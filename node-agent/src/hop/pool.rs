use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use lamina_crds::Hop;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Windows that a link of 1 Gbit/s and 60 ms of round trip does not fill.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A host whose system does not answer for this long is not there. A link with
/// one second of others' data queued before it still makes it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A host that fell silent is asked after the first and given up after the
/// second. A ping overtakes tensors that are still in this process, but not those
/// in the kernel's queue: at 5 Mbit/s 3 MB of them. A host at a tenth of a core
/// answers within one second.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

type Connecting = Shared<BoxFuture<'static, Result<Channel, Arc<str>>>>;

/// Kept-open connections to other agents, by address. Clones share them.
///
/// tonic's own channel connects again by itself, but requests that wait in it
/// try one after the other, each for the whole connect timeout. Here all that
/// wait share one try, and a connection that failed is left at once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hops {
    open: Arc<Mutex<BTreeMap<String, Connection>>>,
}

#[derive(Debug, Clone)]
pub(super) struct Connection {
    connecting: Connecting,
    /// Fires when the host cannot be reached, for all who wait on it.
    pub(super) lost: CancellationToken,
    used: Instant,
}

impl Connection {
    /// The channel, once the host is connected.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) async fn channel(&self) -> Result<Channel, Arc<str>> {
        self.connecting.clone().await
    }
}

impl Hops {
    /// The connection to `to`, begun where there is none.
    pub(super) fn connection(&self, to: &Hop) -> Connection {
        let mut open = self.lock();
        let connection = open
            .entry(to.address.clone())
            .or_insert_with(|| begin(&to.address));
        connection.used = Instant::now();
        connection.clone()
    }

    /// Leaves `failed`; the next request connects anew. `unreachable` ends what
    /// waits on it, too.
    pub(super) fn leave(&self, to: &Hop, failed: &Connection, unreachable: bool) {
        let mut open = self.lock();
        let present = open.get(&to.address);
        if present.is_some_and(|c| c.connecting.ptr_eq(&failed.connecting)) {
            open.remove(&to.address);
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
    pub(super) fn addresses(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In a task, so that it goes on when the request that asked for it is gone.
fn begin(address: &str) -> Connection {
    let task = tokio::spawn(connect(address.to_owned()));
    let outcome = async move {
        let ended = task.await;
        ended.unwrap_or_else(|e| Err(e.to_string().into()))
    };
    Connection {
        connecting: outcome.boxed().shared(),
        lost: CancellationToken::new(),
        used: Instant::now(),
    }
}

async fn connect(address: String) -> Result<Channel, Arc<str>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| Arc::<str>::from(format!("`{address}` is no address: {e}")))?
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    endpoint.connect().await.map_err(|e| root_cause(&e).into())
}

/// The innermost cause: `Connection refused` says more than `transport error`.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
