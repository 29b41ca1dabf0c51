use super::replace;
use crate::causes::with_causes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Interval between two writes while it changes. A change lost with the process is sent again when
/// its session opens.
const WRITE_EVERY: Duration = Duration::from_secs(3);

/// The operator's last message of a kind, in a file: an agent that restarts while the operator is
/// away still has it.
#[derive(Debug)]
pub(crate) struct Document<T> {
    path: PathBuf,
    format: u32,
    content: PhantomData<fn() -> T>,
}

impl<T> Clone for Document<T> {
    fn clone(&self) -> Self {
        Self::new(self.path.clone(), self.format)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Written<T> {
    format: u32,
    #[serde(flatten)]
    content: T,
}

/// Of any format.
#[derive(Debug, Deserialize)]
struct Head {
    format: u32,
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("it is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error("it has format {0}, which this version does not know")]
    Format(u32),
    #[error("it cannot be read")]
    Disk(#[from] io::Error),
}

impl<T> Document<T> {
    /// The file at `path`; one of another `format` is ignored.
    pub(crate) const fn new(path: PathBuf, format: u32) -> Self {
        Self {
            path,
            format,
            content: PhantomData,
        }
    }

    /// The last written content; `None` if the file is missing or unreadable, since the operator
    /// sends everything again. Blocks. `what` is its name for the log.
    pub(crate) fn read(&self, what: &str) -> Option<T>
    where
        T: DeserializeOwned,
    {
        self.parse().unwrap_or_else(|error| {
            let error = with_causes(&error);
            tracing::warn!(error, "{what} are not taken from their file");
            None
        })
    }

    fn parse(&self) -> Result<Option<T>, Unreadable>
    where
        T: DeserializeOwned,
    {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let Head { format } = serde_json::from_slice(&text)?;
        if format != self.format {
            return Err(Unreadable::Format(format));
        }
        let written: Written<T> = serde_json::from_slice(&text)?;
        Ok(Some(written.content))
    }

    /// Blocks until it is on disk.
    fn write(&self, content: &T) -> io::Result<()>
    where
        T: Serialize,
    {
        let written = Written {
            format: self.format,
            content,
        };
        replace(&self.path, &serde_json::to_vec(&written)?)
    }

    /// Writes what `content` returns, if anything, on each of `changes`, off the runtime's threads,
    /// until dropped. `what` is its name for the log.
    pub(crate) async fn keep(
        self,
        what: &'static str,
        mut changes: watch::Receiver<u64>,
        content: impl Fn() -> Option<T> + Send + 'static,
    ) where
        T: Serialize + Send + 'static,
    {
        while changes.changed().await.is_ok() {
            let Some(content) = content() else {
                continue;
            };
            let file = self.clone();
            let written = tokio::task::spawn_blocking(move || file.write(&content)).await;
            let written = written
                .map_err(io::Error::other)
                .and_then(|outcome| outcome);
            if let Err(error) = written {
                tracing::warn!(%error, "{what} are not kept on disk");
                // Try again later.
                changes.mark_changed();
            }
            sleep(WRITE_EVERY).await;
        }
    }
}
