//! How much memory a worker may take by now: what its host has left, not what it had when the
//! worker started. Without it, a model that takes what others have taken since would have the
//! kernel end the container with all its models.

use super::Shared;
use super::worker::Worker;
use crate::worker;
use rustix::io;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Workers that take memory in the same period may together take more than there is: the
/// shorter, the less. Looking costs some 50 µs for each worker.
const PERIOD: Duration = Duration::from_millis(100);
/// What a worker has mapped and not written to counts as taken beyond this, since it may
/// write to it at any time; libtorch leaves some 40 MB untouched.
const UNTOUCHED_BYTES: u64 = 64 << 20;

/// Memory of a worker, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// What its limit counts: private and writable, touched or not.
    data: u64,
    touched: u64,
}

impl Held {
    fn of(process: Pid) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{process}/status")).ok()?)
    }

    fn read(status: &str) -> Option<Self> {
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
            Some(kib << 10)
        };
        Some(Self {
            data: bytes("VmData:")?,
            touched: bytes("RssAnon:")?,
        })
    }

    fn untouched(self) -> u64 {
        let untouched = self.data.saturating_sub(self.touched);
        untouched.saturating_sub(UNTOUCHED_BYTES)
    }
}

/// How many bytes of data each of the workers that hold `held` may have while the host has
/// `free` left: as much more than now as one may take of that.
fn limits(free: u64, held: &[Held]) -> Vec<u64> {
    let untouched: u64 = held.iter().map(|held| held.untouched()).sum();
    let room = worker::memory_share(free.saturating_sub(untouched));
    held.iter().map(|held| held.data + room).collect()
}

/// Keeps the workers' limits to what is free, as long as there is an agent.
pub(super) async fn keep_within(shared: Weak<Shared>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_failed = false;
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(error) = keep_now(&shared)
            && !std::mem::replace(&mut has_failed, true)
        {
            tracing::warn!(%error, "cannot limit the memory of workers to what is free");
        }
    }
}

fn keep_now(shared: &Shared) -> io::Result<()> {
    let workers = shared.living().into_iter();
    let held = workers.filter_map(|worker| {
        let held = worker.with_process(Held::of)??;
        Some((worker, held))
    });
    let (workers, held): (Vec<Arc<Worker>>, Vec<Held>) = held.unzip();
    if held.is_empty() {
        return Ok(());
    }
    let limits = limits((shared.options.memory_free_bytes)(), &held);
    each(workers.iter().zip(limits), |(worker, limit)| {
        let most = worker.memory_limit_bytes;
        let limit = Rlimit {
            current: Some(limit.min(most)),
            maximum: Some(most),
        };
        match worker.with_process(|process| prlimit(Some(process), Resource::Data, limit)) {
            // It has ended meanwhile.
            None | Some(Ok(_) | Err(io::Errno::SRCH)) => Ok(()),
            Some(Err(error)) => Err(error),
        }
    })
}

/// Does `work` for each of `all`, whatever happens to others, and returns the first error.
fn each<T>(all: impl Iterator<Item = T>, work: impl FnMut(T) -> io::Result<()>) -> io::Result<()> {
    all.map(work).fold(Ok(()), io::Result::and)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(data: u64, touched: u64) -> Held {
        Held {
            data: data * MIB,
            touched: touched * MIB,
        }
    }

    #[test]
    fn each_may_take_most_of_what_is_free() {
        let two = [held(120, 100), held(300, 290)];
        assert_eq!(limits(1000 * MIB, &two), [920 * MIB, 1100 * MIB]);
        assert_eq!(limits(0, &two), [120 * MIB, 300 * MIB]);
        assert!(limits(1000 * MIB, &[]).is_empty());
    }

    #[test]
    fn what_is_mapped_and_not_written_to_is_taken() {
        let two = [held(864, 100), held(120, 100)];
        // 700 MiB of the first, beyond what is usual.
        assert_eq!(limits(1000 * MIB, &two), [1104 * MIB, 360 * MIB]);
        assert_eq!(limits(500 * MIB, &two), [864 * MIB, 120 * MIB]);
    }

    #[test]
    fn the_kernels_words_are_read() {
        let status = "Name:\tx\nVmData:\t  119680 kB\nRssAnon:\t   98576 kB\n";
        let read = Held::read(status).unwrap();
        assert_eq!((read.data, read.touched), (119_680 << 10, 98_576 << 10));
        assert_eq!(Held::read("VmData:\t1 kB\n"), None);
        let own = rustix::process::getpid();
        assert!(Held::of(own).unwrap().touched > 0);
    }

    #[test]
    fn one_that_cannot_be_limited_leaves_no_other_unlimited() {
        let mut tried = Vec::new();
        let outcome = each(1..=4, |n| {
            tried.push(n);
            match n {
                2 => Err(io::Errno::PERM),
                3 => Err(io::Errno::INVAL),
                _ => Ok(()),
            }
        });
        assert_eq!((outcome, tried), (Err(io::Errno::PERM), vec![1, 2, 3, 4]));
    }
}
