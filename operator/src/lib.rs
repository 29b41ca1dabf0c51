//! The operator: watches models and hosts, places, deploys, moves.

pub mod controllers;
pub mod store;
pub mod world;
