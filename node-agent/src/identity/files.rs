//! The certificate on disk.

use crate::files;
use lamina_model::Digest;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The authorities to trust.
const AUTHORITIES: &str = "authorities.pem";
/// Certificate and private key in one file, so that they always match.
const OWN: &str = "own.pem";
/// SHA-256 of the last join token of a machine that is not a Node.
const JOIN: &str = "join";

/// The folder, readable only by its owner.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    folder: PathBuf,
}

/// The contents of the folder; empty if missing.
#[derive(Default)]
pub(super) struct Kept {
    /// The authorities to trust, in PEM.
    pub(super) authorities: String,
    /// Certificate and key, in PEM.
    pub(super) own: String,
}

impl Files {
    /// In a folder of `cache`.
    pub(crate) fn in_dir(cache: &Path) -> Self {
        Self {
            folder: cache.join("identity"),
        }
    }

    /// The contents. Unreadable files count as missing: they are requested again.
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

    /// Stores the authorities to trust. Blocks.
    ///
    /// # Errors
    /// The disk is full.
    pub(super) fn write_authorities(&self, pem: &str) -> io::Result<()> {
        self.make()?;
        files::replace(&self.folder.join(AUTHORITIES), pem.as_bytes())
    }

    /// Stores certificate and key. Blocks.
    ///
    /// # Errors
    /// The disk is full.
    pub(super) fn write_own(&self, pem: &str) -> io::Result<()> {
        self.make()?;
        files::replace_private(&self.folder.join(OWN), pem.as_bytes())
    }

    /// Starts over if the machine joins by a new token: the certificate of the previous join
    /// becomes invalid, and `authorities` (PEM) are trusted. Blocks.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) fn begin_join(&self, authorization: &str, authorities: &str) -> io::Result<()> {
        let join = Digest::of(authorization.as_bytes());
        let before = fs::read_to_string(self.folder.join(JOIN));
        if before.is_ok_and(|before| before == join.as_str()) {
            return Ok(());
        }
        self.write_authorities(authorities)?;
        match fs::remove_file(self.folder.join(OWN)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Last: if interrupted before, everything is repeated.
        files::replace(&self.folder.join(JOIN), join.as_str().as_bytes())
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder)?;
        // An existing folder may be open to others.
        fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_join_begins_anew_and_the_same_one_goes_on() {
        let cache = tempfile::tempdir().unwrap();
        let files = Files::in_dir(cache.path());
        files.begin_join("Join cam-9.one", "first").unwrap();
        assert_eq!(files.read().authorities, "first");
        files.write_own("own").unwrap();
        // The operator has sent others since.
        files.write_authorities("second").unwrap();
        files.begin_join("Join cam-9.one", "first").unwrap();
        let kept = files.read();
        assert_eq!((kept.authorities.as_str(), &*kept.own), ("second", "own"));
        files.begin_join("Join cam-9.two", "third").unwrap();
        let kept = files.read();
        assert_eq!((kept.authorities.as_str(), &*kept.own), ("third", ""));
    }

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
