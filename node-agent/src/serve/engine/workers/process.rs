//! A worker's process: how it is started and how it ended.

use super::channel::Channel;
use crate::worker;
use lamina_worker_link::frame::FrameError;
use lamina_worker_link::message::{Greeting, Lane};
use rustix::process::{Pid, Resource, WaitId, WaitIdOptions, getrlimit, waitid};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStderr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// libtorch must be found and mapped, even on a tenth of a processor.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Time for a process to die after a fault.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// libtorch alone takes a quarter of this.
const MEMORY_BYTES_AT_LEAST: u64 = 256 << 20;
/// Length of the end of a crashing worker's output that is kept for the cause.
const STDERR_BYTES: usize = 2048;

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    /// The program, `lamina-worker`.
    pub(crate) program: PathBuf,
    /// Each has its own folder in here; block files are linked into it.
    pub(crate) folder: PathBuf,
    /// Concurrent forwards.
    pub(crate) lanes: u32,
    /// Threads inside one forward.
    pub(crate) threads: u32,
    /// Warm-up forwards before a slice counts as ready.
    pub(crate) warmup_runs: u32,
    /// Memory limit of one; four fifths of the free memory by default.
    pub(crate) memory_bytes: Option<u64>,
    /// Memory that the host has left, in bytes.
    pub(crate) memory_free_bytes: fn() -> u64,
    /// The largest answer that is taken out of a worker, in bytes.
    pub(crate) answer_bytes: u64,
    /// Go on where the kernel cannot lock a process up.
    pub(crate) allow_unsandboxed: bool,
}

/// A worker that has reported that it is sandboxed.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) child: Child,
    /// What it may ever take.
    pub(super) memory_limit_bytes: u64,
    /// The largest answer that is taken from it.
    pub(super) answer_limit_bytes: u64,
    /// One for each lane.
    runs: Vec<Channel>,
    loads: Channel,
    folder: TempDir,
    stderr: JoinHandle<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it did not begin within {} s", START_LIMIT.as_secs())]
    Slow,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Refused(String),
    #[error("it ended at once ({0})")]
    Ended(String),
}

impl WorkerOptions {
    /// Starts one.
    pub(super) async fn start(&self) -> Result<Process, StartError> {
        let folder = tempfile::tempdir_in(&self.folder)?;
        let (first, their_first) = Channel::pair()?;
        let (loads, their_loads) = Channel::pair()?;
        let memory = self
            .memory_bytes
            .unwrap_or_else(|| worker::memory_share((self.memory_free_bytes)()))
            .max(MEMORY_BYTES_AT_LEAST);
        // A worker, too, is under the limits of its agent.
        let inherited = getrlimit(Resource::Data).maximum;
        let memory = inherited.map_or(memory, |most| memory.min(most));
        let mut command = worker::command(&self.program, self.threads);
        command
            .arg("serve")
            .arg("--folder")
            .arg(folder.path())
            .arg(format!("--lanes={}", self.lanes.max(1)))
            .arg(format!("--threads={}", self.threads))
            .arg(format!("--warmup-runs={}", self.warmup_runs))
            .arg(format!("--memory-limit={memory}"));
        if self.allow_unsandboxed {
            command.arg("--allow-unsandboxed");
        }
        let mut child = command
            .stdin(Stdio::from(their_first))
            .stdout(Stdio::from(their_loads))
            .stderr(Stdio::piped())
            .spawn()?;
        // The command holds the worker's ends, whose closing signals its end.
        drop(command);
        let stderr = child.stderr.take();
        let mut process = Process {
            child,
            memory_limit_bytes: memory,
            answer_limit_bytes: self.answer_bytes,
            runs: vec![first],
            loads,
            folder,
            stderr: tokio::spawn(tail(stderr)),
        };
        match timeout(START_LIMIT, process.loads.receive()).await {
            Err(_) => Err(StartError::Slow),
            Ok(Ok(Greeting::Ready { missing })) => {
                for missing in missing {
                    tracing::warn!(missing, "a worker is not fully locked up");
                }
                process.open_lanes(self.lanes).await?;
                Ok(process)
            }
            Ok(Ok(Greeting::Refused(why))) => Err(StartError::Refused(why)),
            Ok(Err(FrameError::Closed)) => Err(StartError::Ended(process.end().await)),
            Ok(Err(error)) => Err(error.into()),
        }
    }
}

/// How often the kernel is asked if a process has ended, where it cannot send a signal.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The number of a child that was not reaped: only until then does nobody else get it.
#[derive(Debug)]
pub(super) struct Unreaped(Mutex<Option<Pid>>);

