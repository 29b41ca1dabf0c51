//! The certificate on the disk.

use crate::files;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Whom to believe.
const AUTHORITIES: &str = "authorities.pem";
/// Certificate and private key in one file, so that they always belong together.
const OWN: &str = "own.pem";

/// The folder, which nobody else may read.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    folder: PathBuf,
}

/// What a folder holds; empty where there is nothing.
#[derive(Default)]
pub(super) struct Kept {
    /// Whom to believe, in PEM.
    pub(super) authorities: String,
    /// Certificate and key, in PEM.
    pub(super) own: String,
}

impl Files {
    /// Below `cache`.
    pub(crate) fn in_dir(cache: &Path) -> Self {
        Self {
            folder: cache.join("identity"),
        }
    }

    /// What is there. Whatever cannot be read is not: it is asked for anew.
    pub(super) fn read(&self) -> Kept {
        let text = |name: &str| match fs::read_to_string(self.folder.join(name)) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, file = name, "the certificate on the disk is not used");
                }
                String::new()
            }
        };
        Kept {
            authorities: text(AUTHORITIES),
            own: text(OWN),
        }
    }

    /// Keeps whom to believe. Blocks.
    ///
    /// # Errors
    /// The disk takes no more.
    pub(super) fn write_authorities(&self, pem: &str) -> io::Result<()> {
        self.make()?;
        files::replace(&self.folder.join(AUTHORITIES), pem.as_bytes())
    }

    /// Keeps certificate and key. Blocks.
    ///
    /// # Errors
    /// The disk takes no more.
    pub(super) fn write_own(&self, pem: &str) -> io::Result<()> {
        self.make()?;
        files::replace_private(&self.folder.join(OWN), pem.as_bytes())
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder)?;
        // One that was there before may be open to others.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_nobody_else_reads_the_key() {
        let cache = tempfile::tempdir().unwrap();
        let files = Files::in_dir(cache.path());
        assert!(files.read().own.is_empty());
        files.write_authorities("a").unwrap();
        files.write_own("b").unwrap();
        let kept = files.read();
        assert_eq!((kept.authorities.as_str(), kept.own.as_str()), ("a", "b"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(files.folder.join(OWN)), 0o600);
        assert_eq!(mode(files.folder.clone()), 0o700);
    }
}
