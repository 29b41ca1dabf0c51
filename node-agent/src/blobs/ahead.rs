//! Standby blobs, which a later move may need: fetched while nothing else is, in short bursts,
//! and never at the expense of serving.

use super::pace::{Burst, Purpose};
use super::{BlobError, Blobs, space};
use lamina_model::Digest;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Standby blobs may use one in this many bytes of the space for blobs.
const SHARE: u64 = 4;
/// A blob that could not be fetched, or was evicted, is tried again after this time.
const AGAIN: Duration = Duration::from_secs(60);

/// The standby blobs.
#[derive(Debug, Default)]
pub(super) struct Standby {
    /// The wanted ones, with their sizes.
    wanted: Mutex<BTreeMap<Digest, u64>>,
    burst: Mutex<Burst>,
    /// Number of fetches for serving slices.
    urgent: watch::Sender<usize>,
}

/// Counts as a fetch for serving until dropped.
pub(super) struct Urgent<'a>(&'a watch::Sender<usize>);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Standby {
    /// Starts a fetch for serving: standby fetches wait.
    pub(super) fn urgent(&self) -> Urgent<'_> {
        self.urgent.send_modify(|count| *count += 1);
        Urgent(&self.urgent)
    }

    /// Returns once nothing is fetched for serving.
    pub(super) async fn quiet(&self) {
        // The sender lives as long as this.
        let _ = self.urgent.subscribe().wait_for(|count| *count == 0).await;
    }

    /// The pause after a chunk that took this long.
    pub(super) fn pause(&self, requests_under_way: u32, took: Duration) -> Duration {
        let mut burst = self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        burst.pause(requests_under_way, took)
    }

    /// Whether `digest` is one of them.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.contains_key(digest)
    }
}

impl Blobs {
    /// Sets the standby blobs. When space is short they are evicted before kept blobs and after all
    /// others.
    pub fn stand_by(&self, blobs: &BTreeMap<Digest, u64>) {
        let wanted = self.standby.wanted.lock();
        let mut wanted = wanted.unwrap_or_else(PoisonError::into_inner);
        wanted.clone_from(blobs);
    }

    /// Bytes of the standby blobs in the cache.
    pub fn standby_bytes(&self) -> u64 {
        let wanted = self.standby.wanted.lock();
        let wanted = wanted.unwrap_or_else(PoisonError::into_inner);
        let held = wanted.iter().filter(|(d, _)| self.inventory.holds(d));
        held.map(|(_, bytes)| bytes).sum()
    }

    /// Fetches the missing ones of `wanted` that fit, repeatedly until dropped.
    pub async fn fetch_ahead(&self, wanted: &BTreeMap<Digest, u64>) {
        loop {
            for (digest, bytes) in wanted {
                if self.inventory.holds(digest) {
                    continue;
                }
                match self.fetch_one_ahead(digest, *bytes).await {
                    Ok(true) => tracing::debug!(digest = digest.short(), "fetched ahead"),
                    Ok(false) => {
                        tracing::debug!(digest = digest.short(), "no room for a blob ahead");
                    }
                    Err(error) => tracing::debug!(%error, "a blob is not fetched ahead"),
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Returns whether there was room.
    async fn fetch_one_ahead(&self, digest: &Digest, bytes: u64) -> Result<bool, BlobError> {
        self.standby.quiet().await;
        let lock = self.lock_for(digest);
        let _alone = lock.lock().await;
        if !self.has_room_ahead(bytes).await? {
            return Ok(false);
        }
        self.fetch(digest, bytes, Purpose::Ahead).await?;
        self.inventory.add(digest);
        Ok(true)
    }

    /// Evicts unreferenced blobs for `bytes`; returns whether there is room.
    async fn has_room_ahead(&self, bytes: u64) -> Result<bool, BlobError> {
        if self.standby_bytes().saturating_add(bytes) > self.limit_bytes / SHARE {
            return Ok(false);
        }
        let files = self.list().await?;
        let held: u64 = files.iter().map(|file| file.bytes).sum();
        let free = self.ask_free().await?;
        let limit = self.limit_bytes.saturating_sub(bytes);
        let limit = limit.min(space::allowed(held, free, bytes));
        let freed = self.evict_unnamed(files, limit).await?;
        Ok(held.saturating_sub(freed) <= limit)
    }
}
