//! Early exits: which rows of a request are confident enough to leave, how the others
//! continue without them, and how all are recombined. Pure.
//!
//! A request carries its rules (`lamina.hop.v1.ExitRules`), so that thresholds can change
//! without a redeploy. Each host that computes an exit's logits judges the remaining rows.

mod measure;
mod rows;
mod rules;

pub(crate) use rows::{MeetError, Standing, part};
pub(crate) use rules::{Asked, AskedError, Rules, RulesError, wish};
