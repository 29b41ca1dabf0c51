//! Early exits: which rows of a request are sure enough of their answer to leave, how
//! the others go on without them, and how all come together again. Pure.
//!
//! What a request may do travels with it (`lamina.hop.v1.ExitRules`), so that thresholds
//! change without a redeploy. Each host that computes an exit's logits judges the rows
//! that are still there.

mod measure;
mod rules;
mod standing;

pub(crate) use rules::{Asked, AskedError, Rules, RulesError, wish};
pub(crate) use standing::{MeetError, Standing, part};
