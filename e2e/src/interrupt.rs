//! Ctrl-C: a lab must not outlive the run that was interrupted.

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::cgroup::Cgroups;
use crate::netlab;

/// Listens until dropped.
pub(crate) struct Interrupts(JoinHandle<()>);

impl Interrupts {
    /// Stops listening.
    pub(crate) fn ignore(&self) {
        self.0.abort();
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.ignore();
    }
}

/// Ends the process on SIGINT and SIGTERM, after killing everything that the lab of this index has
/// started. It waits for nothing: processes of a lab have nothing to save.
pub(crate) fn end_lab_when_interrupted(index: u8) -> std::io::Result<Interrupts> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(Interrupts(tokio::spawn(async move {
        let number = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        if let Err(error) = Cgroups::remove_leftovers(index) {
            eprintln!("{error}");
        }
        if let Err(error) = netlab::remove_leftovers(index) {
            eprintln!("{error}");
        }
        std::process::exit(128 + number.as_raw_value());
    })))
}
