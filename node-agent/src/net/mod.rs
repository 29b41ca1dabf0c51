//! Connections to other processes: addresses, the one dialer, the pool,
//! and the delay after a failure.

mod backoff;
mod dial;
mod front;
mod peers;
mod pool;
mod token;
mod trust;

pub(crate) use backoff::Backoff;
pub(crate) use dial::{
    CONNECTION_WINDOW_BYTES, DialError, Profile, STREAM_WINDOW_BYTES, Target, connect,
    connect_lazy, connect_to_enroll,
};
pub(crate) use front::FrontTls;
pub use front::{FrontArgs, FrontMode};
pub use peers::{OperatorEndpoint, Peers};
pub(crate) use pool::{Connection, Pool};
pub(crate) use token::{Bearer, bearer};
pub use trust::{TlsMode, Trust};

#[cfg(test)]
pub(crate) use dial::connect_unknown;
