//! The program that opens models, `lamina-worker`, which is installed next to this one and is
//! the only one that links libtorch.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

const NAME: &str = "lamina-worker";
/// The only variables that a worker gets from this process's environment, which holds secrets.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];
/// On a host with a tenth of a processor, many times its budget.
const BENCHMARK_LIMIT: Duration = Duration::from_secs(120);
/// The part of the free memory that a worker may take where no limit is set: four fifths.
const MEMORY_SHARE: (u64, u64) = (4, 5);

/// What a worker may take of `free` bytes of memory.
pub(crate) fn memory_share(free: u64) -> u64 {
    free / MEMORY_SHARE.1 * MEMORY_SHARE.0
}

/// The path of the worker's program.
///
/// # Errors
/// It is missing.
pub(crate) fn program() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.with_file_name(NAME);
    if path.is_file() {
        return Ok(path);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("{NAME} must lie beside {}", own.display()),
    ))
}

/// The worker at `program`, with `threads` inside one operation; killed with its handle.
pub(crate) fn command(program: &Path, threads: u32) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in KEPT_VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("OMP_NUM_THREADS", threads.to_string())
        .kill_on_drop(true);
    command
}

/// Concurrent forwards, and the threads in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lanes {
    pub(crate) lanes: u32,
    pub(crate) threads: u32,
}

/// GFLOP/s of the reference benchmark for each of `ways`, over all lanes; takes about
/// `budget`.
///
/// # Errors
/// The worker does not run.
pub(crate) async fn benchmark(
    program: &Path,
    ways: &[Lanes],
    budget: Duration,
) -> io::Result<Vec<f64>> {
    let mut command = command(program, 1);
    command
        .arg("benchmark")
        .arg(format!("--milliseconds={}", budget.as_millis()))
        .args(
            ways.iter()
                .map(|w| format!("--lanes={}x{}", w.lanes, w.threads)),
        )
        .stdin(Stdio::null());
    let output = timeout(BENCHMARK_LIMIT, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout);
    let speeds: Result<Vec<f64>, _> = said.lines().map(str::parse).collect();
    let speeds = speeds.ok().filter(|speeds| speeds.len() == ways.len());
    speeds.ok_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        io::Error::other(format!(
            "{NAME} ended with {} and measured nothing: {}",
            output.status,
            errors.trim()
        ))
    })
}
