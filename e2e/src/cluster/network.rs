//! The nodes' network: a bridge in the root namespace, with the control plane, and a network
//! namespace per node. Pods of all nodes reach each other by plain routes; no packet leaves the
//! machine.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::files::pod_range;
use crate::netlab::{NetworkError, ip};

const BRIDGE: &str = "lamina-br";
const PREFIX: &str = "lamina-node-";
/// Node addresses end in two digits.
const MOST_NODES: u8 = 9;
/// The address of the API server and the test.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// The address of the node with this number.
pub(super) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 10 + number)
}

/// The file that `nsenter --net=` takes.
pub(super) fn namespace(node: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("{PREFIX}{node}"))
}

/// The running network; removed on drop.
#[derive(Debug)]
pub(super) struct Network(());

impl Network {
    /// Makes bridge, namespaces and routes, after removing leftovers of a killed run. Nodes are
    /// numbered from 1 in this order.
    pub(super) fn create(nodes: &[&str]) -> Result<Self, NetworkError> {
        remove()?;
        let network = Self(());
        words(&format!("link add {BRIDGE} type bridge"))?;
        words(&format!("addr add {HUB}/24 dev {BRIDGE}"))?;
        words(&format!("link set {BRIDGE} up"))?;
        for (node, number) in nodes.iter().zip(1..) {
            attach(node, number)?;
        }
        for (node, number) in nodes.iter().zip(1..) {
            let others = (1..).take(nodes.len()).filter(|other| *other != number);
            for other in others {
                let (range, gateway) = (pod_range(other), address(other));
                words(&format!(
                    "-n {PREFIX}{node} route add {range} via {gateway}"
                ))?;
            }
        }
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = remove() {
            tracing::warn!(%error, "a part of the nodes' network is left over");
        }
    }
}

fn attach(node: &str, number: u8) -> Result<(), NetworkError> {
    let namespace = format!("{PREFIX}{node}");
    let link = cable(number);
    let address = address(number);
    let range = pod_range(number);
    words(&format!("netns add {namespace}"))?;
    words(&format!(
        "link add {link} type veth peer name eth0 netns {namespace}"
    ))?;
    words(&format!("link set {link} master {BRIDGE}"))?;
    words(&format!("link set {link} up"))?;
    words(&format!("-n {namespace} link set lo up"))?;
    words(&format!("-n {namespace} addr add {address}/24 dev eth0"))?;
    words(&format!("-n {namespace} link set eth0 up"))?;
    words(&format!("-n {namespace} route add default via {HUB}"))?;
    words(&format!("route add {range} via {address}"))?;
    words(&format!(
        "netns exec {namespace} sysctl -qw net.ipv4.ip_forward=1"
    ))
}

/// Kills the processes in the nodes' namespaces and undoes [`Network::create`].
pub(super) fn remove() -> Result<(), NetworkError> {
    let namespaces = ip(&["netns", "list"])?;
    let ours = |line: &str| -> Option<String> {
        let name = line.split_whitespace().next()?;
        name.starts_with(PREFIX).then(|| name.to_owned())
    };
    for name in namespaces.lines().filter_map(ours) {
        let pids = ip(&["netns", "pids", &name])?;
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // The process may have ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        ip(&["netns", "del", &name])?;
    }
    // A namespace whose last process is still ending keeps its end of the cable.
    let cables = (1..=MOST_NODES).map(cable);
    for link in cables.chain([BRIDGE.to_owned()]) {
        if ip(&["link", "show", "dev", &link]).is_ok() {
            ip(&["link", "del", &link])?;
        }
    }
    Ok(())
}

/// The node's end of it is `eth0`.
fn cable(number: u8) -> String {
    format!("lamina-v{number}")
}

fn words(command: &str) -> Result<(), NetworkError> {
    let words: Vec<&str> = command.split_whitespace().collect();
    ip(&words).map(drop)
}
