//! The directory on disk: an agent that restarts while the operator is away goes on
//! taking any model.

use super::{Directory, Listed, Table};
use crate::causes::with_causes;
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

const FORMAT: u32 = 1;
const FILE_NAME: &str = "directory.json";
/// Time between two writes while it changes. A change that is lost with the process
/// is told again when its session opens.
const WRITE_EVERY: Duration = Duration::from_secs(3);

/// The directory's file in the cache folder.
#[derive(Debug, Clone)]
pub(crate) struct DirectoryFile {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    format: u32,
    models: BTreeMap<String, Listed>,
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

impl DirectoryFile {
    /// The file in `cache_dir`.
    pub(crate) fn in_dir(cache_dir: &Path) -> Self {
        Self {
            path: cache_dir.join(FILE_NAME),
        }
    }

    /// What was written last; nothing where there is no file or it cannot be
    /// understood, since the operator tells it all again. Blocks.
    pub(crate) fn read(&self) -> Table {
        match self.parse() {
            Ok(Some(models)) => Table::of(models, true),
            Ok(None) => Table::default(),
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "the directory of models is not taken from its file");
                Table::default()
            }
        }
    }

    fn parse(&self) -> Result<Option<BTreeMap<String, Listed>>, Unreadable> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let Head { format } = serde_json::from_slice(&text)?;
        if format != FORMAT {
            return Err(Unreadable::Format(format));
        }
        let written: Written = serde_json::from_slice(&text)?;
        Ok(Some(written.models))
    }

    /// Blocks until the disk has it.
    fn write(&self, table: &Table) -> io::Result<()> {
        let written = Written {
            format: FORMAT,
            models: table.models.clone(),
        };
        files::replace(&self.path, &serde_json::to_vec(&written)?)
    }
}

/// Keeps `file` as `directory` is from now on, off the runtime's threads, until
/// dropped.
pub(crate) fn keep(
    directory: Directory,
    file: DirectoryFile,
) -> impl Future<Output = ()> + Send + 'static {
    let mut changes = directory.subscribe();
    async move {
        while changes.changed().await.is_ok() {
            let table = directory.now();
            // Only what is known whole may stand for it after a restart.
            if !table.is_heard() {
                continue;
            }
            let file = file.clone();
            let written = tokio::task::spawn_blocking(move || file.write(&table)).await;
            let written = written
                .map_err(io::Error::other)
                .and_then(|outcome| outcome);
            if let Err(error) = written {
                tracing::warn!(%error, "the directory of models is not kept on disk");
                // It is as new to the disk as before.
                changes.mark_changed();
            }
            sleep(WRITE_EVERY).await;
        }
    }
}
