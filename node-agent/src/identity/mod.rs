//! This host's certificate: issued by the operator, renewed in time, and stored on disk, so
//! that a restarted agent is trusted by others while the operator is down. Also the certificate
//! for clients, if that is issued by others.

mod decide;
mod files;
mod given;
mod keep;

pub(crate) use files::Files;
pub(crate) use given::Given;
pub(crate) use keep::{Keeper, Shown, bundles};

#[cfg(test)]
mod tests;
