use async_trait::async_trait;
use lamina_model::Digest;
use std::path::PathBuf;

/// Where blocks come from: the cache folder, filled from the operator's store.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The path of blob `digest` (of `bytes` bytes) in the cache folder, its
    /// content verified; fetched first where it is not there.
    ///
    /// # Errors
    /// See [`BlobError`].
    async fn ensure(&self, digest: &Digest, bytes: u64) -> Result<PathBuf, BlobError>;
}

/// Why a blob could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The store answers and does not have it.
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
        /// What the connection says.
        reason: String,
    },
    /// What came is not what was asked for.
    #[error("blob {digest} arrived as {got}; the store is damaged", digest = digest.short())]
    Mismatch {
        /// The blob.
        digest: Digest,
        /// Digest or size of what came.
        got: String,
    },
    /// The disk is full, and nothing is left to remove.
    #[error(
        "the disk of {path} is full: {needs} more bytes are needed, {free} are free; free some, \
         or give the cache a larger one",
        path = path.display()
    )]
    Full {
        /// The folder or file.
        path: PathBuf,
        /// Bytes that are missing, where known.
        needs: u64,
        /// Bytes that blobs may still take.
        free: u64,
    },
    /// The cache folder cannot take it.
    #[error("cannot write {path}: {reason}", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

impl BlobError {
    /// Whether another try may succeed without anyone's help.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Full { .. })
    }
}
