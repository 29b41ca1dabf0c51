//! Protects the host from an untrusted model file.
//!
//! Two rooms: [`scan`] reads a TorchScript archive without libtorch and decides
//! whether it may be opened at all; [`lock`] removes from this process all
//! rights that opening one does not need. The scan is a filter with good
//! messages, not a proof: anything that passes it is confined by the lock.

pub mod lock;
pub mod scan;
