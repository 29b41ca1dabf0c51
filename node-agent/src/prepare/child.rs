//! The process in which an untrusted model is opened.

use super::disk::DiskLimit;
use super::limits::naming_memory;
use super::lines::Told;
use super::{Failure, LimitArgs, Line, Reason};
use crate::worker;
use lamina_model::{Declared, MANIFEST_BYTES, Manifest};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// At least this, and several times the CPU limit: a host's share may be small.
const WALL_LIMIT: Duration = Duration::from_secs(30 * 60);
const WALL_OVER_CPU: u32 = 3;
/// Longest line: the longest valid one is a manifest.
pub(super) const LINE_BYTES: u64 = MANIFEST_BYTES;
/// Length of the end of a crashing child's output that is kept for the cause.
const STDERR_BYTES: usize = 2048;
// The numbers are the same on all Linux architectures except MIPS.
const SIGKILL: i32 = 9;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;

/// The input of preparing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Its inputs and fixed arguments.
    pub(super) inputs: &'a [Declared],
    /// A file with the user's own requests.
    pub(super) samples: Option<&'a Path>,
}

/// The program that understands `prepare FILE --out DIR --inputs JSON [--samples FILE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// Its sandbox and limits.
    pub cell: LimitArgs,
    /// After this it is killed in any case.
    pub wall_limit: Duration,
}

impl Program {
    /// The program at `path`.
    pub fn new(path: PathBuf, cell: LimitArgs) -> Self {
        let computing = Duration::from_secs(cell.cpu_limit);
        Self {
            path,
            wall_limit: WALL_LIMIT.max(computing.saturating_mul(WALL_OVER_CPU)),
            cell,
        }
    }

    /// The worker's program.
    ///
    /// # Errors
    /// It is missing.
    pub fn worker(cell: LimitArgs) -> io::Result<Self> {
        Ok(Self::new(worker::program()?, cell))
    }

    fn command(
        &self,
        model: &Path,
        asked: &Asked<'_>,
        (out, disk): (&Path, &DiskLimit),
        memory_bytes: u64,
    ) -> io::Result<Command> {
        let mut command = worker::command(&self.path, 1);
        command.arg("prepare").arg(model);
        command.arg("--out").arg(out);
        let inputs = serde_json::to_string(asked.inputs)?;
        command.arg(format!("--inputs={inputs}"));
        if let Some(samples) = asked.samples {
            command.arg("--samples").arg(samples);
        }
        command.arg(format!("--file-limit={}", disk.bytes()));
        command.args(self.cell.arguments(memory_bytes));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Prepares `model` into `out`, its own folder; `None` if cancelled. The child
    /// has ended in every case.
    ///
    /// # Errors
    /// The child's error, or how it died.
    pub(super) async fn run(
        &self,
        model: &Path,
        asked: &Asked<'_>,
        out: &Path,
        told: &mut (dyn FnMut(Told) + Send),
        cancel: &CancellationToken,
    ) -> Option<Result<Manifest, Failure>> {
        let disk = match DiskLimit::of(model, out) {
            Ok(disk) => disk,
            Err(e) => return Some(Err(failed(&format!("cannot read it: {e}")))),
        };
        let memory_bytes = match self.cell.memory_bytes() {
            Ok(bytes) => bytes,
            Err(failure) => return Some(Err(failure)),
        };
        let command = self.command(model, asked, (out, &disk), memory_bytes);
        let mut child = match command.and_then(|mut command| command.spawn()) {
            Ok(child) => child,
            Err(e) => return Some(Err(failed(&format!("cannot start a process for it: {e}")))),
        };
        let outcome = {
            let overflow = disk.overflow(child.id());
            let reading = timeout(self.wall_limit, read_all(&mut child, told));
            let watched = async {
                tokio::select! {
                    read = reading => Ok(read),
                    failure = overflow => Err(failure),
                }
            };
            cancel.run_until_cancelled(watched).await
        };
        if !matches!(outcome, Some(Ok(Ok(_))))
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "cannot end the process that prepares");
        }
        Some(match outcome? {
            // Files written since the last check count too.
            Ok(Ok(Ok(said))) => disk.look(None).await.and_then(|()| {
                let judged = said.judge(&self.cell);
                judged.map_err(|failure| naming_memory(failure, memory_bytes))
            }),
            Ok(Ok(Err(e))) => Err(failed(&format!("the process for it is lost: {e}"))),
            Ok(Err(_)) => {
                let seconds = self.wall_limit.as_secs();
                let message = format!("preparing takes longer than {seconds} s");
                Err(Failure::new(Reason::PrepareFailed, message))
            }
            Err(overflow) => Err(overflow),
        })
    }
}

