//! This host's certificate: asked of the operator, renewed in time, and kept on the disk, so
//! that an agent that starts anew is known to others while the operator is away. And the one
//! that clients are shown where it is given by others.

mod decide;
mod files;
mod given;
mod keep;

pub(crate) use files::Files;
pub(crate) use given::Given;
pub(crate) use keep::{Keeper, Shown, bundles};

#[cfg(test)]
mod tests;
