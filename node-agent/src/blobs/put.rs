//! Uploads blobs to the operator's store.

use super::{Blobs, pace};
use crate::net::Backoff;
use crate::telemetry::Telemetry;
use lamina_model::Digest;
use lamina_proto::control::PutBlobChunk;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// With the pauses, about half a minute: a restarting operator is back by then.
const TRIES: u32 = 8;

/// Why a blob could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The operator does not answer; another try may succeed.
    #[error("cannot store blob {digest}: {reason}", digest = digest.short())]
    Unavailable {
        /// The blob.
        digest: Digest,
        /// The connection's error.
        reason: String,
    },
    /// The operator answers but refuses it.
    #[error("the operator refuses blob {digest}: {reason}", digest = digest.short())]
    Refused {
        /// The blob.
        digest: Digest,
        /// The operator's error.
        reason: String,
    },
    /// The file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl PutError {
    /// Whether a retry may succeed without help.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Why one try failed.
enum Failed {
    Read(io::Error),
    Call(Status),
    NoClient(String),
}

impl Blobs {
    /// Stores the file at `path`, whose content has `digest`. Tries for about
    /// half a minute.
    ///
    /// # Errors
    /// See [`PutError`].
    pub async fn put_file(&self, digest: &Digest, path: &Path) -> Result<(), PutError> {
        let mut tries = Tries::new();
        loop {
            let failed = match File::open(path).await {
                Ok(file) => self.put(digest, file).await,
                Err(source) => Err(Failed::Read(source)),
            };
            match failed {
                Ok(()) => return Ok(()),
                Err(failed) => self.again(&mut tries, digest, path, failed).await?,
            }
        }
    }

    /// Stores `content` and returns its digest. Tries for about half a minute.
    ///
    /// # Errors
    /// See [`PutError`].
    pub async fn put_bytes(&self, content: &[u8]) -> Result<Digest, PutError> {
        let digest = Digest::of(content);
        let mut tries = Tries::new();
        loop {
            match self.put(&digest, Cursor::new(content)).await {
                Ok(()) => return Ok(digest),
                Err(failed) => {
                    self.again(&mut tries, &digest, Path::new("memory"), failed)
                        .await?;
                }
            }
        }
    }

    async fn put(
        &self,
        digest: &Digest,
        content: impl AsyncRead + Unpin + Send,
    ) -> Result<(), Failed> {
        let mut client = self.operator.client().await.map_err(Failed::NoClient)?;
        let _moves = self.telemetry.blobs().begin();
        let (sender, receiver) = mpsc::channel(1);
        let call = client.put_blob(ReceiverStream::new(receiver));
        let feeding = feed(digest, content, sender, &self.telemetry);
        let (fed, reply) = tokio::join!(feeding, call);
        fed.map_err(Failed::Read)?;
        reply.map(|_| ()).map_err(Failed::Call)
    }

    /// Waits for the next try, or returns the error if there is none.
    async fn again(
        &self,
        tries: &mut Tries,
        digest: &Digest,
        path: &Path,
        failed: Failed,
    ) -> Result<(), PutError> {
        let digest = digest.clone();
        let error = match failed {
            Failed::Read(source) => PutError::Disk {
                path: path.to_owned(),
                source,
            },
            Failed::Call(status) if is_final(status.code()) => PutError::Refused {
                digest,
                reason: status.message().to_owned(),
            },
            Failed::Call(status) => PutError::Unavailable {
                digest,
                reason: status.message().to_owned(),
            },
            Failed::NoClient(reason) => PutError::Unavailable { digest, reason },
        };
        tries.left -= 1;
        if tries.left == 0 || !error.is_passing() {
            return Err(error);
        }
        tracing::debug!(%error, "storing again");
        self.operator.disconnect();
        self.wait_or_moved(tries.backoff.next_wait()).await;
        Ok(())
    }
}

struct Tries {
    left: u32,
    backoff: Backoff,
}

impl Tries {
    const fn new() -> Self {
        Self {
            left: TRIES,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(8)),
        }
    }
}

/// Sends `content` in chunks until its end, or until the call ends. Requests have priority on the
/// link, as when fetching: pacing follows from the time that the previous chunk took.
async fn feed(
    digest: &Digest,
    mut content: impl AsyncRead + Unpin,
    chunks: mpsc::Sender<PutBlobChunk>,
    telemetry: &Telemetry,
) -> io::Result<()> {
    let mut digest = digest.to_string();
    loop {
        let under_way = telemetry.requests_under_way();
        let mut data = Vec::new();
        let read = (&mut content)
            .take(pace::chunk_bytes(pace::Purpose::Store, under_way, u64::MAX))
            .read_to_end(&mut data)
            .await?;
        let is_first = !digest.is_empty();
        if read == 0 && !is_first {
            return Ok(());
        }
        let chunk = PutBlobChunk {
            digest: std::mem::take(&mut digest),
            data: data.into(),
        };
        let start = Instant::now();
        // The call has ended and returns the reason.
        if chunks.send(chunk).await.is_err() {
            return Ok(());
        }
        let took = start.elapsed();
        let under_way = telemetry.requests_under_way().max(under_way);
        tokio::time::sleep(pace::pause(pace::Purpose::Store, under_way, took)).await;
    }
}

const fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}
