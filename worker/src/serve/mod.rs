//! Serving: loads slices and runs them. Loads, one at a time, and each lane of runs have their own
//! thread and socket.

mod loads;
mod runs;
mod slices;

use crate::cell::be_expendable;
use clap::Args;
use lamina_sandbox::lock::{Cell, Limits};
use lamina_torchscript::LoadOptions;
use lamina_worker_link::cell::{enter, real_path};
use lamina_worker_link::frame::Port;
use lamina_worker_link::message::{Greeting, Lane};
use lamina_worker_link::with_causes;
use slices::Slices;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::thread;

/// The agent's arguments. The socket of the first lane is standard input, the one for loads
/// standard output, which also brings the sockets of further lanes.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// The one folder that it may read, with block files.
    #[arg(long)]
    folder: PathBuf,
    /// Memory limit in bytes.
    #[arg(long)]
    memory_limit: u64,
    /// Concurrent forwards.
    #[arg(long, default_value_t = 1)]
    lanes: u32,
    /// Threads inside one forward.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Warm-up forwards before a slice counts as ready.
    #[arg(long, default_value_t = 3)]
    warmup_runs: u32,
    /// Continue if the kernel lacks the sandbox.
    #[arg(long)]
    allow_unsandboxed: bool,
}

/// Serves until the agent closes a socket.
pub(crate) fn run(args: &ServeArgs) -> bool {
    be_expendable();
    let Ok((runs, mut loads)) = ports() else {
        return false;
    };
    // Before anything else: later steps may start threads.
    let missing = match lock_up(args) {
        Ok(missing) => missing,
        Err(why) => return loads.send(&Greeting::Refused(why)).is_err(),
    };
    if loads.send(&Greeting::Ready { missing }).is_err() {
        return false;
    }
    let options = LoadOptions {
        threads: args.threads,
        lanes: args.lanes,
        optimize: true,
        warmup_runs: args.warmup_runs,
    };
    let slices = Slices::default();
    // Before loading, since threads would inherit its niceness.
    for _ in 1..args.lanes {
        if !open_lane(&mut loads, &slices) {
            return false;
        }
    }
    let held = slices.clone();
    let loading = thread::Builder::new().name("load".into()).spawn(move || {
        let served = catch_unwind(AssertUnwindSafe(|| loads::serve(loads, &held, &options)));
        // The agent is gone, or sent something invalid.
        std::process::exit(i32::from(served.is_err()));
    });
    if loading.is_err() {
        return false;
    }
    runs::serve(runs, &slices);
    true
}

/// Serves the lane whose socket comes next, on its own thread.
fn open_lane(loads: &mut Port, slices: &Slices) -> bool {
    let Ok((Lane, Some(socket))) = loads.receive() else {
        return false;
    };
    let slices = slices.clone();
    let lane = thread::Builder::new().name("run".into()).spawn(move || {
        let served = catch_unwind(AssertUnwindSafe(|| {
            runs::serve(Port::new(socket), &slices);
        }));
        // The agent has closed it or is gone, or sent something invalid.
        std::process::exit(i32::from(served.is_err()));
    });
    lane.is_ok()
}

/// The sockets, moved from standard input and output: the output of a model must not be mistaken
/// for this program's.
fn ports() -> io::Result<(Port, Port)> {
    let own = |fd: rustix::io::Result<OwnedFd>| fd.map(Port::new).map_err(io::Error::from);
    let runs = own(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3))?;
    let loads = own(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3))?;
    rustix::stdio::dup2_stdin(rustix::stdio::stderr())?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok((runs, loads))
}

fn lock_up(args: &ServeArgs) -> Result<Vec<String>, String> {
    let folder = real_path(&args.folder).map_err(|e| with_causes(&e))?;
    let cell = Cell {
        read: vec![folder],
        write: None,
        limits: Limits {
            memory_bytes: args.memory_limit,
            cpu: None,
            file_bytes: 0,
        },
    };
    let missing = enter(&cell, args.allow_unsandboxed).map_err(|e| with_causes(&e))?;
    Ok(missing.iter().map(ToString::to_string).collect())
}
