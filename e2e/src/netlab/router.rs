//! The thread that moves packets between the hosts' TUN devices.
//!
//! One thread and one `ppoll`: at the rates of edge links a packet costs a few
//! microseconds, and timers of an async runtime are too coarse for pacing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tun_rs::SyncDevice;

use super::link::{Link, Pipe};

/// Packets read from one device before the others get their turn.
const BURST: usize = 64;
/// Buffers kept for reuse; the rest is freed.
const POOL: usize = 4096;

/// Traffic of one directed pair since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes delivered, including IP headers.
    pub bytes: u64,
    /// Packets delivered.
    pub packets: u64,
    /// Packets lost to a full queue or a link that is down.
    pub drops: u64,
}

#[derive(Default)]
struct PairCounters {
    bytes: AtomicU64,
    packets: AtomicU64,
    drops: AtomicU64,
}

/// A host as the router sees it.
pub(super) struct Port {
    pub(super) address: Ipv4Addr,
    pub(super) device: SyncDevice,
    pub(super) mtu: usize,
}

/// A change of one link, by port numbers.
struct Change {
    from: usize,
    to: usize,
    link: Link,
}

/// The running router; dropping it stops the thread and closes the devices.
pub(super) struct Router {
    ports: usize,
    changes: Sender<Change>,
    counters: Arc<Vec<PairCounters>>,
    /// Dropped first, which ends the thread.
    wake: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    /// Starts the thread. `link(from, to)` gives the initial links.
    pub(super) fn start(
        ports: Vec<Port>,
        link: impl Fn(usize, usize) -> Link,
    ) -> std::io::Result<Self> {
        let count = ports.len();
        let counters: Arc<Vec<PairCounters>> = Arc::new(
            (0..count * count)
                .map(|_| PairCounters::default())
                .collect(),
        );
        let now = Instant::now();
        let pipes = (0..count * count)
            .map(|pair| Pipe::new(link(pair / count, pair % count), now))
            .collect();
        let (changes, receive) = channel();
        let (wake_reader, wake) = std::io::pipe()?;
        let mut engine = Engine {
            ports,
            pipes,
            scheduled: vec![None; count * count],
            timers: BinaryHeap::new(),
            counters: Arc::clone(&counters),
            pool: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("lab-router".to_owned())
            .spawn(move || {
                prefer_this_thread();
                if let Err(error) = engine.run(&receive, wake_reader) {
                    tracing::error!(%error, "the lab's router stopped, no host can reach another");
                }
            })?;
        Ok(Self {
            ports: count,
            changes,
            counters,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Changes one link; takes effect within microseconds.
    pub(super) fn set_link(&self, from: usize, to: usize, link: Link) {
        // A stopped router has logged the reason.
        if self.changes.send(Change { from, to, link }).is_ok()
            && let Some(mut wake) = self.wake.as_ref()
        {
            let _ = wake.write(&[0]);
        }
    }

    /// Traffic of a pair.
    pub(super) fn counters(&self, from: usize, to: usize) -> Counters {
        let pair = &self.counters[from * self.ports + to];
        Counters {
            bytes: pair.bytes.load(Ordering::Relaxed),
            packets: pair.packets.load(Ordering::Relaxed),
            drops: pair.drops.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Raises this thread's priority, so that a busy machine does not stretch the emulated delays.
/// Failing is no error: the links are then less exact under load.
fn prefer_this_thread() {
    let thread = nix::unistd::gettid().to_string();
    let reniced = std::process::Command::new("renice")
        .args(["--priority", "-10", "--pid", &thread])
        .output();
    if !reniced.is_ok_and(|output| output.status.success()) {
        tracing::debug!("the router keeps its ordinary priority");
    }
}

struct Engine {
    ports: Vec<Port>,
    /// By `from * ports + to`.
    pipes: Vec<Pipe<Vec<u8>>>,
    /// The earliest timer in `timers` of each pipe.
    scheduled: Vec<Option<Instant>>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    counters: Arc<Vec<PairCounters>>,
    pool: Vec<Vec<u8>>,
}

impl Engine {
    fn run(&mut self, changes: &Receiver<Change>, mut wake: PipeReader) -> std::io::Result<()> {
        loop {
            self.deliver_due();
            let (woken, ready) = self.wait(&wake)?;
            if woken {
                let mut bytes = [0; 64];
                if wake.read(&mut bytes)? == 0 {
                    return Ok(());
                }
                self.apply(changes);
            }
            for port in ready {
                self.read_burst(port)?;
            }
        }
    }

    /// Sleeps until a packet comes in, one is due, or `wake` is written.
    fn wait(&self, wake: &PipeReader) -> std::io::Result<(bool, Vec<usize>)> {
        let timeout = self
            .timers
            .peek()
            .map(|Reverse((due, _))| due.saturating_duration_since(Instant::now()));
        let mut polled: Vec<PollFd<'_>> = std::iter::once(wake.as_fd())
            .chain(self.ports.iter().map(|port| port.device.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut polled, timeout.map(TimeSpec::from_duration), None) {
            Ok(_) => {}
            Err(nix::Error::EINTR) => return Ok((false, Vec::new())),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let ready = polled[1..]
            .iter()
            .enumerate()
            .filter(|(_, fd)| is_ready(fd))
            .map(|(port, _)| port)
            .collect();
        Ok((is_ready(&polled[0]), ready))
    }

    fn apply(&mut self, changes: &Receiver<Change>) {
        let now = Instant::now();
        for Change { from, to, link } in changes.try_iter() {
            let pair = from * self.ports.len() + to;
            let lost = self.pipes[pair].change(now, link);
            self.counters[pair]
                .drops
                .fetch_add(lost.len() as u64, Ordering::Relaxed);
            self.pool.extend(lost);
            self.schedule(pair);
        }
    }

    fn read_burst(&mut self, from: usize) -> std::io::Result<()> {
        for _ in 0..BURST {
            let mut packet = self.pool.pop().unwrap_or_default();
            packet.resize(self.ports[from].mtu, 0);
            match self.ports[from].device.recv(&mut packet) {
                Ok(length) => {
                    packet.truncate(length);
                    self.route(from, packet);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.recycle(packet);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => self.recycle(packet),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn route(&mut self, from: usize, packet: Vec<u8>) {
        let to = destination(&packet)
            .and_then(|address| self.ports.iter().position(|port| port.address == address));
        // Broadcasts and addresses outside the lab are dropped.
        let Some(to) = to.filter(|to| *to != from) else {
            return self.recycle(packet);
        };
        let pair = from * self.ports.len() + to;
        match self.pipes[pair].push(Instant::now(), packet.len() as u64, packet) {
            Ok(()) => self.schedule(pair),
            Err(dropped) => {
                self.counters[pair].drops.fetch_add(1, Ordering::Relaxed);
                self.recycle(dropped);
            }
        }
    }

    fn deliver_due(&mut self) {
        while let Some(Reverse((due, pair))) = self.timers.peek().copied() {
            let now = Instant::now();
            if due > now {
                return;
            }
            self.timers.pop();
            if self.scheduled[pair] == Some(due) {
                self.scheduled[pair] = None;
            }
            while let Some(packet) = self.pipes[pair].pop(now) {
                self.deliver(pair, packet);
            }
            self.schedule(pair);
        }
    }

    fn deliver(&mut self, pair: usize, packet: Vec<u8>) {
        let counters = &self.counters[pair];
        // A receiver that cannot take a packet loses it, like a network card.
        match self.ports[pair % self.ports.len()].device.send(&packet) {
            Ok(_) => {
                counters
                    .bytes
                    .fetch_add(packet.len() as u64, Ordering::Relaxed);
                counters.packets.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => {
                counters.drops.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.recycle(packet);
    }

    /// Sets a timer for the pipe unless an earlier one is set.
    fn schedule(&mut self, pair: usize) {
        let Some(due) = self.pipes[pair].next_deadline() else {
            return;
        };
        if self.scheduled[pair].is_none_or(|set| due < set) {
            self.scheduled[pair] = Some(due);
            self.timers.push(Reverse((due, pair)));
        }
    }

    fn recycle(&mut self, packet: Vec<u8>) {
        if self.pool.len() < POOL {
            self.pool.push(packet);
        }
    }
}

/// Destination of an IPv4 packet; `None` for other protocols.
fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    if packet.first()? >> 4 != 4 {
        return None;
    }
    let bytes: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_read_from_ipv4_only() {
        let mut packet = vec![0u8; 20];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 77, 0, 3]);
        assert_eq!(destination(&packet), Some(Ipv4Addr::new(10, 77, 0, 3)));
        packet[0] = 0x60;
        assert_eq!(destination(&packet), None);
        assert_eq!(destination(&[0x45; 8]), None);
        assert_eq!(destination(&[]), None);
    }
}
