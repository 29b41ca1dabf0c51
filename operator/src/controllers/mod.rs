//! Everything that speaks to the Kubernetes API.
//!
//! Watches keep copies of the objects. One loop, woken by any change, by agents
//! and at least every two seconds, takes a [`snapshot`] of them and of what
//! agents say, and calls [`reconcile::decide`], which is pure: plain data in,
//! plain [`decision`]s out. An executor then writes them with server-side apply.
//! A fault or a restart anywhere in between only means another look.

mod collect;
mod decision;
mod deploy;
mod desk;
mod events;
mod execute;
mod links;
mod manifests;
mod memory;
mod model_status;
mod models;
mod nodes;
mod objects;
mod observe;
mod placement_status;
mod plan;
mod problem;
mod reconcile;
mod retry;
mod run;
mod slices;
mod snapshot;
mod spec;
#[cfg(test)]
pub(crate) mod testing;
mod text;
mod watch;

pub use run::{Controllers, ControllersError, Settings};
pub(crate) use snapshot::Snapshot;
