//! Resource limits.

use super::LockError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// Descriptors: the standard ones, the model, a block, and some for libtorch.
const OPEN_FILES: u64 = 64;

/// Limits of a process.
///
/// There is none on the number of processes: the kernel counts those of the
/// user on the whole host, including other pods'. Starting any is refused instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory that it writes to. Address space is no measure: libtorch maps hundreds of
    /// megabytes that it never touches.
    pub memory_bytes: u64,
    /// CPU time of all threads together; unlimited if absent, for a process that serves while it is
    /// watched.
    pub cpu: Option<Duration>,
    /// Size of the largest file that it writes.
    pub file_bytes: u64,
}

pub(super) fn set(limits: &Limits) -> Result<(), LockError> {
    lower(Resource::Core, 0, 0, "core dumps")?;
    lower(Resource::Nofile, OPEN_FILES, OPEN_FILES, "open files")?;
    let file = limits.file_bytes;
    lower(Resource::Fsize, file, file, "the size of files")?;
    let memory = limits.memory_bytes;
    lower(Resource::Data, memory, memory, "memory")?;
    let Some(cpu) = limits.cpu else {
        return Ok(());
    };
    let cpu = cpu.as_secs().max(1);
    // SIGXCPU first, which shows others why it ended.
    lower(Resource::Cpu, cpu, cpu + 5, "computing time")
}

/// Never above the present limit, which would need a privilege.
fn lower(
    resource: Resource,
    current: u64,
    maximum: u64,
    what: &'static str,
) -> Result<(), LockError> {
    let held = getrlimit(resource).maximum;
    let at_most = |wanted: u64| Some(held.map_or(wanted, |held| wanted.min(held)));
    let limit = Rlimit {
        current: at_most(current),
        maximum: at_most(maximum),
    };
    setrlimit(resource, limit).map_err(|e| LockError::Limit {
        what,
        source: e.into(),
    })
}
