//! The lab's interface: start it, change it, break it, inspect it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{Api, ListParams};
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::cgroup::{CgroupError, Cgroups};
use crate::config::LabConfig;
use crate::control_plane::{API_PORT, ControlPlane, ControlPlaneError, audit_log};
use crate::index::{IndexError, IndexLock};
use crate::interrupt::{self, Interrupts};
use crate::launch;
use crate::netlab::{CONTROL, Counters, Link, Network, NetworkError};
use crate::nodes::{self, Size};
use crate::pods::{self, Runner};
use crate::tools::{MissingTool, Tools};

/// How long Nodes may take to be ready.
const NODES_WITHIN: Duration = Duration::from_secs(30);

/// Why a lab does not start, or an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The index is taken.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The emulated network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Processor shares and memory limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// etcd, API server and the others.
    #[error(transparent)]
    ControlPlane(#[from] ControlPlaneError),
    /// A program is missing.
    #[error(transparent)]
    Tool(#[from] MissingTool),
    /// The API server refused.
    #[error("cannot {what}")]
    Api {
        /// The attempted call.
        what: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// Signals cannot be listened to.
    #[error("cannot listen for Ctrl-C")]
    Signals(#[source] std::io::Error),
    /// A file or folder could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A command could not be run at all.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A command ended with an error.
    #[error("`{command}` failed: {said}")]
    Command {
        /// Program and arguments.
        command: String,
        /// What it printed on standard error.
        said: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s")]
    Timeout {
        /// What.
        what: String,
        /// Seconds waited.
        seconds: u64,
    },
    /// No process runs for this pod or on this host.
    #[error("no process of {0:?} is running")]
    NothingToKill(String),
    /// No such pod has ever run here.
    #[error("no log of pod {0:?}")]
    NoLog(String),
}

/// A running lab. Dropping it stops everything at once; [`Lab::stop`] does the same and waits for
/// it.
pub struct Lab {
    // Field order is drop order.
    runner: Runner,
    control_plane: ControlPlane,
    /// Kills all leftovers, so it comes before the namespaces go.
    cgroups: Cgroups,
    network: Network,
    tools: Tools,
    dir: PathBuf,
    interrupted: Interrupts,
    _index: IndexLock,
}

impl Lab {
    /// Starts control plane, hosts and links, and waits until all Nodes are
    /// ready. Must be called inside a tokio runtime with I/O and time.
    pub async fn start(config: LabConfig) -> Result<Self, LabError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NetworkError::NotRoot.into());
        }
        let index = match config.index {
            Some(index) => IndexLock::take(index)?,
            None => IndexLock::first_free()?,
        };
        let tools = Tools::from_environment();
        let dir = fresh_folder(&config.dir)?;
        let interrupted =
            interrupt::end_lab_when_interrupted(index.index()).map_err(LabError::Signals)?;
        let cgroups = Cgroups::create(index.index(), config.hosts.len())?;
        let names: Vec<&str> = config.hosts.iter().map(|host| host.name.as_str()).collect();
        let network = Network::start(index.index(), &names, |from, to| config.links.get(from, to))?;
        cgroups.add_host(CONTROL, None, None)?;
        for host in &config.hosts {
            cgroups.add_host(&host.name, Some(host.cpu_millis), Some(host.memory_bytes))?;
        }
        let control_address = network.address(CONTROL)?;
        let control_plane = ControlPlane::start(
            &tools,
            &dir.join("control-plane"),
            index.index(),
            control_address,
            &cgroups.join_files(CONTROL),
        )
        .await?;
        let mut hosts = Vec::new();
        let mut nodes = Vec::new();
        for host in config.hosts.iter().filter(|host| host.is_node) {
            let size = Size::of(host);
            hosts.push(runner_host(&network, &cgroups, &dir, &host.name, size)?);
            nodes.push(nodes::worker(host, network.address(&host.name)?));
        }
        if config.control_node {
            let size = Size::of_this_machine();
            hosts.push(runner_host(&network, &cgroups, &dir, CONTROL, size)?);
            nodes.push(nodes::control(control_address, size));
        }
        let client = control_plane.client();
        nodes::create(&client, &nodes)
            .await
            .map_err(api("create the Nodes"))?;
        let runner = Runner::start(
            client,
            SocketAddr::from((control_address, API_PORT)),
            config.images,
            dir.clone(),
            hosts,
        )
        .map_err(|source| LabError::Write {
            path: dir.clone(),
            source,
        })?;
        let mut lab = Self {
            runner,
            control_plane,
            cgroups,
            network,
            tools,
            dir,
            interrupted,
            _index: index,
        };
        lab.wait_for_nodes(nodes.len()).await?;
        Ok(lab)
    }

    /// What the chart's pods did at the API server, one JSON object per line.
    pub fn audit_log(&self) -> PathBuf {
        audit_log(&self.dir.join("control-plane"))
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.control_plane.client()
    }

    /// The kubeconfig of a user with all rights.
    pub fn kubeconfig(&self) -> &Path {
        self.control_plane.kubeconfig()
    }

    /// The folder with logs and volumes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of all hosts, the control host first.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.network.hosts()
    }

    /// The address of a host.
    pub fn address(&self, host: &str) -> Result<Ipv4Addr, LabError> {
        Ok(self.network.address(host)?)
    }

    /// The network, for sockets inside a host's namespace.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The path of one of the lab's tools, such as `kubectl`.
    pub fn tool(&self, program: &str) -> Result<PathBuf, LabError> {
        Ok(self.tools.find(program)?)
    }

    /// Runs `kubectl` and returns its output.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.run_tool("kubectl", arguments, "").await
    }

    /// Runs `kubectl apply --server-side` on a manifest given as text.
    pub async fn apply(&self, manifest: &str) -> Result<String, LabError> {
        let arguments = ["apply", "--server-side", "--filename=-"];
        self.run_tool("kubectl", &arguments, manifest).await
    }

    /// Installs a chart, or upgrades its release, and waits until its objects are ready. Values as
    /// for `helm --set`.
    pub async fn helm_install(
        &self,
        release: &str,
        namespace: &str,
        chart: &Path,
        values: &[(&str, &str)],
        wait: Duration,
    ) -> Result<String, LabError> {
        let chart = chart.display().to_string();
        let timeout = format!("{}s", wait.as_secs());
        let mut arguments = vec!["upgrade", "--install", release, &chart];
        arguments.extend(["--namespace", namespace, "--create-namespace"]);
        arguments.extend(["--wait", "--timeout", &timeout]);
        let values: Vec<String> = values
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        for value in &values {
            arguments.extend(["--set", value]);
        }
        self.run_tool("helm", &arguments, "").await
    }

    /// Uninstalls a release and waits until its objects are gone.
    pub async fn helm_uninstall(
        &self,
        release: &str,
        namespace: &str,
        wait: Duration,
    ) -> Result<String, LabError> {
        let timeout = format!("{}s", wait.as_secs());
        let arguments = ["uninstall", release, "--namespace", namespace];
        let arguments = [&arguments[..], &["--wait", "--timeout", &timeout]].concat();
        self.run_tool("helm", &arguments, "").await
    }

    /// Changes the links between two hosts, both directions.
    pub fn set_links_between(
        &self,
        a: &str,
        b: &str,
        change: impl Fn(&mut Link),
    ) -> Result<(), LabError> {
        for (from, to) in [(a, b), (b, a)] {
            let mut link = self.network.link(from, to)?;
            change(&mut link);
            self.network.set_link(from, to, link)?;
        }
        Ok(())
    }

    /// Changes every link that begins or ends at a host, including those to the control host.
    pub fn set_host_links(&self, host: &str, change: impl Fn(&mut Link)) -> Result<(), LabError> {
        Ok(self.network.set_host_links(host, change)?)
    }

    /// Cuts a host off from all others and from the control plane.
    pub fn partition(&self, host: &str) -> Result<(), LabError> {
        self.set_host_links(host, |link| link.up = false)
    }

    /// Ends a partition.
    pub fn heal(&self, host: &str) -> Result<(), LabError> {
        self.set_host_links(host, |link| link.up = true)
    }

    /// Packets and bytes of every directed pair of hosts since the start.
    pub fn counters(&self) -> BTreeMap<(String, String), Counters> {
        self.network.counters()
    }

    /// A command that runs on a host: in its namespace, under its limits. Add
    /// arguments as to any command.
    pub fn command(
        &self,
        host: &str,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command, LabError> {
        self.network.address(host)?;
        self.enter(host, &self.cgroups.join_files(host), program)
    }

    /// The same without the host's limits: for clients and load generators that represent other
    /// machines behind the same link.
    pub fn command_without_limits(
        &self,
        host: &str,
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command, LabError> {
        self.enter(host, &self.cgroups.join_files(CONTROL), program)
    }

    /// Sends a signal to the processes of a pod, or of all pods of a host; returns how many
    /// received it.
    pub fn kill(&self, pod_or_host: &str, signal: Signal) -> Result<usize, LabError> {
        match self.runner.signal(pod_or_host, signal) {
            0 => Err(LabError::NothingToKill(pod_or_host.to_owned())),
            some => Ok(some),
        }
    }

    /// While suspended, processes of this host that end are not started again.
    pub fn suspend_restart(&self, host: &str, suspended: bool) -> Result<(), LabError> {
        match self.runner.suspend(host, suspended) {
            true => Ok(()),
            false => Err(NetworkError::UnknownHost(host.to_owned()).into()),
        }
    }

    /// Output of a pod's containers so far.
    pub fn pod_log(&self, pod: &str) -> Result<String, LabError> {
        let prefix = format!("{pod}.");
        let mut text = String::new();
        for path in files(&self.runner.logs())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&prefix) {
                let log = std::fs::read(&path).unwrap_or_default();
                text.push_str(&String::from_utf8_lossy(&log));
            }
        }
        match text.is_empty() && !self.has_run(pod) {
            true => Err(LabError::NoLog(pod.to_owned())),
            false => Ok(text),
        }
    }

    /// Writes diagnostics of a failure into a folder: logs of pods and control plane, objects,
    /// Events, link counters.
    pub async fn dump(&self, folder: &Path) -> Result<(), LabError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::Write { path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        for logs in [self.runner.logs(), self.dir.join("control-plane/logs")] {
            for path in files(&logs)? {
                let to = folder.join(path.file_name().unwrap_or_default());
                std::fs::copy(&path, &to).map_err(failed(&to))?;
            }
        }
        for (name, arguments) in [
            (
                "objects.txt",
                &[
                    "get",
                    "all,nodes,leases",
                    "--all-namespaces",
                    "--output=wide",
                ][..],
            ),
            (
                "pods.yaml",
                &["get", "pods", "--all-namespaces", "--output=yaml"][..],
            ),
            (
                "events.txt",
                &[
                    "get",
                    "events",
                    "--all-namespaces",
                    "--sort-by=.lastTimestamp",
                ][..],
            ),
            (
                "lamina.yaml",
                &[
                    "get",
                    "dnnmodels,computenodes,placements",
                    "--all-namespaces",
                    "--output=yaml",
                ][..],
            ),
        ] {
            // A dump is made when something is wrong, so it gets as much as it can.
            let text = match self.kubectl(arguments).await {
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(failed(&path))?;
        }
        let counters: String = self
            .counters()
            .iter()
            .map(|((from, to), count)| format!("{from} -> {to}: {count:?}\n"))
            .collect();
        let path = folder.join("links.txt");
        std::fs::write(&path, counters).map_err(failed(&path))
    }

    /// An error if a program of the control plane has ended by itself.
    pub fn check(&mut self) -> Result<(), LabError> {
        Ok(self.control_plane.check()?)
    }

    /// From now on Ctrl-C stops neither the lab nor the process: the caller listens for it and
    /// stops the lab.
    pub fn leave_interrupts_to_the_caller(&self) {
        self.interrupted.ignore();
    }

    /// Stops everything and waits for it.
    pub async fn stop(self) -> Result<(), LabError> {
        let Self {
            runner,
            mut control_plane,
            cgroups,
            network,
            interrupted: _interrupted,
            ..
        } = self;
        drop(runner);
        control_plane.stop().await;
        let removed = cgroups.remove_all();
        drop(network);
        Ok(removed?)
    }

    fn enter(
        &self,
        host: &str,
        groups: &[PathBuf],
        program: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Command, LabError> {
        let namespace = self.network.namespace(host)?;
        let words = launch::enter(groups, namespace.as_deref());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).kill_on_drop(true);
        Ok(command)
    }

    fn has_run(&self, pod: &str) -> bool {
        let prefix = format!("{pod}.");
        files(&self.runner.logs()).is_ok_and(|files| {
            files.iter().any(|path| {
                let name = path.file_name().unwrap_or_default();
                name.to_string_lossy().starts_with(&prefix)
            })
        })
    }

    async fn run_tool(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, LabError> {
        let kubeconfig = self.kubeconfig();
        tool(
            &self.tools,
            kubeconfig,
            &self.dir,
            program,
            arguments,
            input,
        )
        .await
    }

    async fn wait_for_nodes(&mut self, count: usize) -> Result<(), LabError> {
        let begin = Instant::now();
        let api_nodes = Api::<Node>::all(self.client());
        // Pods can only be made once their namespace has its account.
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
        loop {
            let list = api_nodes
                .list(&ListParams::default())
                .await
                .map_err(api("list Nodes"))?;
            let ready = list.iter().filter(|node| nodes::is_ready(node)).count();
            let account = accounts
                .get_opt("default")
                .await
                .map_err(api("get a ServiceAccount"))?;
            if ready == count && account.is_some() {
                return Ok(());
            }
            self.control_plane.check()?;
            if begin.elapsed() > NODES_WITHIN {
                return Err(LabError::Timeout {
                    what: format!("all Nodes becoming ready ({ready} of {count} are)"),
                    seconds: NODES_WITHIN.as_secs(),
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Output of `program`, given `input`. `home` is where it may keep caches.
pub(crate) async fn tool(
    tools: &Tools,
    kubeconfig: &Path,
    home: &Path,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String, LabError> {
    use tokio::io::AsyncWriteExt as _;
    let path = tools.find(program)?;
    let failed = |source| LabError::Run {
        program: path.clone(),
        source,
    };
    let mut child = Command::new(&path)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        // Helm and kubectl keep caches; not in the developer's home.
        .env("HOME", home)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input reports why itself.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::Command {
        command: format!("{program} {}", arguments.join(" ")),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn api(what: &str) -> impl FnOnce(kube::Error) -> LabError {
    let what = what.to_owned();
    move |source| LabError::Api {
        what,
        source: Box::new(source),
    }
}

/// Empties the lab's parts of the folder.
fn fresh_folder(dir: &Path) -> Result<PathBuf, LabError> {
    let failed = |source| LabError::Write {
        path: dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    for part in ["control-plane", "logs", "pods", "hosts"] {
        match std::fs::remove_dir_all(dir.join(part)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(error));
            }
            _ => {}
        }
    }
    dir.canonicalize().map_err(failed)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, LabError> {
    let entries = std::fs::read_dir(folder).map_err(|source| LabError::Write {
        path: folder.to_owned(),
        source,
    })?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

fn runner_host(
    network: &Network,
    cgroups: &Cgroups,
    dir: &Path,
    name: &str,
    size: Size,
) -> Result<pods::Host, LabError> {
    Ok(pods::Host {
        name: name.to_owned(),
        address: network.address(name)?,
        namespace: network.namespace(name)?,
        join_files: cgroups.join_files(name),
        folder: dir.join("hosts").join(name),
        size,
        suspended: tokio::sync::watch::Sender::new(false),
    })
}
