//! The kubectl plugin of Lamina. `kubectl lamina plan` compares placements of a
//! model over hosts, with no cluster at all; `kubectl lamina join` lets a machine without a
//! kubelet join the cluster's hosts ([`join`]).
//!
//! Files and options become a [`question::Question`], that a [`report::Report`],
//! and that text or JSON.

pub mod args;
mod compare;
mod input;
pub mod join;
mod mistake;
pub mod plan;
mod profile;
pub mod question;
pub mod render;
pub mod report;
mod show;
mod table;
mod topology;
mod units;
mod what_if;

pub use mistake::{Mistake, Mistakes};
pub use table::Dress;
