//! The operator: watches models and hosts, places, deploys, moves.
//!
//! [`operator::run`] is the whole process. The decisions of a look are made by pure rooms over
//! [`state`]: [`prepare`], [`plan`], [`deploy`] and [`status`], which are independent of each
//! other; [`reconcile`] combines them, [`observe`] and [`kube`] are input and output, and
//! [`run`] is the loop.

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
mod news;
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
