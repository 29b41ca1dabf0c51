//! Readiness of an agent: it is ready once the slices of its host serve, so that a rollout
//! waits before it continues with the next host. The wait is bounded: an agent whose slices do
//! not load can still forward requests to hosts that have them.

use crate::serve::slices::Slices;
use crate::wish::Seen;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Without a response of the API server, the previous slices count after this time.
const UNHEARD: Duration = Duration::from_secs(10);
/// Longest wait for slices.
const LIMIT: Duration = Duration::from_secs(90);
/// Interval between checks.
const LOOK: Duration = Duration::from_millis(200);

/// Returns once this host's slices serve or failed, or the wait is over.
pub(super) async fn settled(slices: Slices, seen: watch::Receiver<Seen>) {
    let began = Instant::now();
    loop {
        let is_told = !seen.borrow().uid.is_empty();
        let pending = slices.totals().pending;
        if is_settled(is_told, pending, began.elapsed()) {
            if pending > 0 {
                tracing::warn!(pending, "ready, though slices are still on their way");
            }
            return;
        }
        sleep(LOOK).await;
    }
}

/// Whether the wait is over: `is_told` says that the host's ComputeNode was seen, `pending` how
/// many of its slices are still loading.
fn is_settled(is_told: bool, pending: u32, waited: Duration) -> bool {
    let knows = is_told || waited >= UNHEARD;
    waited >= LIMIT || knows && pending == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_ready_when_what_it_was_told_to_hold_serves() {
        let second = Duration::from_secs(1);
        assert!(is_settled(true, 0, Duration::ZERO));
        assert!(!is_settled(true, 1, UNHEARD));
        // The ledger may not have everything.
        assert!(!is_settled(false, 0, UNHEARD - second));
        assert!(is_settled(false, 0, UNHEARD));
        assert!(!is_settled(false, 2, LIMIT - second));
        assert!(is_settled(true, 2, LIMIT));
    }
}
