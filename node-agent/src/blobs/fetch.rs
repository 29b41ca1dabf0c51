//! Fetches one blob from the store into the cache folder.

use super::BlobError;
use super::inbound::InboundTransfer;
use super::pace::Purpose;
use super::{Blobs, digest_of_file, disk, pace};
use crate::net::Backoff;
use lamina_model::Digest;
use lamina_proto::control::GetBlobRequest;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tonic::Code;

/// Time limit of a chunk, enough for a link of 20 kbit/s.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries without progress before the caller gets an error.
const FRUITLESS_TRIES: u32 = 5;

/// A partially fetched blob.
struct Part<'a> {
    digest: &'a Digest,
    total: u64,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Blobs {
    /// Fetches `digest`, resuming an earlier try. A damaged part is fetched once more from its
    /// start.
    pub(super) async fn fetch(
        &self,
        digest: &Digest,
        total: u64,
        purpose: Purpose,
    ) -> Result<PathBuf, BlobError> {
        let part = self.path(&format!("{digest}.part"));
        let mut got = None;
        for _ in 0..2 {
            let resumed = self.fill(digest, total, &part, purpose).await?;
            let content = digest_of_file(&part).await.map_err(disk(&part))?;
            if content == *digest {
                let path = self.path(digest.as_str());
                fs::rename(&part, &path).await.map_err(disk(&path))?;
                return Ok(path);
            }
            fs::remove_file(&part).await.map_err(disk(&part))?;
            got = Some(content);
            if !resumed {
                break;
            }
        }
        let got = got.map_or_else(String::new, |d| d.short().to_owned());
        Err(BlobError::Mismatch {
            digest: digest.clone(),
            got,
        })
    }

    /// Fetches the part up to `total` bytes; returns whether some were there before.
    async fn fill(
        &self,
        digest: &Digest,
        total: u64,
        path: &Path,
        purpose: Purpose,
    ) -> Result<bool, BlobError> {
        let mut part = Part::open(digest, total, path).await?;
        let resumed = part.len > 0;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut fruitless = 0;
        while part.len < total {
            let before = part.len;
            let outcome = self.next_chunk(&mut part, purpose).await;
            if part.len > before {
                backoff.reset();
                fruitless = 0;
            }
            let Err(error) = outcome else { continue };
            fruitless += 1;
            if !error.is_passing() || fruitless >= FRUITLESS_TRIES {
                return Err(error);
            }
            tracing::debug!(digest = digest.short(), %error, "fetching again");
            self.operator.disconnect();
            self.wait_or_moved(backoff.next_wait()).await;
        }
        part.file.sync_all().await.map_err(disk(path))?;
        Ok(resumed)
    }

    /// Waits, but only until the operator's address changes.
    pub(super) async fn wait_or_moved(&self, wait: Duration) {
        let mut endpoint = self.operator.endpoint.subscribe();
        // Either way it is time for another try.
        let _ = timeout(wait, endpoint.changed()).await;
    }

    /// One range, then the pause that requests need. Blobs take turns, so that together they keep
    /// the pace.
    async fn next_chunk(&self, part: &mut Part<'_>, purpose: Purpose) -> Result<(), BlobError> {
        if purpose == Purpose::Ahead {
            self.standby.quiet().await;
        }
        let turn = self.turn.lock().await;
        let under_way = self.telemetry.requests_under_way();
        let wanted = pace::chunk_bytes(purpose, under_way, part.total - part.len);
        let before = part.len;
        let moves = self.telemetry.blobs().begin();
        let start = Instant::now();
        let outcome = timeout(CHUNK_TIMEOUT, self.receive(part, wanted)).await;
        let took = start.elapsed();
        // Also waits for the background write, which may fail only now.
        part.file.flush().await.map_err(disk(&part.path))?;
        match outcome {
            Ok(received) => received?,
            Err(_) => return Err(part.unavailable("the operator does not answer")),
        }
        self.inbound.note(InboundTransfer {
            bytes: part.len - before,
            seconds: took.as_secs_f64(),
        });
        let under_way = self.telemetry.requests_under_way().max(under_way);
        if purpose == Purpose::Ahead {
            // Nobody waits for it: others take their turns meanwhile, and only the link is
            // measured.
            drop((turn, moves));
            tokio::time::sleep(self.standby.pause(under_way, took)).await;
        } else {
            tokio::time::sleep(pace::pause(purpose, under_way, took)).await;
        }
        Ok(())
    }

    async fn receive(&self, part: &mut Part<'_>, wanted: u64) -> Result<(), BlobError> {
        let client = self.operator.client().await;
        let mut client = client.map_err(|r| part.unavailable(&r))?;
        let request = GetBlobRequest {
            digest: part.digest.to_string(),
            offset: part.len,
            length: wanted,
        };
        let end = part.len + wanted;
        let reply = client.get_blob(request).await;
        let mut chunks = reply.map_err(|s| part.refused(&s))?.into_inner();
        while let Some(chunk) = chunks.message().await.map_err(|s| part.refused(&s))? {
            if chunk.total_bytes != part.total {
                return Err(part.mismatch(format!(
                    "{} bytes instead of {}",
                    chunk.total_bytes, part.total
                )));
            }
            let data = &chunk.data;
            if part.len + data.len() as u64 > end {
                return Err(part.mismatch("more bytes than were asked for".into()));
            }
            part.file.write_all(data).await.map_err(disk(&part.path))?;
            part.len += data.len() as u64;
        }
        if part.len < end {
            return Err(part.unavailable("the transfer broke off"));
        }
        Ok(())
    }
}

impl<'a> Part<'a> {
    async fn open(digest: &'a Digest, total: u64, path: &Path) -> Result<Self, BlobError> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let mut file = options.open(path).await.map_err(disk(path))?;
        let mut len = file.metadata().await.map_err(disk(path))?.len();
        if len > total {
            file.set_len(0).await.map_err(disk(path))?;
            len = 0;
        }
        file.seek(SeekFrom::Start(len)).await.map_err(disk(path))?;
        Ok(Self {
            digest,
            total,
            path: path.to_owned(),
            file,
            len,
        })
    }

    fn refused(&self, status: &tonic::Status) -> BlobError {
        match status.code() {
            Code::NotFound => BlobError::Unknown {
                digest: self.digest.clone(),
            },
            _ => self.unavailable(status.message()),
        }
    }

    fn unavailable(&self, reason: &str) -> BlobError {
        BlobError::Unavailable {
            digest: self.digest.clone(),
            reason: reason.to_owned(),
        }
    }

    fn mismatch(&self, got: String) -> BlobError {
        BlobError::Mismatch {
            digest: self.digest.clone(),
            got,
        }
    }
}
