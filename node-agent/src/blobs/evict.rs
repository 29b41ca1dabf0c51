//! Which blobs go when there are more than the limit allows.

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
    /// Removes the blobs that were not used for longest until no more than the limit
    /// are held, but none that is kept and none that is coming. Gives the bytes freed.
    ///
    /// # Errors
    /// The folder cannot be read or a file not be removed.
    pub async fn evict(&self) -> Result<u64, BlobError> {
        let files = self.list().await?;
        self.evict_of(files, self.limit_bytes).await
    }

    /// Makes room for `bytes`; whether there is.
    pub(super) async fn has_room_for(&self, bytes: u64) -> Result<bool, BlobError> {
        let Some(limit_bytes) = self.limit_bytes.checked_sub(bytes) else {
            return Ok(false);
        };
        let files = self.list().await?;
        let held: u64 = files.iter().map(|f| f.bytes).sum();
        let freed = self.evict_of(files, limit_bytes).await?;
        Ok(held.saturating_sub(freed) <= limit_bytes)
    }

    pub(super) async fn evict_of(
        &self,
        files: Vec<Cached>,
        limit_bytes: u64,
    ) -> Result<u64, BlobError> {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let is_kept =
            |path: &Path| digest_of(path).is_some_and(|d| kept.contains(&d) || self.is_wanted(&d));
        let mut freed = 0;
        for file in to_evict(files, is_kept, limit_bytes) {
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

/// What to remove, in order, so that the rest fits into `limit_bytes`.
fn to_evict(
    mut files: Vec<Cached>,
    is_kept: impl Fn(&Path) -> bool,
    limit_bytes: u64,
) -> Vec<Cached> {
    let mut held: u64 = files.iter().map(|f| f.bytes).sum();
    files.retain(|f| !is_kept(&f.path));
    files.sort_by_key(|f| f.used);
    files
        .into_iter()
        .take_while(|file| {
            let is_over = held > limit_bytes;
            held = held.saturating_sub(file.bytes);
            is_over
        })
        .collect()
}
