//! Access to the API server: watches, writes, Events.

pub(crate) mod events;
pub(crate) mod execute;
pub(crate) mod lenient;
pub(crate) mod objects;
pub(crate) mod publish;
pub(crate) mod retry;
pub(crate) mod secrets;
pub(crate) mod watch;
