use std::sync::{Arc, Mutex, PoisonError};

/// Samples kept between two drains, so that fetching a large model without draining takes no
/// memory.
const KEPT_SAMPLES: usize = 256;

/// One chunk of a blob from the operator's node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InboundTransfer {
    /// Bytes of content.
    pub bytes: u64,
    /// From the request to the last byte, in seconds: one round trip and the transfer.
    pub seconds: f64,
}

/// Transfers from the operator's node since the last drain: passive samples of the inbound link.
/// Clones share their content.
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
