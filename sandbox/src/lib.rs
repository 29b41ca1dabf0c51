//! What stands between an untrusted model file and the host.
//!
//! Two rooms: [`scan`] reads a TorchScript archive without libtorch and says
//! whether it may be opened at all; [`lock`] takes from this process what
//! opening one does not need. The scan is a filter with good messages, no
//! proof: whatever slips through it meets the lock.

pub mod lock;
pub mod scan;
