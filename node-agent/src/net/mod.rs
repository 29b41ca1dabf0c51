//! Connections to other processes: who is where, the one dialer, what is kept open,
//! and how long to wait after a failure.

mod backoff;
mod dial;
mod peers;
mod pool;
mod token;

pub(crate) use backoff::Backoff;
pub(crate) use dial::{
    CONNECTION_WINDOW_BYTES, DialError, Profile, STREAM_WINDOW_BYTES, connect, connect_lazy,
};
pub use peers::{OperatorEndpoint, Peers};
pub(crate) use pool::{Connection, Pool};
pub(crate) use token::{Bearer, bearer};
