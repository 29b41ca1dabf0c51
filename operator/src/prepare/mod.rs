//! From the file that a DnnModel names to a manifest in the store.

pub(crate) mod garbage;
mod images;
pub(crate) mod manifests;
pub(crate) mod models;
pub(crate) mod queue;
pub(crate) mod spec;
