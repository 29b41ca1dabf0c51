//! This host's certificate: asked of the operator, renewed in time, and kept on the disk, so
//! that an agent that starts anew is known to others while the operator is away.

mod decide;
mod files;
mod keep;

pub(crate) use files::Files;
pub(crate) use keep::{Keeper, bundles};

#[cfg(test)]
mod tests;
