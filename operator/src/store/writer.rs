use super::{StoreError, storage};
use bytes::Bytes;
use lamina_model::Digest;
use object_store::{MultipartUpload, PutPayload};
use sha2::{Digest as _, Sha256};

/// An upload into the store. It becomes visible with [`BlobWriter::finish`], as a whole or not at
/// all.
#[derive(Debug)]
pub struct BlobWriter {
    expected: Digest,
    hasher: Sha256,
    upload: Box<dyn MultipartUpload>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
}

/// Size of the parts sent to the store; buckets accept none below 5 MiB.
const PART_BYTES: usize = 8 << 20;

impl BlobWriter {
    pub(super) fn new(expected: Digest, upload: Box<dyn MultipartUpload>) -> Self {
        Self {
            expected,
            hasher: Sha256::new(),
            upload,
            pending: Vec::new(),
            pending_bytes: 0,
        }
    }

    /// Appends `data`.
    ///
    /// # Errors
    /// The volume is full or does not work. Abort it then.
    pub async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        self.hasher.update(&data);
        self.pending_bytes += data.len();
        self.pending.push(data);
        if self.pending_bytes >= PART_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Checks the digest and makes the blob visible.
    ///
    /// # Errors
    /// The content does not match the digest, or the volume is full or does
    /// not work. Nothing is stored then.
    pub async fn finish(mut self) -> Result<(), StoreError> {
        let got = Digest::from_bytes(&std::mem::take(&mut self.hasher).finalize());
        if got != self.expected {
            let expected = self.expected.clone();
            self.abort().await;
            return Err(StoreError::HashMismatch { expected, got });
        }
        let completed = match self.flush().await {
            Ok(()) => self.upload.complete().await.map_err(storage),
            Err(error) => Err(error),
        };
        if let Err(error) = completed {
            self.abort().await;
            return Err(error);
        }
        Ok(())
    }

    /// Discards the written parts.
    pub async fn abort(mut self) {
        if let Err(error) = self.upload.abort().await {
            // The next start of the store removes it.
            tracing::warn!(blob = self.expected.short(), %error, "half a blob stays behind");
        }
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending_bytes == 0 {
            return Ok(());
        }
        self.pending_bytes = 0;
        let payload: PutPayload = std::mem::take(&mut self.pending).into_iter().collect();
        self.upload.put_part(payload).await.map_err(storage)
    }
}
