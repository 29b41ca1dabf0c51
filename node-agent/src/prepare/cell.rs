//! The cell in which an untrusted model is opened: what the command line asks
//! for, and how the process shuts itself in.

use super::room::room_bytes;
use super::{Failure, Reason};
use crate::measure::memory_free_bytes;
use clap::Args;
use lamina_crds::quantity::{format_bytes, parse_bytes};
use lamina_model::Manifest;
use lamina_sandbox::lock::{Cell, Limits, LockError, Missing, Strictness, lock_up};
use lamina_sandbox::scan::{ScanError, ScanLimits, scan_file};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

/// libtorch alone takes a quarter of it.
const MEMORY_BYTES_AT_LEAST: u64 = 256 << 20;

/// Several times what the largest known models take on a small board's core.
const CPU_LIMIT_SECONDS: u64 = 600;

/// What preparing may use up, and whether it must be locked up.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CellArgs {
    /// Open the model even where the kernel cannot lock up the process (no
    /// Landlock or no seccomp): only for models that you trust.
    #[arg(long)]
    pub allow_unsandboxed: bool,
    /// Memory that preparing may take, such as 4Gi; four fifths of what is free
    /// where left out.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub memory_limit: Option<u64>,
    /// Seconds that preparing may compute, so that a forward that never ends
    /// does end.
    #[arg(long, default_value_t = CPU_LIMIT_SECONDS, value_name = "SECONDS")]
    pub cpu_limit: u64,
}

/// Why the model was not opened.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The model or the folder for its blocks is not there.
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
    /// The process is not locked up.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The scan says no.
    #[error("{path} is not a TorchScript model that can be opened", path = path.display())]
    Scan {
        /// The model.
        path: PathBuf,
        /// The verdict.
        #[source]
        error: ScanError,
    },
}

impl Default for CellArgs {
    fn default() -> Self {
        Self {
            allow_unsandboxed: false,
            memory_limit: None,
            cpu_limit: CPU_LIMIT_SECONDS,
        }
    }
}

impl CellArgs {
    /// As they are written on the command line.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("--cpu-limit={}", self.cpu_limit)];
        if let Some(bytes) = self.memory_limit {
            arguments.push(format!("--memory-limit={bytes}"));
        }
        if self.allow_unsandboxed {
            arguments.push("--allow-unsandboxed".to_owned());
        }
        arguments
    }

    /// The memory limit in bytes.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_limit
            .unwrap_or_else(|| memory_free_bytes() / 5 * 4)
            .max(MEMORY_BYTES_AT_LEAST)
    }
}

/// Locks this process up so that it can read `model` and write into `out`,
/// which is made, and scans the model. What the kernel lacks comes back where
/// that is allowed.
///
/// # Errors
/// The model must not be opened then.
pub(super) fn enter(
    args: &CellArgs,
    memory_bytes: u64,
    model: &Path,
    out: &Path,
) -> Result<Vec<Missing>, CellError> {
    let cell = cell(args, memory_bytes, model, out)?;
    let strictness = if args.allow_unsandboxed {
        Strictness::WhatThereIs
    } else {
        Strictness::Required
    };
    let missing = lock_up(&cell, strictness)?;
    scan(model)?;
    Ok(missing)
}

/// Scans the blocks that a child wrote: one that a model took over could have
/// written anything. Blocks; not for an async thread.
///
/// # Errors
/// The first block that no agent should load.
pub(super) fn scan_blocks(manifest: &Manifest, dir: &Path) -> Result<(), CellError> {
    let mut blocks = manifest.blocks.iter();
    blocks.try_for_each(|block| scan(&dir.join(format!("{}.pt", block.digest))))
}

/// Whether libtorch may open `model`.
fn scan(model: &Path) -> Result<(), CellError> {
    let scanned = scan_file(model, &ScanLimits::default());
    scanned.map(|_| ()).map_err(|error| CellError::Scan {
        path: model.to_owned(),
        error,
    })
}

