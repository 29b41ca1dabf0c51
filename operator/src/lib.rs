//! The operator: watches models and hosts, places, deploys, moves.
//!
//! [`operator::run`] is the whole process; its parts are rooms of their own. What
//! follows from a look at the world is decided by pure rooms over [`state`]:
//! [`prepare`], [`plan`], [`deploy`] and [`status`], which know nothing of each
//! other; [`reconcile`] puts them together, [`observe`] and [`kube`] are the ways
//! in and out, and [`run`] is the loop.

mod admin;
pub mod control;
mod deploy;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod health;
pub mod hosts;
pub mod identity;
mod keys;
mod kube;
pub mod lease;
pub mod metrics;
mod observe;
pub mod operator;
mod plan;
mod prepare;
mod reconcile;
mod run;
mod state;
mod status;
pub mod store;
#[cfg(test)]
mod testing;
mod text;
pub mod world;
