//! Which blobs are evicted when the cache exceeds its limit.

use super::{BlobError, Blobs, digest_of, disk};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::SystemTime;

/// A file of the cache folder, for [`Blobs::evict`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cached {
    pub path: PathBuf,
    pub bytes: u64,
    pub used: SystemTime,
}

impl Blobs {
    /// Removes the least recently used blobs until the limit is met, but none that is
    /// kept or being fetched. Returns the bytes freed.
    ///
    /// # Errors
    /// The folder cannot be read or a file not be removed.
    pub async fn evict(&self) -> Result<u64, BlobError> {
        let files = self.list().await?;
        self.evict_of(files, self.limit_bytes).await
    }

    /// Makes room for `bytes`; returns whether there is enough.
    pub(super) async fn has_room_for(&self, bytes: u64) -> Result<bool, BlobError> {
        let Some(limit_bytes) = self.limit_bytes.checked_sub(bytes) else {
            return Ok(false);
        };
        let files = self.list().await?;
        let held: u64 = files.iter().map(|f| f.bytes).sum();
        let freed = self.evict_of(files, limit_bytes).await?;
        Ok(held.saturating_sub(freed) <= limit_bytes)
    }

    /// Removes blobs that are not kept, standby blobs last, until the limit is met. Returns the
    /// bytes freed.
    pub(super) async fn evict_of(
        &self,
        files: Vec<Cached>,
        limit_bytes: u64,
    ) -> Result<u64, BlobError> {
        self.remove(to_evict(files, |path| self.use_of(path), limit_bytes))
            .await
    }

    /// As [`Blobs::evict_of`], but no standby blobs.
    pub(super) async fn evict_unnamed(
        &self,
        mut files: Vec<Cached>,
        limit_bytes: u64,
    ) -> Result<u64, BlobError> {
        let held: u64 = files.iter().map(|f| f.bytes).sum();
        files.retain(|f| self.use_of(&f.path) == Use::None);
        let unnamed: u64 = files.iter().map(|f| f.bytes).sum();
        let limit_bytes = limit_bytes.saturating_sub(held - unnamed);
        self.remove(to_evict(files, |_| Use::None, limit_bytes))
            .await
    }

    /// The use of the file at `path`.
    fn use_of(&self, path: &Path) -> Use {
        let Some(digest) = digest_of(path) else {
            return Use::None;
        };
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.contains(&digest) || self.is_wanted(&digest) {
            Use::Kept
        } else if self.standby.has(&digest) {
            Use::Ahead
        } else {
            Use::None
        }
    }

    async fn remove(&self, files: Vec<Cached>) -> Result<u64, BlobError> {
        let mut freed = 0;
        for file in files {
            let removed = tokio::fs::remove_file(&file.path).await;
            removed.map_err(disk(&file.path))?;
            if let Some(digest) = digest_of(&file.path) {
                self.inventory.remove(&digest);
            }
            freed += file.bytes;
        }
        Ok(freed)
    }
}

/// The use of a file, in order of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// None that this host knows of.
    None,
    /// A possible later move.
    Ahead,
    /// It serves, or is being fetched.
    Kept,
}

/// The files to remove, in order, so that the rest fits into `limit_bytes`.
fn to_evict(files: Vec<Cached>, use_of: impl Fn(&Path) -> Use, limit_bytes: u64) -> Vec<Cached> {
    let mut held: u64 = files.iter().map(|f| f.bytes).sum();
    let used = files.into_iter().map(|file| (use_of(&file.path), file));
    let mut removable: Vec<(Use, Cached)> = used.filter(|(u, _)| *u != Use::Kept).collect();
    removable.sort_by_key(|(u, file)| (*u, file.used));
    removable
        .into_iter()
        .map(|(_, file)| file)
        .take_while(|file| {
            let is_over = held > limit_bytes;
            held = held.saturating_sub(file.bytes);
            is_over
        })
        .collect()
}
