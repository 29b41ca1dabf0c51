//! Settings of a lab.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::netlab::{CONTROL, Link};

/// Which part of the continuum a host belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Where requests originate.
    Device,
    /// Near the devices.
    Edge,
    /// Far away and fast.
    Cloud,
}

impl Tier {
    /// The value of the tier label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        }
    }
}

/// A host of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Also the name of its Node: lower case letters, digits, `-`.
    pub name: String,
    /// Its tier, set as a label of the Node.
    pub tier: Tier,
    /// Processor share in thousandths of a core: enforced on its processes,
    /// and the capacity of its Node.
    pub cpu_millis: u64,
    /// Memory in bytes: enforced, and the capacity of its Node.
    pub memory_bytes: u64,
    /// Further labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Whether it is a Node; a machine without a kubelet is not, and only runs commands.
    pub is_node: bool,
}

impl HostSpec {
    /// A host without further labels.
    pub fn new(name: &str, tier: Tier, cpu_millis: u64, memory_bytes: u64) -> Self {
        Self {
            name: name.to_owned(),
            tier,
            cpu_millis,
            memory_bytes,
            labels: BTreeMap::new(),
            is_node: true,
        }
    }

    /// The same machine without a kubelet.
    #[must_use]
    pub fn without_kubelet(self) -> Self {
        Self {
            is_node: false,
            ..self
        }
    }
}

/// The links at the start of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    /// Between two hosts that are not listed.
    pub default: Link,
    /// From and to the control host.
    pub control: Link,
    /// By (from, to).
    pub pairs: BTreeMap<(String, String), Link>,
}

impl Links {
    /// The same link between all hosts; 1 ms and 1 Gbit/s to the control host.
    pub fn all(default: Link) -> Self {
        Self {
            default,
            control: Link::new(Duration::from_millis(1), 1_000_000_000),
            pairs: BTreeMap::new(),
        }
    }

    /// Sets both directions between two hosts.
    #[must_use]
    pub fn between(mut self, one: &str, other: &str, link: Link) -> Self {
        let (one, other) = (one.to_owned(), other.to_owned());
        self.pairs.insert((one.clone(), other.clone()), link);
        self.pairs.insert((other, one), link);
        self
    }

    pub(crate) fn get(&self, from: &str, to: &str) -> Link {
        let pair = self.pairs.get(&(from.to_owned(), to.to_owned()));
        pair.copied()
            .unwrap_or(match [from, to].contains(&CONTROL) {
                true => self.control,
                false => self.default,
            })
    }
}

/// The stand-in for a container image: a program of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The program run by containers of this image.
    pub program: PathBuf,
    /// Environment set by the image, such as `LD_LIBRARY_PATH`.
    pub environment: BTreeMap<String, String>,
}

impl From<PathBuf> for Image {
    fn from(program: PathBuf) -> Self {
        Self {
            program,
            environment: BTreeMap::new(),
        }
    }
}

/// Settings of a lab.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Distinguishes labs on one machine; the first free one by default. Hosts get the addresses
    /// 10.77.`index`.2 and up.
    pub index: Option<u8>,
    /// Folder of logs, volumes and the kubeconfig; leftovers of an earlier lab are removed.
    pub dir: PathBuf,
    /// The hosts, in the order of their addresses.
    pub hosts: Vec<HostSpec>,
    /// The links between them.
    pub links: Links,
    /// Image repository (without tag) → the program that replaces it.
    pub images: BTreeMap<String, Image>,
    /// Also makes the control host a Node, tainted and labelled as by kubeadm: for the operator,
    /// away from the measured hosts.
    pub control_node: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_looked_up_by_pair_then_by_kind() {
        let link = |mbit: u64| Link::new(Duration::from_millis(5), mbit * 1_000_000);
        let links = Links::all(link(100)).between("cam-1", "edge-1", link(50));
        assert_eq!(links.get("cam-1", "edge-1"), link(50));
        assert_eq!(links.get("edge-1", "cam-1"), link(50));
        assert_eq!(links.get("cam-1", "cloud-0"), link(100));
        assert_eq!(links.get("cam-1", CONTROL), links.control);
        assert_eq!(links.get(CONTROL, "cam-1"), links.control);
    }
}
