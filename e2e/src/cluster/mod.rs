//! A cluster of real kubelets on one machine, with real containers and no registry: an API server
//! on kine with SQLite (the datastore of k3s), and per node a containerd, a kubelet and a
//! kube-proxy in their own namespaces.

mod files;
mod groups;
mod network;
mod node;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::control_plane::{ControlPlane, ControlPlaneError};
use crate::index::{IndexError, IndexLock};
use crate::lab::{LabError, tool};
use crate::netlab::NetworkError;
use crate::tools::{MissingTool, Tools};
use network::{HUB, Network};
use node::Node;

pub use node::NodeSpec;

/// Addresses are fixed, so a machine can run one cluster; labs count from 0.
const INDEX: u8 = u8::MAX;

/// Why there is no cluster, or why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Another run uses it.
    #[error("another cluster is running on this machine: stop it first")]
    Taken(#[source] IndexError),
    /// The bridge or a namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// kine, the API server or another program.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// A lab tool is missing.
    #[error(transparent)]
    Tool(#[from] MissingTool),
    /// A lab tool failed.
    #[error(transparent)]
    Run(#[from] LabError),
    /// The bridge plugin is missing.
    #[error(
        "no plugins for pods' networks: install containernetworking-plugins (Debian: apt-get install)"
    )]
    NoNetworkPlugins,
    /// A file or folder could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A program of a node could not be started or stopped.
    #[error("cannot run a program of a node: are containerd, runc and util-linux installed?")]
    Start(#[source] io::Error),
    /// A node did not start its programs.
    #[error("node {node} did not start; it said:\n{said}")]
    Boot {
        /// Its name.
        node: String,
        /// Output of its first process.
        said: String,
    },
    /// An image could not be put into a node's store.
    #[error("node {node} cannot import {archive}: {said}")]
    Import {
        /// Its name.
        node: String,
        /// The image's archive.
        archive: PathBuf,
        /// Output of containerd's client.
        said: String,
    },
    /// The node is switched off.
    #[error("node {0} is switched off")]
    Off(String),
    /// No such node.
    #[error("no node {0:?} in this cluster")]
    Unknown(String),
}

impl ClusterError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// Settings of a cluster.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Everything is written here; leftovers of an earlier run are removed.
    pub dir: PathBuf,
    /// At most 9.
    pub nodes: Vec<NodeSpec>,
    /// Archives of images that every node gets.
    pub images: Vec<PathBuf>,
}

/// A running cluster. Dropping it stops everything at once.
pub struct Cluster {
    // Field order is drop order: nodes stop before their API server and their network.
    nodes: Vec<Node>,
    control_plane: ControlPlane,
    tools: Tools,
    dir: PathBuf,
    images: Vec<PathBuf>,
    interrupts: JoinHandle<()>,
    _network: Network,
    _groups: Groups,
    _index: IndexLock,
}

/// Removed when dropped.
struct Groups;

impl Drop for Groups {
    fn drop(&mut self) {
        groups::remove();
    }
}

