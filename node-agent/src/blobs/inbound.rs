use std::sync::{Arc, Mutex, PoisonError};

/// Samples kept between two drains; fetching a large model while nobody drains
/// must not take memory.
const KEPT_SAMPLES: usize = 256;

/// One piece of a blob that came from the operator's node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InboundTransfer {
    /// Bytes of content.
    pub bytes: u64,
    /// From asking to the last byte, in seconds: one round trip and the transfer.
    pub seconds: f64,
}

/// Transfers from the operator's node since they were last asked for: passive
/// samples of the inbound link. Clones share their content.
#[derive(Debug, Clone, Default)]
pub struct InboundTransfers {
    seen: Arc<Mutex<Vec<InboundTransfer>>>,
}

impl InboundTransfers {
    /// Everything since the last drain, oldest first.
    pub fn drain(&self) -> Vec<InboundTransfer> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn note(&self, transfer: InboundTransfer) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < KEPT_SAMPLES {
            seen.push(transfer);
        }
    }
}
