//! One container: its process, restarted when it ends, and its probes.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::probe::{self, ProbeSpec};

/// Pauses before restarts.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A process that ran this long gets the first pause again.
const STEADY: Duration = Duration::from_secs(10);

/// When an ended container is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    fn again(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// An event of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Started,
    Ended { code: i32 },
    CannotStart(String),
    Ready(bool),
}

/// The process id of a running container, for signals.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process(Arc<Mutex<Option<Pid>>>);

impl Process {
    /// Sends a signal. Signals that end or stop reach the whole container, as in a shared PID
    /// namespace.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pid) = *guard else {
            return false;
        };
        let whole = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT];
        match whole.contains(&signal) {
            true => killpg(pid, signal).is_ok(),
            false => kill(pid, signal).is_ok(),
        }
    }

    fn set(&self, pid: Option<Pid>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }
}

/// A container that can be started any number of times.
pub(crate) struct Runnable {
    pub(crate) script: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) log: PathBuf,
    pub(crate) restart: Restart,
    pub(crate) address: IpAddr,
    pub(crate) namespace: Option<PathBuf>,
    pub(crate) startup: Option<ProbeSpec>,
    pub(crate) readiness: Option<ProbeSpec>,
    pub(crate) liveness: Option<ProbeSpec>,
    pub(crate) process: Process,
    /// While true, ended processes are not restarted.
    pub(crate) suspended: watch::Receiver<bool>,
}

/// Runs the container until it is stopped, with the given grace, or has ended for good. Dropping
/// the sender of `stop` stops at once.
pub(crate) async fn supervise(
    mut runnable: Runnable,
    tell: impl Fn(Event) + Sync,
    mut stop: watch::Receiver<Option<Duration>>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            // If the sender is gone, the lab is stopping.
            _ = runnable.suspended.wait_for(|suspended| !suspended) => {}
            _ = stop.wait_for(Option::is_some) => return,
        }
        let begin = Instant::now();
        let code = match start(&runnable) {
            Ok(mut child) => {
                let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                let pid = pid.map(Pid::from_raw);
                runnable.process.set(pid);
                tell(Event::Started);
                let status = run(&runnable, &tell, &mut child, pid, &mut stop).await;
                runnable.process.set(None);
                if let Some(pid) = pid {
                    // Children of the process end with it.
                    let _ = killpg(pid, Signal::SIGKILL);
                }
                let code = exit_code(status);
                tell(Event::Ended { code });
                code
            }
            Err(error) => {
                tell(Event::CannotStart(error.to_string()));
                1
            }
        };
        if stop.borrow().is_some() || stop.has_changed().is_err() || !runnable.restart.again(code) {
            return;
        }
        if begin.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(Option::is_some) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn start(runnable: &Runnable) -> std::io::Result<Child> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&runnable.log)?;
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh"])
        .arg(&runnable.script)
        .env_clear()
        .envs(&runnable.environment)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Waits for the end of the process, and runs its probes meanwhile.
async fn run(
    runnable: &Runnable,
    tell: &(impl Fn(Event) + Sync),
    child: &mut Child,
    pid: Option<Pid>,
    stop: &mut watch::Receiver<Option<Duration>>,
) -> std::io::Result<ExitStatus> {
    let probes = ask_probes(runnable, tell, pid);
    tokio::select! {
        status = child.wait() => return status,
        () = probes => {}
        _ = stop.wait_for(Option::is_some) => {}
    }
    let grace = (*stop.borrow()).unwrap_or(Duration::ZERO);
    if let Some(pid) = pid {
        let _ = kill(pid, Signal::SIGTERM);
    }
    if let Ok(status) = tokio::time::timeout(grace, child.wait()).await {
        return status;
    }
    if let Some(pid) = pid {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    child.wait().await
}

/// Runs the probes forever; a failed liveness probe ends the process.
async fn ask_probes(runnable: &Runnable, tell: &(impl Fn(Event) + Sync), pid: Option<Pid>) {
    let end = |why: &str| {
        tracing::warn!(log = %runnable.log.display(), "the {why} probe failed, the container starts again");
        if let Some(pid) = pid {
            // The process may have ended already.
            let _ = kill(pid, Signal::SIGTERM);
        }
    };
    if let Some(spec) = &runnable.startup {
        let (started, mut seen) = watch::channel(false);
        let asking = ask(runnable, spec, false, |good| match good {
            true => drop(started.send(true)),
            false => end("startup"),
        });
        tokio::select! {
            () = asking => {}
            _ = seen.wait_for(|started| *started) => {}
        }
    }
    let ready = async {
        match &runnable.readiness {
            Some(spec) => ask(runnable, spec, true, |good| tell(Event::Ready(good))).await,
            None => tell(Event::Ready(true)),
        }
    };
    let live = async {
        if let Some(spec) = &runnable.liveness {
            let decide = |good: bool| {
                if !good {
                    end("liveness");
                }
            };
            ask(runnable, spec, false, decide).await;
        }
    };
    tokio::join!(ready, live);
    std::future::pending::<()>().await;
}

async fn ask(runnable: &Runnable, spec: &ProbeSpec, impatient: bool, changed: impl FnMut(bool)) {
    let namespace = runnable.namespace.clone();
    probe::watch(
        spec.clone(),
        impatient,
        runnable.address,
        namespace,
        changed,
    )
    .await;
}

fn exit_code(status: std::io::Result<ExitStatus>) -> i32 {
    match status {
        Ok(status) => status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .unwrap_or(1),
        Err(_) => 1,
    }
}
