//! The directory on disk: an agent that restarts while the operator is down can still accept
//! requests for any model.

use super::{Directory, Listed, Table};
use crate::files::Document;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT: u32 = 1;
const FILE_NAME: &str = "directory.json";
const WHAT: &str = "the entries of models";

/// The directory's file in the cache folder.
#[derive(Debug, Clone)]
pub(crate) struct DirectoryFile {
    document: Document<Written>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Written {
    models: BTreeMap<String, Listed>,
}

impl DirectoryFile {
    /// The file in `cache_dir`.
    pub(crate) fn in_dir(cache_dir: &Path) -> Self {
        Self {
            document: Document::new(cache_dir.join(FILE_NAME), FORMAT),
        }
    }

    /// The last written directory; empty if the file is missing or unreadable, since the operator
    /// sends everything again. Blocks.
    pub(crate) fn read(&self) -> Table {
        let written = self.document.read(WHAT);
        written.map_or_else(Table::default, |written| Table::of(written.models, true))
    }
}

/// Writes `directory` to `file` on every change, off the runtime's threads, until dropped.
pub(crate) fn keep(
    directory: Directory,
    file: DirectoryFile,
) -> impl Future<Output = ()> + Send + 'static {
    let changes = directory.subscribe();
    let content = move || {
        let table = directory.now();
        // Only a complete directory may be used after a restart.
        table.is_heard().then(|| Written {
            models: table.models.clone(),
        })
    };
    file.document.keep(WHAT, changes, content)
}
