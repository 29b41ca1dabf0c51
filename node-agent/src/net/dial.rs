//! The one place that opens connections to agents and to the operator.

use crate::causes::root_cause;
use hyper_util::client::legacy::connect::HttpConnector;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Windows that a link of 1 Gbit/s and 60 ms of round trip does not fill.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How a connection behaves. One constant for each kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    /// A host whose system does not answer for this long is not there.
    connect_timeout: Duration,
    /// Room for tensors under way; HTTP/2's own small windows otherwise.
    large_windows: bool,
    /// How fast the other host's system must react.
    silence: Option<Silence>,
    /// HTTP/2 pings, for a process that hangs while its system is alive.
    pings: Option<Pings>,
}

/// The other host's system must acknowledge what is sent, and answer when nothing
/// is, within `limit`: a host or a link that vanished is noticed. A link that is
/// merely full goes on acknowledging, and so does a host short of CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silence {
    limit: Duration,
    /// How often a quiet host's system is asked.
    asked_every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pings {
    every: Duration,
    timeout: Duration,
    /// Also while no call is open.
    while_idle: bool,
}

impl Profile {
    /// Requests between agents. A link with one second of others' data queued before
    /// it still connects in time. Pings are slow: one waits behind the tensors in the
    /// kernel's queue, which at 5 Mbit/s may take seconds.
    pub(crate) const REQUESTS: Self = Self {
        connect_timeout: Duration::from_secs(2),
        large_windows: true,
        silence: Some(Silence {
            limit: Duration::from_secs(5),
            asked_every: Duration::from_secs(1),
        }),
        pings: Some(Pings {
            every: Duration::from_secs(10),
            timeout: Duration::from_secs(20),
            while_idle: true,
        }),
    };
    /// Probes of links: each has a time limit of its own, and pings would add to what
    /// is measured.
    pub(crate) const PROBES: Self = Self {
        connect_timeout: Duration::from_secs(2),
        large_windows: true,
        silence: None,
        pings: None,
    };
    /// The session with the operator. A host that vanished sends no reset; silence
    /// must end the session.
    pub(crate) const SESSION: Self = Self {
        connect_timeout: Duration::from_secs(3),
        large_windows: false,
        silence: None,
        pings: Some(Pings {
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(3),
            while_idle: true,
        }),
    };
    /// Blobs from and to the operator's store. Small windows, so that little of a blob
    /// stands in a request's way.
    pub(crate) const BLOBS: Self = Self {
        connect_timeout: Duration::from_secs(5),
        large_windows: false,
        silence: None,
        pings: Some(Pings {
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            while_idle: false,
        }),
    };

    fn endpoint(&self, address: &str) -> Result<Endpoint, DialError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let mut endpoint = endpoint.map_err(|e| DialError::Address {
            address: address.to_owned(),
            reason: root_cause(&e),
        })?;
        if self.large_windows {
            endpoint = endpoint
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        }
        if let Some(pings) = self.pings {
            endpoint = endpoint
                .http2_keep_alive_interval(pings.every)
                .keep_alive_timeout(pings.timeout)
                .keep_alive_while_idle(pings.while_idle);
        }
        Ok(endpoint)
    }

    /// Makes sockets as tonic's own connector does, which has no TCP_USER_TIMEOUT.
    fn sockets(&self) -> HttpConnector {
        let mut sockets = HttpConnector::new();
        sockets.set_nodelay(true);
        sockets.set_connect_timeout(Some(self.connect_timeout));
        if let Some(silence) = self.silence {
            sockets.set_keepalive(Some(silence.asked_every));
            sockets.set_keepalive_interval(Some(silence.asked_every));
            sockets.set_tcp_user_timeout(Some(silence.limit));
        }
        sockets
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody can listen there.
    #[error("`{address}` is no address: {reason}")]
    Address { address: String, reason: String },
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
}

/// A connection to `address`, `10.0.0.7:8001`, once it is open.
///
/// # Errors
/// See [`DialError`].
pub(crate) async fn connect(address: &str, profile: &Profile) -> Result<Channel, DialError> {
    let endpoint = profile.endpoint(address)?;
    let connected = endpoint.connect_with_connector(profile.sockets()).await;
    connected.map_err(|e| DialError::Unreachable(root_cause(&e)))
}

/// A connection to `address` that opens at its first call, and again after a failure.
///
/// # Errors
/// `address` is none.
pub(crate) fn connect_lazy(address: &str, profile: &Profile) -> Result<Channel, DialError> {
    let endpoint = profile.endpoint(address)?;
    Ok(endpoint.connect_with_connector_lazy(profile.sockets()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_none_and_one_that_is_deaf_are_told_apart() {
        let nowhere = connect("not an address", &Profile::SESSION).await;
        let nowhere = nowhere.unwrap_err().to_string();
        assert!(
            nowhere.starts_with("`not an address` is no address"),
            "{nowhere}"
        );
        assert!(connect_lazy("not an address", &Profile::PROBES).is_err());
        let deaf = connect("127.0.0.1:1", &Profile::REQUESTS).await;
        let deaf = deaf.unwrap_err().to_string();
        assert!(deaf.contains("Connection refused"), "{deaf}");
    }
}