/// The bytes of `model`, where `out` is a folder, made if it is not there.
///
/// # Errors
/// Either is not what it should be.
pub(super) fn check_paths(model: &Path, out: &Path) -> Result<u64, CellError> {
    let file = fs::metadata(model).map_err(at(model))?;
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
    fs::create_dir_all(out).map_err(at(out))?;
    Ok(file.len())
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CellError {
    let path = path.to_owned();
    move |source| CellError::Path { path, source }
}

fn cell(args: &CellArgs, memory_bytes: u64, model: &Path, out: &Path) -> Result<Cell, CellError> {
    let bytes = check_paths(model, out)?;
    let read = fs::canonicalize(model).map_err(at(model))?;
    let write = fs::canonicalize(out).map_err(at(out))?;
    Ok(Cell {
        read: vec![read],
        write,
        limits: Limits {
            memory_bytes,
            cpu: Duration::from_secs(args.cpu_limit),
            file_bytes: room_bytes(bytes),
        },
    })
}

impl From<&CellError> for Failure {
    fn from(error: &CellError) -> Self {
        let text = crate::causes::with_causes(error);
        match error {
            CellError::Scan {
                error: ScanError::Read(_),
                ..
            }
            | CellError::Path { .. }
            | CellError::NoFile { .. }
            | CellError::NoFolder { .. } => Self::retryable(Reason::PrepareFailed, text),
            CellError::Scan { .. } => Self::new(Reason::InvalidModel, text),
            // Another host or another setting may do.
            CellError::Lock(_) => Self::retryable(
                Reason::PrepareFailed,
                format!(
                    "{text}; a kernel from 5.13 with Landlock in its `lsm=` list does, or \
                     --allow-unsandboxed (chart: agent.allowUnsandboxed) for models that you trust"
                ),
            ),
        }
    }
}

/// Says that memory ran out where libtorch's words mean that.
pub(super) fn naming_memory(mut failure: Failure, memory_bytes: u64) -> Failure {
    // The last is what oneDNN's later calls say after one that had no memory.
    let marks = [
        "can't allocate memory",
        "bad_alloc",
        "not enough memory",
        "Broken promise",
    ];
    if marks.iter().any(|m| failure.message.contains(m)) {
        failure = Failure::retryable(
            Reason::PrepareFailed,
            format!(
                "the model needs more memory than the {} that preparing may take: {}",
                format_bytes(memory_bytes),
                failure.message
            ),
        );
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        cell: CellArgs,
    }

    #[test]
    fn what_the_agent_wants_is_what_its_child_reads() {
        let strict = CellArgs::default();
        let loose = CellArgs {
            allow_unsandboxed: true,
            memory_limit: Some(3 << 30),
            cpu_limit: 7,
        };
        for cell in [strict, loose] {
            let arguments = std::iter::once("prepare".to_owned()).chain(cell.arguments());
            assert_eq!(Cli::parse_from(arguments).cell, cell);
        }
    }

    #[test]
    fn a_refused_model_is_invalid_and_a_host_that_cannot_lock_up_may_learn_it() {
        let scan = |error| CellError::Scan {
            path: "m.pt".into(),
            error,
        };
        let failure = Failure::from(&scan(ScanError::Empty));
        assert_eq!(failure.reason, Reason::InvalidModel);
        assert!(!failure.retryable);
        let unreadable = Failure::from(&scan(ScanError::Read(io::Error::other("disk"))));
        assert_eq!(unreadable.reason, Reason::PrepareFailed);
        assert!(unreadable.retryable);
        assert!(unreadable.message.ends_with("disk"), "{unreadable}");
        let missing = Missing {
            what: "Landlock",
            why: "not there".into(),
        };
        let error = CellError::Lock(LockError::Unsupported(vec![missing]));
        let failure = Failure::from(&error);
        assert_eq!(failure.reason, Reason::PrepareFailed);
        assert!(failure.retryable);
        assert!(failure.message.contains("no Landlock (not there)"));
        assert!(failure.message.contains("agent.allowUnsandboxed"));
    }

    #[test]
    fn want_of_memory_is_named() {
        let other = Failure::new(Reason::InputMismatch, "mat1 and mat2");
        assert_eq!(naming_memory(other.clone(), 1), other);
        let huge = Failure::new(Reason::InputMismatch, "can't allocate memory: 1 TB");
        let named = naming_memory(huge, 2 << 30);
        assert_eq!(named.reason, Reason::PrepareFailed);
        assert!(named.message.contains("2.0Gi"), "{named}");
    }
}
