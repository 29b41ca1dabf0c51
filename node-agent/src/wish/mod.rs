//! What the operator wants of this host, from its ComputeNode to what the agent does,
//! and the report that goes back.

mod follow;
mod kept;
mod ledger;
mod publish;
mod report;

pub(crate) use follow::{Follower, Seen, watched};
pub(crate) use ledger::{Ledger, LedgerFile};
pub(crate) use publish::{Publisher, Reports};
