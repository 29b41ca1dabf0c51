//! Crash-safe file writes: either the old or the new file survives, even on a full disk.

mod document;

pub(crate) use document::Document;

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Replaces the file at `path` by `content`. Blocks until it is on disk.
///
/// # Errors
/// The disk is full, or the folder missing or read-only.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_by(path, content, fs::OpenOptions::new())
}

/// As [`replace`], with a file that only its owner may read.
///
/// # Errors
/// As [`replace`].
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    // One left by a crash may be readable by others.
    match fs::remove_file(new_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.mode(0o600);
    replace_by(path, content, options)
}

fn new_of(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn replace_by(path: &Path, content: &[u8], mut options: fs::OpenOptions) -> io::Result<()> {
    let new = new_of(path);
    let mut file = options.write(true).create(true).truncate(true).open(&new)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // A partial file would take the space that is missing.
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    fs::rename(&new, path)
}

/// Whether the disk is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Space that is reserved early for files that must be written even when the disk is full.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// More than the ledger of a host with a thousand slices.
    const BYTES: usize = 2 << 20;

    /// For the file at `path`.
    pub(crate) fn beside(path: &Path) -> Self {
        Self {
            path: path.with_extension("reserve"),
        }
    }

    /// Reserves it if needed; if there is no space, a later call will do.
    pub(crate) fn take(&self) {
        let whole = Self::BYTES as u64;
        if fs::metadata(&self.path).is_ok_and(|held| held.len() == whole) {
            return;
        }
        // Written, not only sized: a hole reserves no space.
        if let Err(error) = replace(&self.path, &vec![1; Self::BYTES]) {
            tracing::debug!(%error, "no space is kept for the ledger");
        }
    }

    /// Frees its space.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(crate) fn give_up(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_is_taken_once_and_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.json");
        let reserve = Reserve::beside(&file);
        reserve.give_up().unwrap();
        reserve.take();
        let held = folder.path().join("ledger.reserve");
        let taken = fs::metadata(&held).unwrap();
        assert_eq!(taken.len(), 2 << 20);
        reserve.take();
        let same = fs::metadata(&held).unwrap();
        assert_eq!(taken.modified().unwrap(), same.modified().unwrap());
        reserve.give_up().unwrap();
        assert!(!held.exists());
        let nowhere = Reserve::beside(&folder.path().join("nowhere/ledger.json"));
        nowhere.take();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
