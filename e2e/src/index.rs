//! Labs on one machine differ by an index; a lock keeps two runs from using the same one.

use std::fs::{File, TryLockError};
use std::path::PathBuf;

/// Why no index is available.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Another process runs a lab with this index.
    #[error("another lab with index {0} is running: stop it or choose another index")]
    InUse(u8),
    /// All of them are taken.
    #[error("256 labs are running on this machine: stop one")]
    NoneFree,
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}: run the lab as root")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}

/// The right to use an index, until dropped or until the process ends.
#[derive(Debug)]
pub struct IndexLock {
    index: u8,
    // Held for its lock.
    _file: File,
}

impl IndexLock {
    /// Takes one index.
    pub fn take(index: u8) -> Result<Self, IndexError> {
        let path = PathBuf::from(format!("/run/lamina-lab-{index}.lock"));
        let failed = |source| IndexError::Lock {
            path: path.clone(),
            source,
        };
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { index, _file: file }),
            Err(TryLockError::WouldBlock) => Err(IndexError::InUse(index)),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Takes the lowest free index.
    pub fn first_free() -> Result<Self, IndexError> {
        for index in 0..=u8::MAX {
            match Self::take(index) {
                Err(IndexError::InUse(_)) => {}
                taken => return taken,
            }
        }
        Err(IndexError::NoneFree)
    }

    /// The index.
    pub fn index(&self) -> u8 {
        self.index
    }
}
