//! Serving: from a client's request to its answer, over slices on this host and others.

pub(crate) mod access;
mod batches;
pub(crate) mod data_plane;
pub(crate) mod deadline;
pub(crate) mod directory;
pub(crate) mod engine;
pub(crate) mod exits;
pub(crate) mod front;
pub(crate) mod guard;
pub(crate) mod hop;
pub(crate) mod rest;
pub(crate) mod routes;
pub(crate) mod slices;
mod specs;
mod trace;
mod verify;
