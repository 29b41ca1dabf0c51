//! Resource limits of preparing, and requirements on its blocks.

use super::{Failure, Reason};
use crate::measure::memory_free_bytes;
use crate::worker;
use clap::Args;
use lamina_crds::quantity::{format_bytes, parse_bytes};
use lamina_model::Manifest;
use lamina_worker_link::cell::{CellError, scan_block, tells_of_memory};
use std::path::Path;

/// libtorch alone takes a quarter of this.
const MEMORY_BYTES_AT_LEAST: u64 = 256 << 20;

/// Several times what the largest known models take on one core of a small board.
const CPU_LIMIT_SECONDS: u64 = 600;

/// Limits of preparing, and whether the sandbox is required.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LimitArgs {
    /// Open the model even if the kernel cannot sandbox the process (no Landlock or
    /// no seccomp): only for models that you trust.
    #[arg(long)]
    pub allow_unsandboxed: bool,
    /// Memory limit for preparing, such as 4Gi; by default four fifths of the free
    /// memory.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub memory_limit: Option<u64>,
    /// CPU time limit for preparing, in seconds, to end a forward that never
    /// returns.
    #[arg(long, default_value_t = CPU_LIMIT_SECONDS, value_name = "SECONDS")]
    pub cpu_limit: u64,
}

impl Default for LimitArgs {
    fn default() -> Self {
        Self {
            allow_unsandboxed: false,
            memory_limit: None,
            cpu_limit: CPU_LIMIT_SECONDS,
        }
    }
}

impl LimitArgs {
    /// The worker's arguments, with its memory limit.
    pub(super) fn arguments(&self, memory_bytes: u64) -> Vec<String> {
        let mut arguments = vec![
            format!("--cpu-limit={}", self.cpu_limit),
            format!("--memory-limit={memory_bytes}"),
        ];
        if self.allow_unsandboxed {
            arguments.push("--allow-unsandboxed".to_owned());
        }
        arguments
    }

    /// The memory limit in bytes.
    ///
    /// # Errors
    /// This host has too little free memory to prepare anything.
    pub(super) fn memory_bytes(&self) -> Result<u64, Failure> {
        match self.memory_limit {
            Some(limit) => Ok(limit.max(MEMORY_BYTES_AT_LEAST)),
            None => most_of(memory_free_bytes()),
        }
    }
}

/// Four fifths of what is free. Who takes more than there is has the kernel end the container.
fn most_of(free_bytes: u64) -> Result<u64, Failure> {
    let limit = worker::memory_share(free_bytes);
    if limit >= MEMORY_BYTES_AT_LEAST {
        return Ok(limit);
    }
    let message = format!(
        "preparing takes {} at least, which is four fifths of what a host must have free; {} are \
         free here",
        format_bytes(MEMORY_BYTES_AT_LEAST),
        format_bytes(free_bytes)
    );
    Err(Failure::retryable(Reason::PrepareFailed, message))
}

/// Scans the blocks that a child wrote: one that a model took over could have
/// written anything. Blocks; not for an async thread.
///
/// # Errors
/// The first block that no agent may load.
pub(super) fn scan_blocks(manifest: &Manifest, dir: &Path) -> Result<(), CellError> {
    let mut blocks = manifest.blocks.iter();
    blocks.try_for_each(|block| scan_block(&dir.join(block.file_name())).map(drop))
}

/// Says that memory ran out, if that is what libtorch's message means.
pub(super) fn naming_memory(mut failure: Failure, memory_bytes: u64) -> Failure {
    if tells_of_memory(&failure.message) {
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

    #[test]
    fn a_host_without_room_prepares_nothing() {
        assert_eq!(most_of(1 << 30).unwrap(), (1 << 30) / 5 * 4);
        assert!(most_of(320 << 20).is_ok());
        let refused = most_of(200 << 20).unwrap_err();
        assert!(refused.retryable);
        let message = refused.message;
        assert!(
            message.contains("256Mi") && message.contains("200Mi"),
            "{message}"
        );
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
