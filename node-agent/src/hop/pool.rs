use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use hyper_util::client::legacy::connect::HttpConnector;
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
/// The host's system must acknowledge what is sent, and answer when nothing is,
/// within this time: a host or a link that vanished is noticed. A link that is
/// merely full goes on acknowledging, and so does a host short of CPU.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a quiet host's system is asked.
const TCP_KEEPALIVE: Duration = Duration::from_secs(1);
/// For an agent that hangs while its system is alive. Slow: a ping waits behind
/// the tensors in the kernel's queue, which at 5 Mbit/s may take seconds.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

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
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connected = endpoint.connect_with_connector(sockets()).await;
    connected.map_err(|e| root_cause(&e).into())
}

/// Makes sockets as tonic's own connector does, which has no TCP_USER_TIMEOUT.
fn sockets() -> HttpConnector {
    let mut sockets = HttpConnector::new();
    sockets.set_nodelay(true);
    sockets.set_connect_timeout(Some(CONNECT_TIMEOUT));
    sockets.set_keepalive(Some(TCP_KEEPALIVE));
    sockets.set_keepalive_interval(Some(TCP_KEEPALIVE));
    sockets.set_tcp_user_timeout(Some(SILENCE));
    sockets
}

/// The innermost cause: `Connection refused` says more than `transport error`.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
