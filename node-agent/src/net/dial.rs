//! The one place that opens connections to agents and to the operator.

use super::trust::{Trust, Way};
use crate::causes::root_cause;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use lamina_identity::{ConnectError, OPERATOR, Stream, agent, connect as begin_tls};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tower::{Service as _, service_fn};

/// Windows large enough for a link of 1 Gbit/s with a round trip of 60 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 8 << 20;
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Settings of a connection. One constant for each kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    /// A host whose system does not answer for this long is gone.
    connect_timeout: Duration,
    /// Windows for tensors in flight; otherwise HTTP/2's own small ones.
    large_windows: bool,
    /// How fast the other host's system must react.
    silence: Option<Silence>,
    /// HTTP/2 pings, which detect a process that hangs while its system is alive.
    pings: Option<Pings>,
}

/// The other host's system must acknowledge data, and answer when idle, within `limit`: this
/// detects a host or a link that vanished. A busy link keeps acknowledging, and so does a host
/// short of CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Silence {
    limit: Duration,
    /// How often an idle host's system is asked.
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
    /// Requests between agents. A link with one second of other data queued still connects in time.
    /// Pings are slow: one waits behind the tensors in the kernel's queue, which at 5 Mbit/s may
    /// take seconds.
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
    /// Probes of links: each has its own time limit, and pings would distort the measurement.
    pub(crate) const PROBES: Self = Self {
        connect_timeout: Duration::from_secs(2),
        large_windows: true,
        silence: None,
        pings: None,
    };
    /// The session with the operator. A host that vanished sends no reset; silence must end the
    /// session.
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
    /// Blobs from and to the operator's store. Small windows, so that little of a blob delays a
    /// request.
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

    /// Creates sockets as tonic's own connector does, which has no TCP_USER_TIMEOUT.
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
    /// The address is invalid.
    #[error("`{address}` is no address: {reason}")]
    Address { address: String, reason: String },
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
}

/// The intended other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// The agent of a node.
    Agent { node: &'a str, address: &'a str },
    /// The operator.
    Operator { address: &'a str },
}

impl<'a> Target<'a> {
    const fn address(self) -> &'a str {
        match self {
            Self::Agent { address, .. } | Self::Operator { address } => address,
        }
    }

    /// The required name in its certificate.
    fn name(self) -> String {
        match self {
            Self::Agent { node, .. } => agent(node),
            Self::Operator { .. } => OPERATOR.to_owned(),
        }
    }
}

/// A connection to `target`, once it is open.
///
/// # Errors
/// See [`DialError`].
pub(crate) async fn connect(
    target: Target<'_>,
    profile: &Profile,
    trust: &Trust,
) -> Result<Channel, DialError> {
    open(target, profile, || trust.way()).await
}

/// A connection to the operator without a certificate, once it is open.
///
/// # Errors
/// See [`DialError`].
pub(crate) async fn connect_to_enroll(
    address: &str,
    profile: &Profile,
    trust: &Trust,
) -> Result<Channel, DialError> {
    let way = || trust.way_without_certificate();
    open(Target::Operator { address }, profile, way).await
}

/// A connection to an agent without showing a certificate.
#[cfg(test)]
pub(crate) async fn connect_unknown(target: Target<'_>, trust: &Trust) -> Channel {
    let way = || trust.way_without_certificate();
    open(target, &Profile::REQUESTS, way).await.unwrap()
}

async fn open(
    target: Target<'_>,
    profile: &Profile,
    way: impl Fn() -> Way,
) -> Result<Channel, DialError> {
    let endpoint = profile.endpoint(target.address())?;
    let (name, way, profile) = (target.name(), way(), *profile);
    let connector = service_fn(move |uri: Uri| {
        let (name, way) = (name.clone(), way.clone());
        async move { profile.open(uri, &name, way).await.map(TokioIo::new) }
    });
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|e| DialError::Unreachable(root_cause(&e)))
}

/// A connection to `target` that opens at its first call, and again after a failure.
///
/// # Errors
/// Its address is invalid.
pub(crate) fn connect_lazy(
    target: Target<'_>,
    profile: &Profile,
    trust: &Trust,
) -> Result<Channel, DialError> {
    let endpoint = profile.endpoint(target.address())?;
    let (name, trust, profile) = (target.name(), trust.clone(), *profile);
    let connector = service_fn(move |uri: Uri| {
        let (name, way) = (name.clone(), trust.way());
        async move { profile.open(uri, &name, way).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

type OpenError = Box<dyn std::error::Error + Send + Sync>;

impl Profile {
    /// A connection to `uri`, whose other end must be `name`.
    async fn open(&self, uri: Uri, name: &str, way: Way) -> Result<Stream, OpenError> {
        let (config, is_optional) = match way {
            Way::Plain => return Ok(Box::new(self.socket(uri).await?)),
            Way::NotYet => return Err(NO_CERTIFICATE.into()),
            Way::Tls {
                config,
                is_optional,
            } => (config, is_optional),
        };
        let socket = self.socket(uri.clone()).await?;
        // Two round trips, each as long as the one of connecting.
        let shaken = timeout(self.connect_timeout * 2, begin_tls(config, name, socket)).await;
        match shaken.map_err(|_| "the other end did not go on with TLS")? {
            Err(ConnectError::NoTls(why)) if is_optional => {
                tracing::debug!(name, why, "no TLS there: going on without");
                Ok(Box::new(self.socket(uri).await?))
            }
            shaken => Ok(shaken?),
        }
    }

    async fn socket(&self, uri: Uri) -> Result<TcpStream, OpenError> {
        let socket = self.sockets().call(uri).await?;
        Ok(socket.into_inner())
    }
}

/// Why nothing is dialled before there is a certificate.
const NO_CERTIFICATE: &str =
    "this host has no certificate yet; condition Registered of its ComputeNode says why";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_none_and_one_that_is_deaf_are_told_apart() {
        let trust = Trust::default();
        let operator = |address| Target::Operator { address };
        let nowhere = connect(operator("not an address"), &Profile::SESSION, &trust).await;
        let nowhere = nowhere.unwrap_err().to_string();
        assert!(
            nowhere.starts_with("`not an address` is no address"),
            "{nowhere}"
        );
        assert!(connect_lazy(operator("not an address"), &Profile::PROBES, &trust).is_err());
        let deaf = connect(operator("127.0.0.1:1"), &Profile::REQUESTS, &trust).await;
        let deaf = deaf.unwrap_err().to_string();
        assert!(deaf.contains("Connection refused"), "{deaf}");
    }
}