impl Cluster {
    /// Starts the control plane; [`Cluster::power_on`] switches nodes on. Must be
    /// called inside a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// A program is missing or fails; the error has the path of its log.
    pub async fn start(config: ClusterConfig) -> Result<Self, ClusterError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NetworkError::NotRoot.into());
        }
        let index = IndexLock::take(INDEX).map_err(ClusterError::Taken)?;
        let interrupts = end_when_interrupted()?;
        groups::remove();
        let tools = Tools::from_environment();
        let dir = fresh_folder(&config.dir)?;
        let names: Vec<&str> = config.nodes.iter().map(|n| n.name.as_str()).collect();
        let network = Network::create(&names)?;
        let groups = groups::control().map_err(ClusterError::at(Path::new("/sys/fs/cgroup")))?;
        let control_folder = dir.join("control-plane");
        let control_plane =
            ControlPlane::start_for_kubelets(&tools, &control_folder, HUB, &names, &groups).await?;
        let mut nodes = Vec::new();
        for (spec, number) in config.nodes.iter().zip(1..) {
            let folder = dir.join("nodes").join(&spec.name);
            let ca = control_plane.ca();
            nodes.push(Node::new(spec, number, folder, &control_folder, ca)?);
        }
        Ok(Self {
            nodes,
            control_plane,
            tools,
            dir,
            images: config.images,
            interrupts,
            _network: network,
            _groups: Groups,
            _index: index,
        })
    }

    /// Switches a node on.
    ///
    /// # Errors
    /// It does not start, or is unknown.
    pub async fn power_on(&mut self, node: &str) -> Result<(), ClusterError> {
        let (tools, control) = (self.tools.clone(), self.dir.join("control-plane"));
        self.node_mut(node)?.power_on(&tools, &control).await
    }

    /// Cuts a node's power: everything on it stops, its disk stays.
    ///
    /// # Errors
    /// It is unknown.
    pub async fn power_off(&mut self, node: &str) -> Result<(), ClusterError> {
        self.node_mut(node)?.power_off().await
    }

    /// Kills API server and datastore, and starts them again on the same data after
    /// `pause`.
    ///
    /// # Errors
    /// They do not become ready.
    pub async fn restart_api_server(&mut self, pause: Duration) -> Result<(), ClusterError> {
        let folder = self.dir.join("control-plane");
        let groups = groups::control().map_err(ClusterError::at(Path::new("/sys/fs/cgroup")))?;
        let restarted = self
            .control_plane
            .restart(&self.tools, &folder, &groups, pause);
        Ok(restarted.await?)
    }

    /// Imports the images into the stores of all nodes, in parallel.
    ///
    /// # Errors
    /// A node refuses one.
    pub async fn import_images(&self) -> Result<(), ClusterError> {
        self.import(&self.images).await
    }

    /// Imports further archives of images into every node.
    ///
    /// # Errors
    /// containerd refuses one.
    pub async fn import(&self, archives: &[PathBuf]) -> Result<(), ClusterError> {
        let all = self.nodes.iter().map(async |node| {
            for archive in archives {
                node.import(archive).await?;
            }
            Ok(())
        });
        futures::future::try_join_all(all).await.map(drop)
    }

    /// A node's address.
    ///
    /// # Errors
    /// It is unknown.
    pub fn address(&self, node: &str) -> Result<Ipv4Addr, ClusterError> {
        Ok(self.node(node)?.address)
    }

    /// The control plane's address, as seen by nodes and pods.
    pub const fn control_address(&self) -> Ipv4Addr {
        HUB
    }

    /// A command on a node, as from its shell.
    ///
    /// # Errors
    /// It is unknown or switched off.
    pub fn command(&self, node: &str, program: &str) -> Result<Command, ClusterError> {
        self.node(node)?.command(program)
    }

    /// A command of this machine in a node's network, as a program of the
    /// node's user.
    ///
    /// # Errors
    /// The node is unknown.
    pub fn command_in_network(&self, node: &str, program: &Path) -> Result<Command, ClusterError> {
        let namespace = network::namespace(&self.node(node)?.name);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace.display()))
            .arg("--")
            .arg(program)
            .kill_on_drop(true);
        Ok(command)
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.control_plane.client()
    }

    /// The kubeconfig of a user with all rights.
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// Where everything is written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Output of kubectl.
    ///
    /// # Errors
    /// It fails; the error has its output.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.tool("kubectl", arguments, "").await
    }

    /// Output of `kubectl apply`.
    ///
    /// # Errors
    /// It fails; the error has its output.
    pub async fn apply(&self, manifest: &str) -> Result<String, ClusterError> {
        self.tool("kubectl", &["apply", "-f", "-"], manifest).await
    }

    /// Output of helm.
    ///
    /// # Errors
    /// It fails; the error has its output.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.tool("helm", arguments, "").await
    }

    /// Output of helm 3.
    ///
    /// # Errors
    /// It fails; the error has its output.
    pub async fn helm3(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.tool("helm3", arguments, "").await
    }

    async fn tool(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, ClusterError> {
        let (config, home) = (self.kubeconfig(), &self.dir);
        Ok(tool(&self.tools, config, home, program, arguments, input).await?)
    }

    /// Checks that the control plane still runs.
    ///
    /// # Errors
    /// A program has ended; its log's last lines are in the message.
    pub fn check(&mut self) -> Result<(), ClusterError> {
        Ok(self.control_plane.check()?)
    }

    /// From now on Ctrl-C stops neither cluster nor process: the caller listens for it and stops
    /// the cluster.
    pub fn leave_interrupts_to_the_caller(&self) {
        self.interrupts.abort();
    }

    /// Stops everything and waits for it.
    pub async fn stop(mut self) {
        self.interrupts.abort();
        for node in &mut self.nodes {
            if let Err(error) = node.power_off().await {
                tracing::warn!(node = node.name, %error, "cannot be switched off");
            }
        }
        self.control_plane.stop().await;
        // The kernel takes a moment to end the processes in the nodes' namespaces.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    fn node(&self, name: &str) -> Result<&Node, ClusterError> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| ClusterError::Unknown(name.to_owned()))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node, ClusterError> {
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.ok_or_else(|| ClusterError::Unknown(name.to_owned()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.interrupts.abort();
    }
}

/// Ends the process on SIGINT and SIGTERM, after everything that the cluster has started.
fn end_when_interrupted() -> Result<JoinHandle<()>, ClusterError> {
    let listen = |kind| signal(kind).map_err(ClusterError::Start);
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        let number = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
        };
        if let Err(error) = network::remove() {
            eprintln!("{error}");
        }
        groups::remove();
        std::process::exit(128 + number.as_raw_value());
    }))
}

/// Removes leftovers of an earlier run, and makes the folder.
fn fresh_folder(dir: &Path) -> Result<PathBuf, ClusterError> {
    for part in ["control-plane", "nodes"] {
        let path = dir.join(part);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ClusterError::at(&path)(error));
            }
            _ => {}
        }
    }
    fs::create_dir_all(dir).map_err(ClusterError::at(dir))?;
    dir.canonicalize().map_err(ClusterError::at(dir))
}

fn write(path: &Path, text: &str) -> Result<(), ClusterError> {
    fs::write(path, text).map_err(ClusterError::at(path))
}
