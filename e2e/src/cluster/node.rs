//! One node: containerd, kubelet and kube-proxy in their own namespaces.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::{ClusterError, files, groups, network, write};
use crate::config::Tier;
use crate::control_plane::ControlPlane;
use crate::nodes::TIER_LABEL;
use crate::tools::Tools;

/// How long a node may take from power on to started programs.
const BOOT_WITHIN: Duration = Duration::from_secs(30);
/// Usual folders of the CNI plugins, Debian's first.
const NETWORK_PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Its name in Kubernetes.
    pub name: String,
    /// Its label.
    pub tier: Tier,
}

/// A node, switched on or off.
pub(super) struct Node {
    pub(super) name: String,
    tier: Tier,
    pub(super) address: Ipv4Addr,
    folder: PathBuf,
    /// The first process, and its child that is process 1 inside.
    running: Option<(Child, u32)>,
}

impl Node {
    /// Writes its programs' configuration into `folder`. Nodes are numbered from 1.
    pub(super) fn new(
        spec: &NodeSpec,
        number: u8,
        folder: PathBuf,
        control_folder: &Path,
        ca: &Path,
    ) -> Result<Self, ClusterError> {
        let address = network::address(number);
        let plugins = NETWORK_PLUGINS.map(Path::new);
        let plugins = plugins.into_iter().find(|p| p.join("bridge").exists());
        let plugins = plugins.ok_or(ClusterError::NoNetworkPlugins)?;
        let networks = folder.join("networks");
        fs::create_dir_all(&networks).map_err(ClusterError::at(&networks))?;
        let kubelet = files::kubelet(&spec.name, address, ca);
        write(&folder.join("kubelet.json"), &kubelet.to_string())?;
        let proxy = ControlPlane::kubeconfig_of_proxy(control_folder);
        let proxy = files::proxy(&proxy, address);
        write(&folder.join("kube-proxy.json"), &proxy.to_string())?;
        let version = env!("CARGO_PKG_VERSION");
        let containerd = files::containerd(&folder, plugins, version);
        write(&folder.join("containerd.toml"), &containerd)?;
        let network = files::network(number).to_string();
        write(&networks.join("10-lamina.conflist"), &network)?;
        write(&folder.join("init.sh"), include_str!("init.sh"))?;
        Ok(Self {
            name: spec.name.clone(),
            tier: spec.tier,
            address,
            folder,
            running: None,
        })
    }

    /// Switches it on and waits until its programs have started.
    pub(super) async fn power_on(
        &mut self,
        tools: &Tools,
        control_folder: &Path,
    ) -> Result<(), ClusterError> {
        groups::create(&self.name).map_err(ClusterError::at(Path::new("/sys/fs/cgroup")))?;
        let log = self.folder.join("init.log");
        let output = File::create(&log).map_err(ClusterError::at(&log))?;
        let errors = output.try_clone().map_err(ClusterError::at(&log))?;
        let namespace = network::namespace(&self.name);
        let kubeconfig = ControlPlane::kubeconfig_of_node(control_folder, &self.name);
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", namespace.display()))
            .args([
                "unshare",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child",
            ])
            .args(["--mount-proc", "--propagation", "private", "bash"])
            .arg(self.folder.join("init.sh"))
            .arg(&self.name)
            .arg(&self.folder)
            .env("KUBELET", tools.find("kubelet")?)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBE_PROXY", tools.find("kube-proxy")?)
            .env("NODE_IP", self.address.to_string())
            .env("NODE_LABELS", format!("{TIER_LABEL}={}", self.tier.label()))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C in the terminal must not reach the node.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(ClusterError::Start)?;
        self.running = Some((child, 0));
        let begin = Instant::now();
        while begin.elapsed() < BOOT_WITHIN {
            if let Some(init) = self.find_init()
                && Path::new(&format!("/proc/{init}/root/run/booted")).exists()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(ClusterError::Boot {
            node: self.name.clone(),
            said: fs::read_to_string(&log).unwrap_or_default(),
        })
    }

    /// The process that is process 1 inside, if started.
    fn find_init(&mut self) -> Option<u32> {
        let (child, init) = self.running.as_mut()?;
        if *init == 0 {
            let parent = child.id()?;
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
            *init = children.ok()?.split_whitespace().next()?.parse().ok()?;
        }
        Some(*init)
    }

    /// Switches it off: everything on it stops at once, its disk stays.
    pub(super) async fn power_off(&mut self) -> Result<(), ClusterError> {
        let Some((mut child, _)) = self.running.take() else {
            return Ok(());
        };
        child.kill().await.map_err(ClusterError::Start)
    }

    /// A command on the node, as from its shell.
    pub(super) fn command(&self, program: &str) -> Result<Command, ClusterError> {
        let Some((_, init)) = self.running else {
            return Err(ClusterError::Off(self.name.clone()));
        };
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &init.to_string()])
            .args(["--mount", "--pid", "--uts", "--net", "--"])
            .arg(program)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Imports the images of an archive into the node's store, as k3s does at startup.
    pub(super) async fn import(&self, archive: &Path) -> Result<(), ClusterError> {
        let mut ctr = self.command("ctr")?;
        ctr.args(["--namespace", "k8s.io", "images", "import"]);
        ctr.arg(archive);
        let output = ctr.output().await.map_err(ClusterError::Start)?;
        if output.status.success() {
            return Ok(());
        }
        Err(ClusterError::Import {
            node: self.name.clone(),
            archive: archive.to_owned(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}
