//! Network namespaces: one per host, named `lamina<index>-<host>`.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tun_rs::{DeviceBuilder, SyncDevice};

use super::NetworkError;

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";
/// Ethernet's size, so that packets are paced as in the field.
pub(super) const MTU: u16 = 1500;
/// Queue length while the router is not scheduled.
const DEVICE_QUEUE_PACKETS: u32 = 4096;

/// A named network namespace, removed when dropped.
pub(super) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace and brings its loopback up.
    pub(super) fn create(index: u8, host: &str) -> Result<Self, NetworkError> {
        let name = format!("{}{host}", prefix(index));
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The file that `nsenter --net=` and `setns` take.
    pub(super) fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            tracing::warn!(%error, namespace = self.name, "a network namespace is left over");
        }
    }
}

fn prefix(index: u8) -> String {
    format!("lamina{index}-")
}

/// Kills the processes in the namespaces of a killed lab, and removes the namespaces.
pub(crate) fn remove_leftovers(index: u8) -> Result<(), NetworkError> {
    let prefix = prefix(index);
    let Ok(entries) = std::fs::read_dir(NAMED) else {
        return Ok(());
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
    {
        for pid in ip(&["netns", "pids", &name])?
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            // The process may have ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        ip(&["netns", "del", &name])?;
    }
    Ok(())
}

/// Runs `work` inside a namespace, on its own thread: a thread that has changed its namespace must
/// not be used for anything else. Sockets and devices made there stay there. `None` stays in the
/// root namespace.
pub(crate) fn within<T: Send>(
    namespace: Option<&Path>,
    work: impl FnOnce() -> std::io::Result<T> + Send,
) -> std::io::Result<T> {
    let Some(path) = namespace else {
        return work();
    };
    let file = File::open(path)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                work()
            })
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread in the namespace ended")))
    })
}

/// Makes a host's TUN device with its address and a route to all other hosts.
pub(super) fn create_device(
    namespace: Option<&Path>,
    name: &str,
    address: Ipv4Addr,
) -> std::io::Result<SyncDevice> {
    within(namespace, || {
        let device = DeviceBuilder::new()
            .name(name)
            .ipv4(address, 24, None)
            .mtu(MTU)
            .tx_queue_len(DEVICE_QUEUE_PACKETS)
            .build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    })
}

/// Runs `ip` and returns its output.
pub(crate) fn ip(arguments: &[&str]) -> Result<String, NetworkError> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(NetworkError::NoIp)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetworkError::Ip {
        command: arguments.join(" "),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
