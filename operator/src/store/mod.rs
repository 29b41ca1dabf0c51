//! Content-addressed store of prepared models: blocks, probes, manifests, each
//! under its SHA-256.

mod bucket;
mod writer;

pub use bucket::Bucket;
pub use writer::BlobWriter;

use bytes::Bytes;
use futures::TryStreamExt;
use lamina_model::Digest;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Folder of the blobs inside the store.
const FOLDER: &str = "blobs";

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct BlobStore {
    objects: Arc<dyn ObjectStore>,
    /// When unneeded blobs were first seen, or put again: by a monotonic clock, unlike the times of
    /// files.
    unneeded: Arc<Mutex<BTreeMap<Digest, Instant>>>,
}

/// The operation failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum StoreError {
    #[error("blob {0} is not in the store")]
    NotFound(Digest),
    #[error("the content is {got}, expected {expected}; send it again")]
    HashMismatch { expected: Digest, got: Digest },
    #[error("blob {digest} has {size} bytes, asked for {length} from {offset}")]
    Range {
        digest: Digest,
        offset: u64,
        length: u64,
        size: u64,
    },
    #[error("the store's volume is full; give it more space or delete models")]
    Full(#[source] object_store::Error),
    #[error("the store's folder cannot be used; check that it exists and is writable")]
    Folder(#[source] std::io::Error),
    #[error("the certificates of authorities for the store's endpoint cannot be read")]
    Authorities(#[source] std::io::Error),
    #[error("the store's bucket cannot be used; check the settings of `operator.store.s3`")]
    Bucket(#[source] object_store::Error),
    #[error("the store failed; see the cause, and check its volume or bucket")]
    Storage(#[source] object_store::Error),
}

/// What [`BlobStore::gc`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: u64,
    /// Their size.
    pub bytes: u64,
}

impl BlobStore {
    /// A store in the folder `dir` of this machine, which is created if it is
    /// missing. Earlier contents are kept.
    ///
    /// # Errors
    /// The folder cannot be created or used.
    pub fn local(dir: &std::path::Path) -> Result<Self, StoreError> {
        let blobs = dir.join(FOLDER);
        std::fs::create_dir_all(&blobs).map_err(StoreError::Folder)?;
        remove_unfinished(&blobs).map_err(StoreError::Folder)?;
        let files = object_store::local::LocalFileSystem::new_with_prefix(dir)
            .map_err(StoreError::Storage)?
            .with_fsync(true);
        Ok(Self::new(Arc::new(files)))
    }

    /// A store on `objects`, such as a bucket.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self {
            objects,
            unneeded: Arc::default(),
        }
    }

    /// Stores `content` under its digest, whether or not it is there already.
    ///
    /// # Errors
    /// The volume is full or does not work.
    pub async fn put(&self, content: Bytes) -> Result<Digest, StoreError> {
        let digest = Digest::of(&content);
        if self.renew(&digest).await? {
            return Ok(digest);
        }
        let payload = PutPayload::from_bytes(content);
        self.objects
            .put(&location(&digest), payload)
            .await
            .map_err(storage)?;
        Ok(digest)
    }

    /// Stores a content that arrives in pieces and must have this digest.
    ///
    /// # Errors
    /// The volume does not work.
    pub async fn writer(&self, digest: Digest) -> Result<BlobWriter, StoreError> {
        let upload = self
            .objects
            .put_multipart(&location(&digest))
            .await
            .map_err(storage)?;
        Ok(BlobWriter::new(digest, upload))
    }

    /// The whole content, verified again: disks fail.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub async fn get(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        let result = self.objects.get(&location(digest)).await;
        let found = result.map_err(|e| not_found(digest, e))?;
        let content = found.bytes().await.map_err(|e| not_found(digest, e))?;
        let got = Digest::of(&content);
        if got == *digest {
            Ok(content)
        } else {
            Err(StoreError::HashMismatch {
                expected: digest.clone(),
                got,
            })
        }
    }

    /// `length` bytes from `offset`; fewer at the end of the blob. They are not
    /// verified: the receiver does that.
    ///
    /// # Errors
    /// It is missing, or ends before `offset`.
    pub async fn get_range(
        &self,
        digest: &Digest,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let size = self
            .size(digest)
            .await?
            .ok_or_else(|| StoreError::NotFound(digest.clone()))?;
        if offset > size {
            return Err(StoreError::Range {
                digest: digest.clone(),
                offset,
                length,
                size,
            });
        }
        let end = offset.saturating_add(length).min(size);
        if end == offset {
            return Ok(Bytes::new());
        }
        self.objects
            .get_range(&location(digest), offset..end)
            .await
            .map_err(|e| not_found(digest, e))
    }

    /// Whether the blob is there.
    ///
    /// # Errors
    /// The volume does not work.
    pub async fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.size(digest).await?.is_some())
    }

    /// Size of the blob in bytes; `None` if it is missing.
    ///
    /// # Errors
    /// The volume does not work.
    pub async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match self.objects.head(&location(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(storage(error)),
        }
    }

    /// Bytes of all blobs together.
    ///
    /// # Errors
    /// The volume does not work.
    pub async fn total_bytes(&self) -> Result<u64, StoreError> {
        let blobs = self.objects.list(Some(&Path::from(FOLDER)));
        blobs
            .try_fold(0, |sum, meta| async move { Ok(sum + meta.size) })
            .await
            .map_err(storage)
    }

    /// Whether the blob is there; if so it counts as new for [`BlobStore::gc`].
    ///
    /// # Errors
    /// The volume does not work.
    pub async fn renew(&self, digest: &Digest) -> Result<bool, StoreError> {
        // Note it first, so that a collection in between keeps it.
        self.unneeded().insert(digest.clone(), Instant::now());
        let there = self.has(digest).await?;
        if !there {
            self.unneeded().remove(digest);
        }
        Ok(there)
    }

    /// Removes every blob that is not in `keep`, and that this process has not found needed
    /// or put within `min_age`: blocks of a model that is being prepared arrive before
    /// their manifest.
    ///
    /// # Errors
    /// The volume does not work; blobs removed before stay removed.
    pub async fn gc(
        &self,
        keep: &BTreeSet<Digest>,
        min_age: Duration,
    ) -> Result<Collected, StoreError> {
        let now = Instant::now();
        let found: Vec<_> = self
            .objects
            .list(Some(&Path::from(FOLDER)))
            .try_collect()
            .await
            .map_err(storage)?;
        let there: BTreeSet<Digest> = found
            .iter()
            .filter_map(|meta| digest_of(&meta.location))
            .collect();
        let mut collected = Collected::default();
        for meta in found {
            let Some(digest) = digest_of(&meta.location) else {
                continue;
            };
            if keep.contains(&digest) {
                self.unneeded().remove(&digest);
                continue;
            }
            let since = *self.unneeded().entry(digest.clone()).or_insert(now);
            if now.saturating_duration_since(since) < min_age {
                continue;
            }
            self.objects.delete(&meta.location).await.map_err(storage)?;
            collected.blobs += 1;
            collected.bytes += meta.size;
            self.unneeded().remove(&digest);
        }
        let is_young = |at: &Instant| now.saturating_duration_since(*at) < min_age;
        self.unneeded()
            .retain(|digest, at| there.contains(digest) || is_young(at));
        Ok(collected)
    }

    fn unneeded(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Instant>> {
        self.unneeded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `blobs/ab/abcd…`: two digits of fan-out keep folders small.
fn location(digest: &Digest) -> Path {
    let name = digest.as_str();
    Path::from_iter([FOLDER, &name[..2], name])
}

fn digest_of(location: &Path) -> Option<Digest> {
    location.filename()?.parse().ok()
}

fn not_found(digest: &Digest, error: object_store::Error) -> StoreError {
    match error {
        object_store::Error::NotFound { .. } => StoreError::NotFound(digest.clone()),
        error => storage(error),
    }
}

/// Distinguishes a full volume, which people can fix, from other errors.
fn storage(error: object_store::Error) -> StoreError {
    use std::io::ErrorKind;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        {
            return StoreError::Full(error);
        }
        cause = inner.source();
    }
    StoreError::Storage(error)
}

/// Removes incomplete files of a killed process: `<digest>#<n>`.
fn remove_unfinished(blobs: &std::path::Path) -> std::io::Result<()> {
    for folder in std::fs::read_dir(blobs)? {
        let folder = folder?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            if file.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, BlobStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn what_was_put_is_there_after_a_restart() {
        let (folder, store) = store();
        let digest = store.put(Bytes::from("hello")).await.unwrap();
        drop(store);
        let store = BlobStore::local(folder.path()).unwrap();
        assert_eq!(store.get(&digest).await.unwrap(), "hello");
        assert_eq!(store.size(&digest).await.unwrap(), Some(5));
        assert_eq!(store.total_bytes().await.unwrap(), 5);
        assert_eq!(store.get_range(&digest, 1, 3).await.unwrap(), "ell");
        assert_eq!(store.get_range(&digest, 3, 99).await.unwrap(), "lo");
        let beyond = store.get_range(&digest, 6, 1).await.unwrap_err();
        assert!(matches!(beyond, StoreError::Range { size: 5, .. }));
    }

    #[tokio::test]
    async fn damage_is_noticed() {
        let (folder, store) = store();
        let digest = store.put(Bytes::from("hello")).await.unwrap();
        let file = folder.path().join(location(&digest).to_string());
        std::fs::write(file, "jello").unwrap();
        let error = store.get(&digest).await.unwrap_err();
        assert!(matches!(error, StoreError::HashMismatch { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_blob_in_pieces_appears_as_a_whole_or_not_at_all() {
        let (folder, store) = store();
        let digest = Digest::of(b"two pieces");
        let mut writer = store.writer(digest.clone()).await.unwrap();
        writer.write(Bytes::from("two ")).await.unwrap();
        assert!(!store.has(&digest).await.unwrap());
        writer.write(Bytes::from("pieces")).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(store.get(&digest).await.unwrap(), "two pieces");
        let other = Digest::of(b"something");
        let mut writer = store.writer(other.clone()).await.unwrap();
        writer.write(Bytes::from("else")).await.unwrap();
        let error = writer.finish().await.unwrap_err();
        assert!(matches!(error, StoreError::HashMismatch { .. }));
        assert!(!store.has(&other).await.unwrap());
        // An incomplete blob of a killed process.
        let half = folder.path().join(format!("{}#1", location(&other)));
        std::fs::create_dir_all(half.parent().unwrap()).unwrap();
        std::fs::write(&half, "els").unwrap();
        drop(BlobStore::local(folder.path()).unwrap());
        assert!(!half.exists());
    }

    #[tokio::test]
    async fn collecting_leaves_what_is_needed_or_new() {
        let (folder, store) = store();
        let needed = store.put(Bytes::from("needed")).await.unwrap();
        let gone = store.put(Bytes::from("gone")).await.unwrap();
        let keep = BTreeSet::from([needed.clone()]);
        let none = store.gc(&keep, Duration::from_secs(60)).await.unwrap();
        assert_eq!(none, Collected::default());
        tokio::time::sleep(Duration::from_millis(1100)).await;
        // Whatever a clock does to the times of files.
        let renewed = store.put(Bytes::from("renewed")).await.unwrap();
        let file = folder.path().join(location(&renewed).to_string());
        let long_ago = std::time::SystemTime::UNIX_EPOCH;
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.set_modified(long_ago).unwrap();
        let once = store.gc(&keep, Duration::from_secs(1)).await.unwrap();
        assert_eq!(once, Collected { blobs: 1, bytes: 4 });
        assert!(!store.has(&gone).await.unwrap());
        for there in [needed, renewed] {
            assert!(store.has(&there).await.unwrap());
        }
    }
}
