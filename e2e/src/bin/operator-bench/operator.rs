//! The operator's process, supervised as a kubelet would.

use anyhow::{Context as _, Result, bail};
use lamina_e2e::Signal;
use lamina_e2e::metrics::{self, Histogram};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The chart's liveness probe, with a kubelet's defaults for what it omits.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBE_FAILURES: u32 = 3;
/// Time to end after a signal.
const GRACE: Duration = Duration::from_secs(30);
/// A process that lived for less than this is restarted after this time.
const BACK_OFF: Duration = Duration::from_secs(10);
/// The metrics may be megabytes of text.
const FIGURES_WITHIN: Duration = Duration::from_secs(20);
/// The histogram of its reconciles.
const LOOKS: &str = "lamina_reconcile_duration_seconds";
/// The kernel's clock ticks per second.
const TICKS_PER_SECOND: f64 = 100.0;

/// How to start it.
pub(crate) struct Setup<'a> {
    pub(crate) program: &'a Path,
    pub(crate) kubeconfig: &'a Path,
    pub(crate) address: Ipv4Addr,
    /// Its store and its log go here.
    pub(crate) folder: &'a Path,
}

/// What the supervisor has seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) process: Option<u32>,
    pub(crate) failed_probes: u32,
    pub(crate) restarts: u32,
    /// Peak kilobytes over all processes.
    peak_kilobytes: u64,
}

/// The running operator. Dropping it ends the process.
pub(crate) struct Operator {
    admin: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    keeper: JoinHandle<()>,
}

impl Operator {
    pub(crate) fn start(setup: &Setup<'_>) -> Result<Self> {
        let (port, admin_port) = (free_port()?, free_port()?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, admin_port));
        let how = How {
            program: setup.program.to_owned(),
            arguments: vec![
                "run".to_owned(),
                "--namespace=lamina-system".to_owned(),
                "--pod-name=lamina-operator-0".to_owned(),
                format!("--pod-ip={}", setup.address),
                format!("--port={port}"),
                format!("--admin-port={admin_port}"),
                format!("--store-dir={}", setup.folder.join("store").display()),
            ],
            kubeconfig: setup.kubeconfig.to_owned(),
            log: setup.folder.join("operator.log"),
        };
        let first = how.spawn()?;
        let keeper = tokio::spawn(keep(how, first, admin, Arc::clone(&seen)));
        Ok(Self {
            admin,
            seen,
            keeper,
        })
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether it reports ready.
    pub(crate) async fn is_ready(&self) -> bool {
        let answer = metrics::fetch(self.admin, "/readyz", PROBE_TIMEOUT).await;
        answer.is_ok()
    }

    /// The durations of its reconciles so far; `None` if it does not answer.
    pub(crate) async fn looks(&self) -> Option<Histogram> {
        let text = metrics::fetch(self.admin, "/metrics", FIGURES_WITHIN).await;
        Histogram::parse(&text.ok()?, LOOKS)
    }

    /// Megabytes of memory now, and at the peak since the first start.
    pub(crate) fn memory(&self) -> Option<(f64, f64)> {
        let seen = self.seen();
        let status = std::fs::read_to_string(format!("/proc/{}/status", seen.process?)).ok()?;
        let now = kilobytes(&status, "VmRSS:")?;
        let peak = kilobytes(&status, "VmHWM:")?.max(seen.peak_kilobytes);
        Some((now as f64 / 1e3, peak as f64 / 1e3))
    }

    /// Ends the process and waits for it.
    pub(crate) async fn stop(self) {
        self.keeper.abort();
        if let Some(process) = self.seen().process {
            signal(process, Signal::SIGKILL);
            // The supervisor's handle reaps it; this only waits for the ports.
            while Path::new(&format!("/proc/{process}/fd/0")).exists() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Seconds of processor time used by a process; `None` if it is gone.
pub(crate) fn processor_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // After the name, which may contain anything, utime and stime are 12th and 13th.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks = rest.split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.filter_map(|t| t.parse().ok()).collect();
    (ticks.len() == 2).then(|| ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

struct How {
    program: PathBuf,
    arguments: Vec<String>,
    kubeconfig: PathBuf,
    log: PathBuf,
}

impl How {
    fn spawn(&self) -> Result<Child> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        Command::new(&self.program)
            .args(&self.arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("RUST_LOG", "info")
            // As the chart sets it.
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }
}

/// Probes the process, and restarts it when it ends or does not answer.
async fn keep(how: How, mut child: Child, admin: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let note = |change: &dyn Fn(&mut Seen)| {
        change(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let mut failures = 0;
    let mut begin = Instant::now();
    loop {
        let process = child.id();
        note(&|seen| seen.process = process);
        let ended = timeout(PROBE_EVERY, child.wait()).await.is_ok();
        if !ended {
            if let Some(peak) = process.and_then(peak) {
                note(&|seen| seen.peak_kilobytes = seen.peak_kilobytes.max(peak));
            }
            if metrics::fetch(admin, "/livez", PROBE_TIMEOUT).await.is_ok() {
                failures = 0;
                continue;
            }
            failures += 1;
            note(&|seen| seen.failed_probes += 1);
            if failures < PROBE_FAILURES {
                continue;
            }
            end(&mut child).await;
        }
        failures = 0;
        note(&|seen| {
            seen.restarts += 1;
            seen.process = None;
        });
        if begin.elapsed() < BACK_OFF {
            sleep(BACK_OFF).await;
        }
        begin = Instant::now();
        match how.spawn() {
            Ok(next) => child = next,
            Err(error) => {
                eprintln!("{error:#}");
                return;
            }
        }
    }
}

async fn end(child: &mut Child) {
    if let Some(process) = child.id() {
        signal(process, Signal::SIGTERM);
    }
    if timeout(GRACE, child.wait()).await.is_err() {
        // It has ended, or does now.
        let _ = child.kill().await;
    }
}

fn signal(process: u32, signal: Signal) {
    if let Ok(process) = i32::try_from(process) {
        // The process may be gone already.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), signal);
    }
}

fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    kilobytes(&status, "VmHWM:")
}

fn kilobytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    match listener.local_addr()?.port() {
        0 => bail!("the kernel gave no port"),
        port => Ok(port),
    }
}
