//! The cache folder of content-addressed blobs, filled from the operator's
//! store without starving requests of bandwidth.

mod ahead;
mod evict;
mod fetch;
mod inbound;
mod inventory;
mod operator;
mod pace;
mod put;
mod refill;
mod source;
mod space;

pub use inbound::{InboundTransfer, InboundTransfers};
pub use inventory::InventoryChanges;
pub use put::PutError;
pub use source::{BlobError, BlobSource};
pub(crate) use space::{RESERVE_BYTES, free_bytes};

use crate::net::OperatorEndpoint;
use crate::telemetry::Telemetry;
use ahead::Standby;
use async_trait::async_trait;
use evict::Cached;
use inventory::Inventory;
use lamina_model::Digest;
use operator::Operator;
use pace::Purpose;
use refill::Asked;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

/// Blobs by digest in a folder: `<digest>`, or `<digest>.part` while one is being fetched.
#[derive(Debug)]
pub struct Blobs {
    dir: PathBuf,
    limit_bytes: u64,
    free_bytes: space::FreeBytes,
    operator: Operator,
    telemetry: Telemetry,
    inbound: InboundTransfers,
    /// Held for each chunk: concurrent fetches share one pace.
    turn: tokio::sync::Mutex<()>,
    /// One lock per requested blob, so that it is fetched once.
    wanted: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    inventory: Inventory,
    /// Never removed.
    kept: Mutex<BTreeSet<Digest>>,
    asked: Asked,
    standby: Standby,
}

/// Options of the cache folder.
#[derive(Debug, Clone, Default)]
pub struct BlobOptions {
    /// The folder, created if missing.
    pub dir: PathBuf,
    /// Limit beyond which blobs that are not kept are removed.
    pub limit_bytes: u64,
    /// File with the operator's `authorization: Bearer` token.
    pub token_file: Option<PathBuf>,
}

impl Blobs {
    /// The folder of `options` and its contents. Blocks.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(
        options: BlobOptions,
        endpoint: OperatorEndpoint,
        telemetry: Telemetry,
    ) -> Result<Self, BlobError> {
        let BlobOptions {
            dir,
            limit_bytes,
            token_file,
        } = options;
        std::fs::create_dir_all(&dir).map_err(disk(&dir))?;
        let held = list(&dir).map_err(disk(&dir))?;
        // Incomplete ones have another name.
        let held = held
            .iter()
            .filter_map(|f| f.path.file_name()?.to_str()?.parse().ok());
        Ok(Self {
            inventory: Inventory::of(held.collect()),
            dir,
            limit_bytes,
            free_bytes: space::free_bytes,
            operator: Operator::new(endpoint, token_file),
            telemetry,
            inbound: InboundTransfers::default(),
            turn: tokio::sync::Mutex::default(),
            wanted: Mutex::default(),
            kept: Mutex::default(),
            asked: Asked::default(),
            standby: Standby::default(),
        })
    }

    /// Digests of all blobs held; [`Blobs::changes`] counts from here.
    pub fn held(&self) -> BTreeSet<Digest> {
        self.inventory.whole()
    }

    /// Blobs that came and went since the last query.
    pub fn changes(&self) -> InventoryChanges {
        self.inventory.changes()
    }

    /// From now on `digests` are kept, and all others may be removed.
    pub fn keep(&self, digests: BTreeSet<Digest>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }

    /// Transfers from the operator's node, to be drained as samples of that link.
    pub fn inbound(&self) -> InboundTransfers {
        self.inbound.clone()
    }

    async fn list(&self) -> Result<Vec<Cached>, BlobError> {
        let dir = self.dir.clone();
        let listed = tokio::task::spawn_blocking(move || list(&dir)).await;
        let listed = listed.map_err(io::Error::other).and_then(|files| files);
        listed.map_err(disk(&self.dir))
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
        // It got its name only after its content was verified and on disk.
        match tokio::fs::metadata(&path).await {
            Ok(held) if held.len() == bytes => {
                touch(&path).await;
                Ok(path)
            }
            _ => {
                self.inventory.remove(digest);
                self.make_room(digest, bytes).await?;
                let _urgent = self.standby.urgent();
                let path = self.fetch(digest, bytes, Purpose::Serving).await?;
                self.inventory.add(digest);
                Ok(path)
            }
        }
    }
}

fn list(dir: &Path) -> io::Result<Vec<Cached>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
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

/// The blob of the file at `path`, which need not exist yet.
fn digest_of(path: &Path) -> Option<Digest> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Marks a blob as used now. If that fails, it is only removed earlier.
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
    move |error| {
        let path = path.to_owned();
        if crate::files::is_full(&error) {
            let (needs, free) = (0, 0);
            return BlobError::Full { path, needs, free };
        }
        let reason = error.to_string();
        BlobError::Disk { path, reason }
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
