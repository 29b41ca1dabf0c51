//! Disk limit of a job. The kernel limits each file but not their sum, so the sum is watched from
//! outside.

use super::{Failure, Reason};
use lamina_crds::quantity::format_bytes;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Frozen and folded weights may be larger than the model's file by this factor.
const GROWTH: u64 = 4;
/// Blocks of a tiny model hold more code than weights.
const BYTES_AT_LEAST: u64 = 64 << 20;
/// Twice as many as a manifest of ten thousand blocks needs.
const ENTRIES: usize = 20_000;
/// In this time a fast disk writes no more than a small model may use anyway.
const INTERVAL: Duration = Duration::from_millis(100);

/// Size limit of everything made from a model of `model_bytes`, and of one file.
fn limit_bytes(model_bytes: u64) -> u64 {
    model_bytes.saturating_mul(GROWTH).max(BYTES_AT_LEAST)
}

/// A folder and its size limit.
#[derive(Debug, Clone)]
pub(super) struct DiskLimit {
    dir: PathBuf,
    bytes: u64,
}

/// The sizes found so far.
#[derive(Debug, Default)]
struct Found {
    bytes: u64,
    entries: usize,
}

impl DiskLimit {
    /// The limit for files made from `model` in `dir`.
    pub(super) fn of(model: &Path, dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            bytes: limit_bytes(fs::metadata(model)?.len()),
        })
    }

    /// The limit in bytes, also for one file.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns once process `pid` exceeds the limit.
    pub(super) async fn overflow(&self, pid: Option<u32>) -> Failure {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Err(failure) = self.look(pid).await {
                return failure;
            }
        }
    }

    /// Whether the files in the folder, and the removed but open ones of process `pid`, fit.
    pub(super) async fn look(&self, pid: Option<u32>) -> Result<(), Failure> {
        let disk = self.clone();
        let checking = tokio::task::spawn_blocking(move || disk.check(pid));
        checking
            .await
            .unwrap_or_else(|e| Err(refused(&format!("its folder cannot be looked into: {e}"))))
    }

    fn check(&self, pid: Option<u32>) -> Result<(), Failure> {
        let mut found = Found::default();
        self.add_folder(&mut found)
            .map_err(|e| refused(&format!("its folder cannot be looked into: {e}")))?;
        if let Some(pid) = pid {
            add_nameless(pid, &mut found);
        }
        if found.entries > ENTRIES {
            return Err(refused(&format!("it wrote more than {ENTRIES} files")));
        }
        if found.bytes > self.bytes {
            let limit = format_bytes(self.bytes);
            return Err(refused(&format!(
                "its files take more than {limit}, far more than itself"
            )));
        }
        Ok(())
    }

    fn add_folder(&self, found: &mut Found) -> io::Result<()> {
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            let Some(entries) = unless_gone(fs::read_dir(folder))? else {
                continue;
            };
            for entry in entries {
                let entry = entry?;
                found.entries += 1;
                if found.entries > ENTRIES {
                    return Ok(());
                }
                match unless_gone(entry.metadata())? {
                    Some(metadata) if metadata.is_dir() => folders.push(entry.path()),
                    Some(metadata) => found.bytes += metadata.len(),
                    None => {}
                }
            }
        }
        Ok(())
    }
}

/// Removed files take space until they are closed. Whatever cannot be read is gone with the
/// process.
fn add_nameless(pid: u32, found: &mut Found) {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return;
    };
    let files = open.flatten().filter_map(|e| fs::metadata(e.path()).ok());
    let nameless = files.filter(|file| file.is_file() && links(file) == 0);
    found.bytes += nameless.map(|file| file.len()).sum::<u64>();
}

fn links(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(file)
}

/// The process continues during the check.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn refused(what: &str) -> Failure {
    let message = format!("the model could not be prepared: {what}");
    Failure::new(Reason::PrepareFailed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(dir: &Path) -> DiskLimit {
        DiskLimit {
            dir: dir.to_owned(),
            bytes: 1000,
        }
    }

    #[test]
    fn files_of_all_folders_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(dir.path().join("one"), [0; 600]).unwrap();
        assert_eq!(limit(dir.path()).check(None), Ok(()));
        fs::write(inner.join("two"), [0; 401]).unwrap();
        let failure = limit(dir.path()).check(None).unwrap_err();
        assert!(!failure.retryable);
        assert!(failure.message.contains("take more than 1000"), "{failure}");
    }

    #[test]
    fn a_file_without_a_name_is_counted_while_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let this = Some(std::process::id());
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.set_len(1 << 30).unwrap();
        assert!(limit(dir.path()).check(this).is_err());
        assert_eq!(limit(dir.path()).check(None), Ok(()));
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(limit(&dir.path().join("later")).check(None), Ok(()));
    }

    #[test]
    fn small_models_have_room_for_code_and_large_ones_for_copies_of_weights() {
        assert_eq!(limit_bytes(5), 64 << 20);
        assert_eq!(limit_bytes(1 << 30), 4 << 30);
        assert_eq!(limit_bytes(u64::MAX), u64::MAX);
    }
}
