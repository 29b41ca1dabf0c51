//! Free space on the disk of the cache folder, which other programs use too.

use super::evict::Cached;
use super::{BlobError, Blobs, disk};
use lamina_model::Digest;
use std::io;
use std::path::Path;

/// Space that blobs leave free, for the ledger and other small files.
pub(crate) const RESERVE_BYTES: u64 = 16 << 20;

/// Free bytes on the disk of a folder.
pub(super) type FreeBytes = fn(&Path) -> io::Result<u64>;

/// From the system.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Size limit of a model file, with `held` bytes of blobs, their `limit`, which is three quarters
/// of the volume, and `free` bytes on the disk. Its blocks take as much again.
const fn beside(held: u64, limit: u64, free: u64) -> u64 {
    let volume = limit.saturating_add(limit / 3);
    let share = volume.saturating_sub(held) / 2;
    let free = free.saturating_sub(RESERVE_BYTES) / 2;
    if share < free { share } else { free }
}

/// Bytes that blobs may use in all, with `held` bytes present and `free` bytes besides, so that
/// `coming` more fit and the reserve stays free.
pub(super) const fn allowed(held: u64, free: u64, coming: u64) -> u64 {
    held.saturating_add(free)
        .saturating_sub(coming)
        .saturating_sub(RESERVE_BYTES)
}

impl Blobs {
    /// On a disk whose free space `free_bytes` reports.
    #[cfg(test)]
    pub(super) fn on_disk(self, free_bytes: FreeBytes) -> Self {
        Self { free_bytes, ..self }
    }

    /// Makes room for the rest of a blob of `bytes` by evicting blobs that are not kept.
    ///
    /// # Errors
    /// There is none: kept blobs and foreign files fill the disk.
    pub(super) async fn make_room(&self, digest: &Digest, bytes: u64) -> Result<(), BlobError> {
        let files = self.list().await?;
        let part = self.path(&format!("{digest}.part"));
        let there = files.iter().find(|file| file.path == part);
        let coming = bytes.saturating_sub(there.map_or(0, |file| file.bytes));
        let (freed, free) = self.free(files, coming).await?;
        let free = free.saturating_add(freed);
        if free < coming.saturating_add(RESERVE_BYTES) {
            return Err(BlobError::Full {
                path: self.dir.clone(),
                needs: coming,
                free: free.saturating_sub(RESERVE_BYTES),
            });
        }
        Ok(())
    }

    /// Restores the reserve if others have used it, by evicting blobs that are not kept. Returns
    /// the bytes freed.
    ///
    /// # Errors
    /// As [`Blobs::evict`].
    pub async fn free_reserve(&self) -> Result<u64, BlobError> {
        let files = self.list().await?;
        Ok(self.free(files, 0).await?.0)
    }

    /// Current size limit for the file of a model to prepare.
    ///
    /// # Errors
    /// The folder or its disk cannot be read.
    pub async fn room_for_work(&self) -> Result<u64, BlobError> {
        let held = self.list().await?.iter().map(|file| file.bytes).sum();
        let free = self.ask_free().await?;
        Ok(beside(held, self.limit_bytes, free))
    }

    pub(super) async fn ask_free(&self) -> Result<u64, BlobError> {
        let (dir, ask) = (self.dir.clone(), self.free_bytes);
        let free = tokio::task::spawn_blocking(move || ask(&dir)).await;
        let free = free.map_err(io::Error::other).and_then(|free| free);
        free.map_err(disk(&self.dir))
    }

    /// Bytes freed to make room for `coming`, and those that were free before.
    async fn free(&self, files: Vec<Cached>, coming: u64) -> Result<(u64, u64), BlobError> {
        let free = self.ask_free().await?;
        let held = files.iter().map(|file| file.bytes).sum();
        let freed = self.evict_of(files, allowed(held, free, coming)).await?;
        Ok((freed, free))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_counts_and_the_reserve_does_not() {
        let mib = 1 << 20;
        assert_eq!(allowed(100 * mib, 50 * mib, 10 * mib), 124 * mib);
        assert_eq!(allowed(100 * mib, 0, 10 * mib), 74 * mib);
        assert_eq!(allowed(10 * mib, 0, 10 * mib), 0);
    }

    #[test]
    fn a_file_to_prepare_has_half_of_what_is_left() {
        let mib = 1 << 20;
        assert_eq!(beside(0, 3000 * mib, 100_000 * mib), 2000 * mib);
        assert_eq!(beside(3000 * mib, 3000 * mib, 100_000 * mib), 500 * mib);
        assert_eq!(beside(0, 3000 * mib, 216 * mib), 100 * mib);
        assert_eq!(beside(0, 3000 * mib, 0), 0);
        assert_eq!(beside(u64::MAX, u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn the_system_tells_what_is_free() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free_bytes(folder.path()).unwrap() > 0);
        assert!(free_bytes(&folder.path().join("none")).is_err());
    }
}
