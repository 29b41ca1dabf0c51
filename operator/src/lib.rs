//! The operator: watches models and hosts, places, deploys, moves.
//!
//! [`operator::run`] is the whole process; its parts are rooms of their own.

mod admin;
pub mod control;
pub mod controllers;
pub mod health;
pub mod lease;
pub mod metrics;
pub mod operator;
pub mod store;
mod text;
pub mod world;
