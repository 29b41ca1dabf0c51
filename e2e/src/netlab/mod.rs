//! Hosts as network namespaces, joined by emulated links.
//!
//! Every host has one TUN device; a router in this process moves packets
//! between them and gives each directed pair its own delay, rate and queue.
//! No kernel module beyond `tun` is needed, and links change while running.

mod link;
mod namespace;
mod router;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use link::Link;
pub use router::Counters;

use namespace::{MTU, Namespace, create_device};
pub(crate) use namespace::{ip, remove_leftovers, within};
use router::{Port, Router};

/// The name of the host of the control plane: the root namespace.
pub const CONTROL: &str = "control";
/// The last byte of the control host's address; other hosts follow.
const FIRST_ADDRESS: u8 = 1;
/// Hosts that fit into one /24, the control host among them.
const MOST_HOSTS: usize = 250;

/// Why there is no emulated network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Not root.
    #[error("the lab makes network namespaces and cgroups: run it as root")]
    NotRoot,
    /// The device file for TUN is missing.
    #[error("/dev/net/tun is missing: load the kernel's tun module (`modprobe tun`)")]
    NoTun,
    /// iproute2 is missing.
    #[error("the command `ip` cannot be run: install iproute2")]
    NoIp(#[source] std::io::Error),
    /// `ip` failed.
    #[error("`ip {command}` failed: {said}")]
    Ip {
        /// Its arguments.
        command: String,
        /// What it printed on standard error.
        said: String,
    },
    /// A device could not be made.
    #[error("cannot make the network device of host {host}")]
    Device {
        /// The host.
        host: String,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// The router's thread or pipe could not be made.
    #[error("cannot start the router")]
    Router(#[source] std::io::Error),
    /// No such host.
    #[error("no host {0:?} in this lab")]
    UnknownHost(String),
    /// Two hosts have the same name, or one has the control host's.
    #[error("the host name {0:?} is taken")]
    NameTaken(String),
    /// More than fit.
    #[error("{0} hosts, but a lab has room for {MOST_HOSTS}")]
    TooManyHosts(usize),
}

struct Host {
    name: String,
    address: Ipv4Addr,
    /// The control host stays in the root namespace.
    namespace: Option<Namespace>,
}

/// The running network. Dropping it stops the router and removes the namespaces.
pub struct Network {
    // Field order is drop order: devices close before their namespaces go.
    router: Router,
    hosts: Vec<Host>,
    links: Mutex<BTreeMap<(usize, usize), Link>>,
}

impl Network {
    /// Makes a namespace per host and starts the router.
    ///
    /// Addresses are 10.77.`index`.N; the control host, which is the root
    /// namespace, has N = 1. Leftovers of an earlier lab of the same index are
    /// removed first.
    pub fn start(
        index: u8,
        hosts: &[&str],
        link: impl Fn(&str, &str) -> Link,
    ) -> Result<Self, NetworkError> {
        check(hosts)?;
        remove_leftovers(index)?;
        let mut made = Vec::new();
        let mut ports = Vec::new();
        for (name, last) in std::iter::once(&CONTROL).chain(hosts).zip(FIRST_ADDRESS..) {
            let namespace = match *name {
                CONTROL => None,
                name => Some(Namespace::create(index, name)?),
            };
            let address = Ipv4Addr::new(10, 77, index, last);
            let path = namespace.as_ref().map(Namespace::path);
            let device = create_device(path.as_deref(), &format!("lamina{index}"), address)
                .map_err(|source| NetworkError::Device {
                    host: (*name).to_owned(),
                    source,
                })?;
            ports.push(Port {
                address,
                device,
                mtu: usize::from(MTU),
            });
            made.push(Host {
                name: (*name).to_owned(),
                address,
                namespace,
            });
        }
        let mut links = BTreeMap::new();
        for (from, to) in pairs(made.len()) {
            links.insert((from, to), link(&made[from].name, &made[to].name));
        }
        let loopback = Link::new(std::time::Duration::ZERO, u64::MAX);
        let router = Router::start(ports, |from, to| {
            links.get(&(from, to)).copied().unwrap_or(loopback)
        })
        .map_err(NetworkError::Router)?;
        Ok(Self {
            router,
            hosts: made,
            links: Mutex::new(links),
        })
    }

    /// The names of all hosts, the control host first.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> Result<Ipv4Addr, NetworkError> {
        Ok(self.hosts[self.port(host)?].address)
    }

    /// The namespace file of a host; none for the control host.
    pub fn namespace(&self, host: &str) -> Result<Option<PathBuf>, NetworkError> {
        let namespace = &self.hosts[self.port(host)?].namespace;
        Ok(namespace.as_ref().map(Namespace::path))
    }

    /// Runs `work` inside a host's namespace: sockets made there stay there.
    pub fn within<T: Send>(
        &self,
        host: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> std::io::Result<T> {
        let namespace = self.namespace(host).map_err(std::io::Error::other)?;
        within(namespace.as_deref(), work)
    }

    /// The current link from one host to another.
    pub fn link(&self, from: &str, to: &str) -> Result<Link, NetworkError> {
        let pair = self.pair(from, to)?;
        self.lock()
            .get(&pair)
            .copied()
            .ok_or_else(|| NetworkError::UnknownHost(to.to_owned()))
    }

    /// Changes the link from one host to another.
    pub fn set_link(&self, from: &str, to: &str, link: Link) -> Result<(), NetworkError> {
        let pair = self.pair(from, to)?;
        self.apply(pair, |current| *current = link);
        Ok(())
    }

    /// Changes every link that begins or ends at a host.
    pub fn set_host_links(
        &self,
        host: &str,
        change: impl Fn(&mut Link),
    ) -> Result<(), NetworkError> {
        let host = self.port(host)?;
        for pair in pairs(self.hosts.len()).filter(|(from, to)| *from == host || *to == host) {
            self.apply(pair, &change);
        }
        Ok(())
    }

    /// Traffic of every directed pair since the start.
    pub fn counters(&self) -> BTreeMap<(String, String), Counters> {
        pairs(self.hosts.len())
            .map(|(from, to)| {
                let names = (self.hosts[from].name.clone(), self.hosts[to].name.clone());
                (names, self.router.counters(from, to))
            })
            .collect()
    }

    fn apply(&self, (from, to): (usize, usize), change: impl Fn(&mut Link)) {
        let mut links = self.lock();
        if let Some(link) = links.get_mut(&(from, to)) {
            change(link);
            self.router.set_link(from, to, *link);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(usize, usize), Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pair(&self, from: &str, to: &str) -> Result<(usize, usize), NetworkError> {
        let pair = (self.port(from)?, self.port(to)?);
        if pair.0 == pair.1 {
            return Err(NetworkError::UnknownHost(format!("{from} to itself")));
        }
        Ok(pair)
    }

    fn port(&self, host: &str) -> Result<usize, NetworkError> {
        self.hosts
            .iter()
            .position(|known| known.name == host)
            .ok_or_else(|| NetworkError::UnknownHost(host.to_owned()))
    }
}

/// All ordered pairs of different hosts.
fn pairs(hosts: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..hosts)
        .flat_map(move |from| (0..hosts).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

fn check(hosts: &[&str]) -> Result<(), NetworkError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NetworkError::NotRoot);
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(NetworkError::NoTun);
    }
    if hosts.len() >= MOST_HOSTS {
        return Err(NetworkError::TooManyHosts(hosts.len()));
    }
    let mut seen = std::collections::BTreeSet::from([CONTROL]);
    match hosts.iter().find(|host| !seen.insert(*host)) {
        Some(twice) => Err(NetworkError::NameTaken((*twice).to_owned())),
        None => Ok(()),
    }
}
