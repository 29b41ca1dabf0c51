//! The process in which an untrusted model is opened.

use super::input::format_input;
use super::{Failure, Line, Reason, Step};
use lamina_model::{InputSpec, Manifest};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const WALL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The end of what a crashing child said, enough for the cause.
const STDERR_BYTES: usize = 2048;
/// All that a child learns of this process's environment, which holds secrets.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];

/// The program that understands `prepare FILE --input … --out DIR --json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(pub PathBuf);

impl Program {
    /// This program.
    ///
    /// # Errors
    /// The system does not say where it is.
    pub fn this() -> io::Result<Self> {
        std::env::current_exe().map(Self)
    }

    fn command(&self, model: &Path, inputs: &[InputSpec], out: &Path) -> Command {
        let mut command = Command::new(&self.0);
        command.arg("prepare").arg(model).arg("--json");
        command.arg("--out").arg(out);
        for input in inputs {
            command.arg(format!("--input={}", format_input(input)));
        }
        command.env_clear();
        for name in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Prepares `model` into `out`; `None` when cancelled. The child has ended
    /// in every case.
    ///
    /// # Errors
    /// What the child says, or how it died.
    pub(super) async fn run(
        &self,
        model: &Path,
        inputs: &[InputSpec],
        out: &Path,
        progress: &mut (dyn FnMut(Step) + Send),
        cancel: &CancellationToken,
    ) -> Option<Result<Manifest, Failure>> {
        let mut child = match self.command(model, inputs, out).spawn() {
            Ok(child) => child,
            Err(e) => return Some(Err(failed(&format!("cannot start a process for it: {e}")))),
        };
        let outcome = {
            let reading = timeout(WALL_LIMIT, read_all(&mut child, progress));
            cancel.run_until_cancelled(reading).await
        };
        if !matches!(outcome, Some(Ok(_)))
            && let Err(error) = child.kill().await
        {
            tracing::warn!(%error, "cannot end the process that prepares");
        }
        outcome.map(|in_time| match in_time {
            Ok(Ok(said)) => said.judge(),
            Ok(Err(e)) => Err(failed(&format!("the process for it is lost: {e}"))),
            Err(_) => {
                let minutes = WALL_LIMIT.as_secs() / 60;
                let message = format!("preparing takes longer than {minutes} minutes");
                Err(Failure::new(Reason::PrepareFailed, message))
            }
        })
    }
}

/// What a child said and how it ended.
#[derive(Debug)]
struct Said {
    last: Option<Line>,
    stderr: String,
    status: ExitStatus,
}

impl Said {
    fn judge(self) -> Result<Manifest, Failure> {
        match self.last {
            Some(Line::Error(failure)) => Err(failure),
            Some(Line::Manifest(manifest)) if self.status.success() => {
                let checked = manifest.validate();
                checked.map_err(|e| failed(&format!("the blocks make no sense: {e}")))?;
                Ok(*manifest)
            }
            _ => Err(failed(&died(self.status, &self.stderr))),
        }
    }
}

fn died(status: ExitStatus, stderr: &str) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let last = stderr.lines().rev().find(|l| !l.trim().is_empty());
    let said = last.map_or_else(String::new, |l| format!("; it said: {}", l.trim()));
    match status.signal() {
        // What the kernel sends when memory is short.
        Some(9) => {
            format!(
                "the process was killed, probably for want of memory: raise the agent's limit{said}"
            )
        }
        _ => format!("the process crashed ({status}){said}"),
    }
}

fn failed(what: &str) -> Failure {
    let message = format!("the model could not be prepared: {what}");
    Failure::retryable(Reason::PrepareFailed, message)
}

async fn read_all(child: &mut Child, progress: &mut (dyn FnMut(Step) + Send)) -> io::Result<Said> {
    let pipe = || io::Error::other("it has no pipe");
    let stdout = child.stdout.take().ok_or_else(pipe)?;
    let stderr = child.stderr.take().ok_or_else(pipe)?;
    let (last, stderr) = tokio::join!(read_lines(stdout, progress), read_tail(stderr));
    Ok(Said {
        last: last?,
        stderr: stderr?,
        status: child.wait().await?,
    })
}

/// Passes progress on and gives the last other line. What is no line of ours is
/// libtorch's or the model's and of no interest.
async fn read_lines(
    stdout: impl AsyncRead + Unpin,
    progress: &mut (dyn FnMut(Step) + Send),
) -> io::Result<Option<Line>> {
    let mut lines = BufReader::new(stdout).lines();
    let mut last = None;
    while let Some(text) = lines.next_line().await? {
        match serde_json::from_str(&text) {
            Ok(Line::Progress(step)) => progress(step),
            Ok(line) => last = Some(line),
            Err(_) => tracing::debug!(text, "the process that prepares says"),
        }
    }
    Ok(last)
}

async fn read_tail(mut stderr: impl AsyncRead + Unpin) -> io::Result<String> {
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
