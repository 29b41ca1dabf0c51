//! Uploads blobs from the cache to a store that lost them.

use super::Blobs;
use crate::causes::with_causes;
use lamina_model::Digest;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Blobs that the operator requested and that were not sent yet.
#[derive(Debug, Default)]
pub(super) struct Asked {
    digests: Mutex<BTreeSet<Digest>>,
    more: Notify,
}

impl Asked {
    fn add(&self, digests: impl IntoIterator<Item = Digest>) {
        let mut asked = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        asked.extend(digests);
        drop(asked);
        self.more.notify_one();
    }

    async fn next(&self) -> Digest {
        loop {
            let first = {
                let mut asked = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
                asked.pop_first()
            };
            match first {
                Some(digest) => return digest,
                None => self.more.notified().await,
            }
        }
    }
}

impl Blobs {
    /// Notes that the operator wants `digests`; [`Blobs::refill`] sends those that are here. A
    /// repeated request before sending counts once.
    pub fn want(&self, digests: impl IntoIterator<Item = Digest>) {
        let held = digests.into_iter().filter(|d| self.inventory.holds(d));
        self.asked.add(held);
    }

    /// Sends the requested blobs, one at a time, until dropped. After a failure the operator asks
    /// again.
    pub async fn refill(&self) {
        loop {
            let digest = self.asked.next().await;
            let path = self.path(digest.as_str());
            match self.put_file(&digest, &path).await {
                Ok(()) => tracing::info!(%digest, "sent a blob that the store lacked"),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(%digest, error, "a blob that the store lacks is not sent");
                    if !tokio::fs::try_exists(&path).await.unwrap_or(true) {
                        self.inventory.remove(&digest);
                    }
                }
            }
        }
    }

    /// Keeps the file at `from`, which was stored as `digest`, in the cache as well, so that the
    /// store can be refilled. Skipped if the cache has no room.
    pub async fn adopt_file(&self, digest: &Digest, from: &Path) {
        let bytes = match tokio::fs::metadata(from).await {
            Ok(metadata) => metadata.len(),
            Err(error) => return not_adopted(digest, &error),
        };
        let (from, to) = (from.to_owned(), self.path(digest.as_str()));
        self.adopt(digest, bytes, move || {
            std::fs::File::open(&from)?.sync_all()?;
            match std::fs::hard_link(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                    crate::files::replace(&to, &std::fs::read(&from)?)
                }
                linked => linked,
            }
        })
        .await;
    }

    /// As [`Blobs::adopt_file`], for `content`.
    pub async fn adopt_bytes(&self, digest: &Digest, content: Vec<u8>) {
        let to = self.path(digest.as_str());
        let bytes = content.len() as u64;
        self.adopt(digest, bytes, move || crate::files::replace(&to, &content))
            .await;
    }

    async fn adopt(
        &self,
        digest: &Digest,
        bytes: u64,
        write: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        let lock = self.lock_for(digest);
        let _alone = lock.lock().await;
        if self.inventory.holds(digest) {
            return;
        }
        match self.has_room_for(bytes).await {
            Ok(true) => {}
            Ok(false) => return tracing::debug!(%digest, "no room for a blob that was stored"),
            Err(error) => return not_adopted(digest, &error),
        }
        let written = tokio::task::spawn_blocking(write).await;
        match written
            .map_err(io::Error::other)
            .and_then(|outcome| outcome)
        {
            Ok(()) => self.inventory.add(digest),
            Err(error) => not_adopted(digest, &error),
        }
    }
}

fn not_adopted(digest: &Digest, error: &dyn std::error::Error) {
    tracing::debug!(%digest, error = with_causes(error), "a blob is not kept here");
}