/// A child's output and how it ended.
#[derive(Debug)]
struct Said {
    last: Option<Line>,
    stderr: String,
    status: ExitStatus,
}

impl Said {
    fn judge(self, cell: &LimitArgs) -> Result<Manifest, Failure> {
        match self.last {
            Some(Line::Error(failure)) => Err(failure),
            Some(Line::Manifest(manifest)) if self.status.success() => {
                let checked = manifest.validate();
                checked.map_err(|e| failed(&format!("the blocks make no sense: {e}")))?;
                Ok(*manifest)
            }
            _ => Err(died(self.status, &self.stderr, cell)),
        }
    }
}

/// Why a process ended without an error. Limits are the model's fault, and a retry is useless; free
/// memory varies.
fn died(status: ExitStatus, stderr: &str, cell: &LimitArgs) -> Failure {
    use std::os::unix::process::ExitStatusExt as _;
    let last = stderr.lines().rev().find(|l| !l.trim().is_empty());
    let said = last.map_or_else(String::new, |l| format!("; it said: {}", l.trim()));
    match status.signal() {
        Some(SIGXCPU) => {
            let seconds = cell.cpu_limit;
            let message = format!(
                "the model could not be prepared: it computed for more than {seconds} s; does its \
                 forward, code that runs on loading, or libtorch's work on its graph end?"
            );
            Failure::new(Reason::PrepareFailed, message)
        }
        Some(SIGXFSZ) => Failure::new(
            Reason::PrepareFailed,
            "the model could not be prepared: it wrote a file far larger than itself",
        ),
        // Sent by the kernel when memory is short.
        Some(SIGKILL) => failed(&format!(
            "the process was killed, probably for want of memory: raise the agent's limit{said}"
        )),
        _ => failed(&format!("the process crashed ({status}){said}")),
    }
}

fn failed(what: &str) -> Failure {
    let message = format!("the model could not be prepared: {what}");
    Failure::retryable(Reason::PrepareFailed, message)
}

async fn read_all(child: &mut Child, told: &mut (dyn FnMut(Told) + Send)) -> io::Result<Said> {
    let pipe = || io::Error::other("it has no pipe");
    let stdout = child.stdout.take().ok_or_else(pipe)?;
    let stderr = child.stderr.take().ok_or_else(pipe)?;
    let (last, stderr) = tokio::join!(read_lines(stdout, told), read_tail(stderr));
    Ok(Said {
        last: last?,
        stderr: stderr?,
        status: child.wait().await?,
    })
}

/// Forwards steps and warnings and returns the last other line. Unknown lines come from libtorch or
/// the model and are ignored.
async fn read_lines(
    stdout: impl AsyncRead + Unpin,
    told: &mut (dyn FnMut(Told) + Send),
) -> io::Result<Option<Line>> {
    let mut reader = BufReader::new(stdout);
    let mut last = None;
    loop {
        let mut text = Vec::new();
        let mut bounded = (&mut reader).take(LINE_BYTES);
        if bounded.read_until(b'\n', &mut text).await? == 0 {
            return Ok(last);
        }
        match serde_json::from_slice(&text) {
            Ok(Line::Progress(step)) => told(Told::Step(step)),
            Ok(Line::Warning(warning)) => told(Told::Warning(warning)),
            Ok(line) => last = Some(line),
            Err(_) => tracing::debug!(bytes = text.len(), "no line of ours"),
        }
    }
}

pub(super) async fn read_tail(mut stderr: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut tail = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        let read = stderr.read(&mut buffer).await?;
        if read == 0 {
            return Ok(String::from_utf8_lossy(&tail).into_owned());
        }
        tail.extend_from_slice(&buffer[..read]);
        let excess = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..excess);
    }
}
