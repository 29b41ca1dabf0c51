//! The cache folder of content-addressed blobs, filled from the operator's
//! store without taking the link from requests.

mod fetch;
mod inbound;
mod operator;
mod pace;
mod put;
mod source;

pub use inbound::{InboundTransfer, InboundTransfers};
pub use put::PutError;
pub use source::{BlobError, BlobSource};

use crate::net::OperatorEndpoint;
use crate::telemetry::Telemetry;
use async_trait::async_trait;
use lamina_model::Digest;
use operator::Operator;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// Blobs by digest in a folder: `<digest>`, or `<digest>.part` while one comes.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    operator: Operator,
    telemetry: Telemetry,
    inbound: InboundTransfers,
    /// Held for each chunk: blobs that come at once share one pace.
    turn: tokio::sync::Mutex<()>,
    /// One lock per blob that is being looked for, so that it comes once.
    wanted: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// A file of the cache folder, for [`Blobs::evict`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cached {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Blobs {
    /// The folder `dir`, made where it is missing. `token_file` holds what the
    /// operator wants as `authorization: Bearer`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(
        dir: PathBuf,
        endpoint: OperatorEndpoint,
        telemetry: Telemetry,
        token_file: Option<PathBuf>,
    ) -> Result<Self, BlobError> {
        std::fs::create_dir_all(&dir).map_err(disk(&dir))?;
        Ok(Self {
            dir,
            operator: Operator::new(endpoint, token_file),
            telemetry,
            inbound: InboundTransfers::default(),
            turn: tokio::sync::Mutex::default(),
            wanted: Mutex::default(),
        })
    }

    /// What came from the operator's node, to be drained for samples of that link.
    pub fn inbound(&self) -> InboundTransfers {
        self.inbound.clone()
    }

    /// Removes the blobs that were not used for longest until at most
    /// `limit_bytes` are held, but none of `keep` and none that is coming.
    /// Gives the bytes freed.
    ///
    /// # Errors
    /// The folder cannot be read or a file not be removed.
    pub async fn evict(&self, keep: &BTreeSet<Digest>, limit_bytes: u64) -> Result<u64, BlobError> {
        let files = self.list().await.map_err(disk(&self.dir))?;
        let is_kept = |path: &Path| {
            let name = path.file_stem().and_then(|n| n.to_str());
            let digest = name.and_then(|n| n.parse::<Digest>().ok());
            digest.is_some_and(|d| keep.contains(&d) || self.is_wanted(&d))
        };
        let mut freed = 0;
        for file in to_evict(files, is_kept, limit_bytes) {
            let removed = tokio::fs::remove_file(&file.path).await;
            removed.map_err(disk(&file.path))?;
            freed += file.bytes;
        }
        Ok(freed)
    }

    async fn list(&self) -> io::Result<Vec<Cached>> {
        let mut entries = tokio::fs::read_dir(&self.dir).await?;
        let mut files = Vec::new();
        while let Some(entry) = entries.next_entry().await? {
            let metadata = entry.metadata().await?;
            if metadata.is_file() {
                files.push(Cached {
                    path: entry.path(),
                    bytes: metadata.len(),
                    used: metadata.modified()?,
                });
            }
        }
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn lock_for(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = wanted.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        wanted.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }

    fn is_wanted(&self, digest: &Digest) -> bool {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.get(digest).is_some_and(|l| l.strong_count() > 0)
    }
}

#[async_trait]
impl BlobSource for Blobs {
    async fn ensure(&self, digest: &Digest, bytes: u64) -> Result<PathBuf, BlobError> {
        let lock = self.lock_for(digest);
        let _alone = lock.lock().await;
        let path = self.path(digest.as_str());
        // It got its name only after its content was verified and on the disk.
        match tokio::fs::metadata(&path).await {
            Ok(held) if held.len() == bytes => {
                touch(&path).await;
                Ok(path)
            }
            _ => self.fetch(digest, bytes).await,
        }
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

/// Marks a blob as used now. Where that fails it is only removed earlier.
async fn touch(path: &Path) {
    let path = path.to_owned();
    let touched = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::options().write(true).open(path)?;
        file.set_modified(SystemTime::now())
    });
    if let Ok(Err(error)) = touched.await {
        tracing::debug!(%error, "cannot mark a blob as used");
    }
}

/// SHA-256 of a file, off the runtime's threads.
pub(crate) async fn digest_of_file(path: &Path) -> io::Result<Digest> {
    let path = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        let mut file = std::fs::File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => return Ok(Digest::from_bytes(&hasher.finalize())),
                n => hasher.update(&buffer[..n]),
            }
        }
    });
    hashed.await.map_err(io::Error::other)?
}

fn disk(path: &Path) -> impl Fn(io::Error) -> BlobError {
    move |error| BlobError::Disk {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
