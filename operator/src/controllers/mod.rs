//! Everything that speaks to the Kubernetes API.
//!
//! Watches keep copies of the objects. One loop, woken by any change, by agents
//! and at least every two seconds, takes a [`snapshot`] of them and of what
//! agents say, and calls [`reconcile::decide`], which is pure: plain data in,
//! plain [`decision`]s out. An executor then writes them with server-side apply.
//! A fault or a restart anywhere in between only means another look.

#![allow(dead_code)] // until the loop that calls it stands

mod decision;
mod deploy;
mod events;
mod execute;
mod links;
mod memory;
mod model_status;
mod models;
mod nodes;
mod placement_status;
mod plan;
mod problem;
mod reconcile;
mod slices;
mod snapshot;
mod spec;
#[cfg(test)]
mod testing;
mod text;
mod watch;
