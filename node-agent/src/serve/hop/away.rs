//! Unreachable hosts, for requests that can be answered without them.

use super::Hops;
use super::usual::Usual;
use crate::serve::deadline::Deadline;
use crate::telemetry::SegmentKey;
use lamina_crds::Hop;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two tries to reach a host again.
const PAUSE: Duration = Duration::from_secs(1);
/// A try takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// A host that no request needed for this long is no longer tried.
const UNUSED: Duration = Duration::from_secs(60);

/// Addresses of hosts that are away. They are retried in the background, and no request waits for
/// that. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Away {
    /// When a request last needed each.
    known: Arc<Mutex<BTreeMap<String, Instant>>>,
    /// Usual times of reachable hosts.
    usual: Arc<Mutex<Usual>>,
}

impl Away {
    /// Whether `host` is known to be away.
    pub(super) fn is_away(&self, host: &Hop) -> bool {
        let mut known = self.lock();
        let asked = known.get_mut(&host.address);
        asked.map(|at| *at = Instant::now()).is_some()
    }

    /// How long a request of `bytes` for `segment` waits for a host that may be away.
    pub(super) fn patience(&self, segment: &SegmentKey, bytes: u64) -> Duration {
        let usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        usual.patience(segment, bytes)
    }

    /// A request of `bytes` for `segment` was answered after `took`.
    pub(super) fn answered(&self, segment: &SegmentKey, bytes: u64, took: Duration) {
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        usual.took(segment, bytes, took);
    }

    /// `host` did not answer. It is retried until it does.
    pub(super) fn mark(&self, host: &Hop, hops: &Hops) {
        let before = self.lock().insert(host.address.clone(), Instant::now());
        if before.is_none() {
            tokio::spawn(self.clone().follow(host.clone(), hops.clone()));
        }
    }

    async fn follow(self, host: Hop, hops: Hops) {
        loop {
            tokio::time::sleep(PAUSE).await;
            // There may be an open connection on which nobody answers.
            let reached = hops.ping(&host, Deadline::after(PATIENCE)).await;
            let mut known = self.lock();
            let unused = known
                .get(&host.address)
                .is_none_or(|at| at.elapsed() > UNUSED);
            if reached.is_ok() || unused {
                known.remove(&host.address);
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