impl Unreaped {
    pub(super) fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(Mutex::new(id.and_then(Pid::from_raw)))
    }

    /// What `work` makes of the number; it must be short. `None` after `release`, which waits for
    /// it.
    pub(super) fn with<T>(&self, work: impl FnOnce(Pid) -> T) -> Option<T> {
        let number = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        number.map(work)
    }

    /// Waits until the process has ended, without reaping it.
    pub(super) async fn ended(&self) {
        let Some(number) = self.with(|number| number) else {
            return;
        };
        // From here on no signal is missed; it may come of another child.
        let mut of_children = signal(SignalKind::child());
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while let Ok(None) = waitid(WaitId::Pid(number), ended) {
            match &mut of_children {
                Ok(signals) => {
                    signals.recv().await;
                }
                Err(_) => sleep(ASK_AGAIN).await,
            }
        }
    }

    /// From now on the process may be reaped.
    pub(super) fn release(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The rest of a process whose sockets were taken.
#[derive(Debug)]
pub(super) struct Remains {
    folder: TempDir,
    stderr: JoinHandle<String>,
}

/// The sockets and the child.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) child: Child,
    pub(super) runs: Vec<Channel>,
    pub(super) loads: Channel,
}

impl Process {
    /// Gives the worker all lanes but the first, which it has.
    async fn open_lanes(&mut self, lanes: u32) -> Result<(), StartError> {
        for _ in 1..lanes {
            let (lane, theirs) = Channel::pair()?;
            self.loads.send(&Lane, Some(theirs.as_fd())).await?;
            self.runs.push(lane);
        }
        Ok(())
    }

    /// Number of concurrent runs.
    pub(super) fn lanes(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn split(self) -> (Inner, Remains) {
        let Self {
            child,
            runs,
            loads,
            folder,
            stderr,
            ..
        } = self;
        (Inner { child, runs, loads }, Remains { folder, stderr })
    }

    async fn end(self) -> String {
        let (inner, remains) = self.split();
        remains.end(inner.child).await
    }
}

impl Remains {
    /// The one folder that it reads.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How `child` died of itself, or by force where it does not.
    pub(super) async fn end(self, mut child: Child) -> String {
        let status = match timeout(DYING_LIMIT, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = child.start_kill();
                child.wait().await
            }
        };
        // Its pipe closes with it.
        let said = timeout(DYING_LIMIT, self.stderr).await;
        let said = said.ok().and_then(Result::ok).unwrap_or_default();
        match status {
            Ok(status) => describe(status, &said),
            Err(error) => format!("it is lost: {error}"),
        }
    }

    /// Kills `child`.
    pub(super) async fn kill(self, mut child: Child) {
        if let Err(error) = child.kill().await {
            tracing::warn!(%error, "cannot end a worker");
        }
    }
}

/// The end of a worker's output.
async fn tail(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut chunk = [0; STDERR_BYTES];
    while let Ok(read @ 1..) = stderr.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..read]);
        let surplus = kept.len().saturating_sub(STDERR_BYTES);
        kept.drain(..surplus);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn describe(status: ExitStatus, said: &str) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let said = last.map_or_else(String::new, |line| format!("; it said: {}", line.trim()));
    match status.signal() {
        Some(9) => format!("SIGKILL, probably for want of memory{said}"),
        Some(number) => format!("{}{said}", name_of(number)),
        None => format!("{status}{said}"),
    }
}

/// The numbers are the same on all Linux architectures except MIPS.
fn name_of(signal: i32) -> String {
    let name = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use tokio::process::Command;

    #[tokio::test]
    async fn the_number_of_a_process_stays_its_own_until_it_is_released() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Unreaped::of(&child);
        assert!(timeout(ASK_AGAIN, process.ended()).await.is_err());
        child.start_kill().unwrap();
        timeout(DYING_LIMIT, process.ended()).await.unwrap();
        // It has ended, and nobody else has its number.
        let number = process.with(|number| number).unwrap();
        assert_eq!(Some(number.as_raw_pid()), child.id().map(u32::cast_signed));
        let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap();
        assert!(status.contains("State:\tZ"), "{status}");
        process.release();
        assert_eq!(process.with(|number| number), None);
        timeout(DYING_LIMIT, process.ended()).await.unwrap();
        assert_eq!(child.wait().await.unwrap().signal(), Some(9));
    }

    #[test]
    fn an_end_is_told_with_the_last_words() {
        let by = |signal, said| describe(ExitStatus::from_raw(signal), said);
        assert_eq!(by(11, ""), "SIGSEGV");
        assert_eq!(
            by(6, "a\nterminate called\n\n"),
            "SIGABRT; it said: terminate called"
        );
        assert!(by(9, "").contains("memory"));
        assert_eq!(by(3 << 8, ""), "exit status: 3");
        assert_eq!(by(40, ""), "signal 40");
    }
}
