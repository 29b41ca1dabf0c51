use async_trait::async_trait;
use lamina_model::Digest;
use std::path::PathBuf;

/// Where blocks come from: the cache folder, filled from the operator's store.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The path of blob `digest` (of `bytes` bytes) in the cache folder, its
    /// content verified; fetched first if needed.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn ensure(&self, digest: &Digest, bytes: u64) -> Result<PathBuf, BlobError>;
}

/// Why a blob is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The store answers but does not have it.
    #[error("the operator's store has no blob {digest}")]
    Unknown {
        /// The blob.
        digest: Digest,
    },
    /// The store does not answer.
    #[error("cannot fetch blob {digest}: {reason}", digest = digest.short())]
    Unavailable {
        /// The blob.
        digest: Digest,
        /// The connection's error.
        reason: String,
    },
    /// The received content is wrong.
    #[error("blob {digest} arrived as {got}; the store is damaged", digest = digest.short())]
    Mismatch {
        /// The blob.
        digest: Digest,
        /// Digest or size of the received content.
        got: String,
    },
    /// The disk is full, and nothing can be evicted.
    #[error(
        "the disk of {path} is full: {needs} more bytes are needed, {free} are free; free some, \
         or give the cache a larger one",
        path = path.display()
    )]
    Full {
        /// The folder or file.
        path: PathBuf,
        /// Missing bytes, if known.
        needs: u64,
        /// Bytes that blobs may still use.
        free: u64,
    },
    /// The cache folder cannot store it.
    #[error("cannot write {path}: {reason}", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
}

impl BlobError {
    /// Whether a retry may succeed without help.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
