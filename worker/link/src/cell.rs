//! Sandbox and scan for the process that opens a model's file, based on the crate `lamina-sandbox`.

use crate::with_causes;
use lamina_model::{PREPROCESSING_BYTES, Preprocessing, PreprocessingError};
use lamina_sandbox::lock::{Cell, LockError, Missing, Strictness, lock_up};
use lamina_sandbox::scan::{ScanError, ScanLimits, scan_file};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Why a model was not opened.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The model or the folder for its blocks is missing.
    #[error("cannot use {path}", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The model is a folder, a pipe or a device.
    #[error("`{path}` is no file: name the TorchScript file itself", path = path.display())]
    NoFile {
        /// The model.
        path: PathBuf,
    },
    /// There is a file where the folder for the blocks should be.
    #[error("`{path}` is no folder: the blocks need one of their own", path = path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The process is not sandboxed.
    #[error(transparent)]
    Lock(#[from] Unlocked),
    /// The scan refuses it.
    #[error("{path} is not a TorchScript model that can be opened", path = path.display())]
    Scan {
        /// The model.
        path: PathBuf,
        /// The verdict.
        #[source]
        error: ScanError,
    },
    /// A block that prepares inputs is none.
    #[error("{path} is no block that can be run", path = path.display())]
    Block {
        /// Its file.
        path: PathBuf,
        /// The verdict.
        #[source]
        error: PreprocessingError,
    },
}

/// A process that must not open a model, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}; a kernel from 5.13 with Landlock in its `lsm=` list does, or --allow-unsandboxed \
     (chart: agent.allowUnsandboxed) for models that you trust",
    with_causes(.0)
)]
pub struct Unlocked(LockError);

impl From<LockError> for Unlocked {
    fn from(error: LockError) -> Self {
        Self(error)
    }
}

/// Sandboxes this process for good. Returns what the kernel lacks, if that is allowed.
///
/// # Errors
/// No model may be opened then.
pub fn enter(cell: &Cell, allow_unsandboxed: bool) -> Result<Vec<Missing>, Unlocked> {
    let strictness = if allow_unsandboxed {
        Strictness::WhatThereIs
    } else {
        Strictness::Required
    };
    Ok(lock_up(cell, strictness)?)
}

/// Whether libtorch may open `model`. Blocks; not for an async thread.
///
/// # Errors
/// It may not.
pub fn scan(model: &Path) -> Result<(), CellError> {
    let scanned = scan_file(model, &ScanLimits::default());
    scanned.map(|_| ()).map_err(|error| CellError::Scan {
        path: model.to_owned(),
        error,
    })
}

/// What `block` does with inputs, or none where it is a part of a model, which libtorch may
/// open. Blocks; not for an async thread.
///
/// # Errors
/// It is neither.
pub fn scan_block(block: &Path) -> Result<Option<Preprocessing>, CellError> {
    let mut file = File::open(block).map_err(|e| unusable(block, e))?;
    let mut head = Vec::new();
    let magic = Preprocessing::MAGIC;
    let mut begin = file.by_ref().take(magic.len() as u64);
    let read = begin.read_to_end(&mut head);
    read.map_err(|e| unusable(block, e))?;
    if head != magic {
        return scan(block).map(|()| None);
    }
    // One byte more than there may be, so that too many are found out.
    let read = file.take(PREPROCESSING_BYTES).read_to_end(&mut head);
    read.map_err(|e| unusable(block, e))?;
    let read = Preprocessing::from_bytes(&head);
    read.map(Some).map_err(|error| CellError::Block {
        path: block.to_owned(),
        error,
    })
}

/// The size of `model`; `out` is a folder, created if missing.
///
/// # Errors
/// One of the two is unsuitable.
pub fn check_paths(model: &Path, out: &Path) -> Result<u64, CellError> {
    let file = fs::metadata(model).map_err(|e| unusable(model, e))?;
    if !file.is_file() {
        return Err(CellError::NoFile {
            path: model.to_owned(),
        });
    }
    if out.exists() && !out.is_dir() {
        return Err(CellError::NoFolder {
            path: out.to_owned(),
        });
    }
    fs::create_dir_all(out).map_err(|e| unusable(out, e))?;
    Ok(file.len())
}

/// `path` without links, as the sandbox needs it.
///
/// # Errors
/// There is none.
pub fn real_path(path: &Path) -> Result<PathBuf, CellError> {
    fs::canonicalize(path).map_err(|e| unusable(path, e))
}

fn unusable(path: &Path, source: io::Error) -> CellError {
    CellError::Path {
        path: path.to_owned(),
        source,
    }
}

/// Whether libtorch's message means that memory ran out.
pub fn tells_of_memory(reason: &str) -> bool {
    // The last is from oneDNN's later calls after one that had no memory.
    const MARKS: [&str; 4] = [
        "can't allocate memory",
        "bad_alloc",
        "not enough memory",
        "Broken promise",
    ];
    MARKS.iter().any(|mark| reason.contains(mark))
}
