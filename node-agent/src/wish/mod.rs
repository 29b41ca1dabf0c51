//! From the operator's wish for this host, in its ComputeNode, to the agent's actions,
//! and the report that goes back.

mod follow;
mod kept;
mod ledger;
mod publish;
mod report;

pub(crate) use follow::{Follower, Seen, watched};
pub(crate) use ledger::{Ledger, LedgerFile};
pub(crate) use publish::{Publisher, Reports};
