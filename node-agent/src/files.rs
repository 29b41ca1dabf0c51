//! Files that survive a crash as a whole: the old one or the new one.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Replaces the file at `path` by `content`. Blocks until the disk has it.
///
/// # Errors
/// The folder is full, missing or read-only.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}
