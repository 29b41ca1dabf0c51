//! The scene that demo and tests share: two cameras, two edge boxes and a cloud
//! host, a file server with models, and the real chart installed on them.

pub mod cut_off;
pub mod objects;
pub mod redeploy;
mod wait;

pub use wait::{Step, poll};

use crate::cluster::ClusterError;
use crate::netlab::{CONTROL, Link};
use crate::workload::{Client, ClientError};
use crate::{HostSpec, Lab, LabConfig, LabError, Links, Tier};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use lamina_crds::{DnnModel, Placement};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Port of every agent for gRPC.
pub const AGENT_PORT: u16 = 8001;
/// Port of every agent for HTTP.
pub const REST_PORT: u16 = 8000;
/// Port of the file server on `cloud-1`.
pub const FILE_PORT: u16 = 8080;
/// Namespace of the chart.
pub const SYSTEM: &str = "lamina-system";
/// The cloud host, which also carries the operator.
pub const CLOUD: &str = "cloud-1";

/// Why the scene could not be set up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum SceneError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the API server refused")]
    Api(#[from] kube::Error),
    #[error("{0} is not set: run `cargo xtask demo` or `cargo xtask test`")]
    Environment(&'static str),
    #[error("exporting models failed:\n{0}")]
    Export(String),
    #[error("{0}")]
    Io(String),
    #[error("{what} did not happen within {seconds} s; {last}")]
    Timeout {
        what: String,
        seconds: u64,
        last: String,
    },
}

/// Result of a scene's operations.
pub type Result<T> = std::result::Result<T, SceneError>;

/// The running scene.
pub struct Scene {
    /// The lab below it.
    pub lab: Lab,
    /// Folder with the exported models, served over HTTP.
    pub models: PathBuf,
    python: PathBuf,
    scripts: PathBuf,
    _files: Child,
}

const RELEASE: &str = "lamina";
/// Link of a device: 10 ms one way, 50 Mbit/s.
pub const DEVICE_LINK: Link = Link::new(Duration::from_millis(10), 50_000_000);
/// The same link when degraded.
pub const SLOW_DEVICE_LINK: Link = Link::new(Duration::from_millis(10), 5_000_000);
const EDGE_LINK: Link = Link::new(Duration::from_millis(1), 200_000_000);
const CLOUD_LINK: Link = Link::new(Duration::from_millis(8), 200_000_000);
/// To the API server: fast enough not to matter, and not on the path of any request.
const CONTROL_LINK: Link = Link::new(Duration::from_millis(1), 200_000_000);

/// The names of the hosts, in the order of their addresses.
const DEVICES: [&str; 2] = ["cam-1", "cam-2"];
const EDGES: [&str; 2] = ["edge-1", "edge-2"];
/// A camera without a kubelet: nothing runs there by itself.
pub const MACHINE: &str = "roof-1";

fn links() -> Links {
    let mut links = Links::all(DEVICE_LINK).between(EDGES[0], EDGES[1], EDGE_LINK);
    links.control = CONTROL_LINK;
    for edge in EDGES {
        links = links.between(edge, CLOUD, CLOUD_LINK);
    }
    links
}

/// Two devices, two edges that are about four times as fast, one cloud. The hosts of a path leave
/// enough of a machine with two cores for the control plane, the router and the clients; all hosts
/// compute at once only while they benchmark themselves.
fn hosts() -> Vec<HostSpec> {
    let host = |name: &str, tier, cpu_millis: u64, memory_mib: u64| {
        HostSpec::new(name, tier, cpu_millis, memory_mib << 20)
    };
    vec![
        host(DEVICES[0], Tier::Device, 225, 768),
        host(DEVICES[1], Tier::Device, 225, 768),
        host(EDGES[0], Tier::Edge, 900, 1536),
        host(EDGES[1], Tier::Edge, 600, 1536),
        host(CLOUD, Tier::Cloud, 1000, 3072),
        host(MACHINE, Tier::Device, 225, 768).without_kubelet(),
    ]
}

/// A path set by `cargo xtask`.
pub(crate) fn environment(name: &'static str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or(SceneError::Environment(name))
}

impl Scene {
    /// Starts the lab with `index`, or the first free one, exports `models` and
    /// serves them, and installs the chart. `told` receives the progress.
    ///
    /// # Errors
    /// Something is missing or fails; the error has the path of its log.
    pub async fn start(
        index: Option<u8>,
        models: &[&str],
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<Self> {
        let chart = environment("LAMINA_CHART")?;
        let binaries = environment("LAMINA_BIN")?;
        let python = environment("LAMINA_PYTHON")?;
        let scripts = chart.join("../../e2e/python");
        told("exporting models with PyTorch");
        let folder = environment("LAMINA_MODELS")?;
        export(&python, &scripts, &folder, models).await?;
        told("starting etcd, API server, controller manager, scheduler and kwok; five hosts join");
        let images = ["operator", "node-agent"]
            .map(|name| {
                let program = binaries.join(format!("lamina-{name}"));
                (format!("lamina/{name}"), program.into())
            })
            .into();
        let lab = Lab::start(LabConfig {
            index,
            dir: std::env::temp_dir().join(match index {
                Some(index) => format!("lamina-lab-{index}"),
                None => format!("lamina-lab-{}", std::process::id()),
            }),
            hosts: hosts(),
            links: links(),
            images,
            control_node: false,
        })
        .await?;
        let files = serve(&lab, &python, &folder)?;
        let scene = Self {
            lab,
            models: folder,
            python,
            scripts,
            _files: files,
        };
        told("installing the chart with helm");
        scene.install().await?;
        told("waiting for five agents to register and measure themselves");
        scene.wait_nodes(5, Duration::from_secs(90)).await?;
        Ok(scene)
    }

    /// Uninstalls the release.
    ///
    /// # Errors
    /// helm fails.
    pub async fn uninstall(&self) -> Result<()> {
        let wait = Duration::from_secs(60);
        self.lab.helm_uninstall(RELEASE, SYSTEM, wait).await?;
        Ok(())
    }

    /// Installs the chart, and waits until its pods are ready.
    ///
    /// # Errors
    /// The chart is missing, or helm fails.
    pub async fn install(&self) -> Result<()> {
        self.install_with(&[], Duration::from_secs(60)).await
    }

    /// Like [`Scene::install`], or upgrades the release, with further values.
    ///
    /// # Errors
    /// Like [`Scene::install`], or the pods are not ready within `wait`.
    pub async fn install_with(&self, more: &[(&str, &str)], wait: Duration) -> Result<()> {
        let chart = environment("LAMINA_CHART")?;
        let values = [
            ("operator.nodeSelector.kubernetes\\.io/hostname", CLOUD),
            ("image.pullPolicy", "Never"),
            ("logFormat", "text"),
            // Two agents on a host would share its ports.
            ("agent.maxSurge", "0"),
            // A stopping agent waits until it is no longer needed, so they stop in parallel.
            ("agent.maxUnavailable", "100%"),
        ];
        let values = [&values[..], more].concat();
        self.lab
            .helm_install(RELEASE, SYSTEM, &chart, &values, wait)
            .await?;
        Ok(())
    }

    /// Waits until `count` ComputeNodes are Ready.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn wait_nodes(&self, count: usize, within: Duration) -> Result<()> {
        objects::wait_nodes(&self.lab.client(), count, within).await
    }

    /// The manifest `examples/<name>.yaml` with the file server of this lab.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn example(&self, name: &str) -> Result<String> {
        let path = self.scripts.join(format!("../../examples/{name}.yaml"));
        let text = std::fs::read_to_string(&path)
            .map_err(|e| SceneError::Io(format!("cannot read {}: {e}", path.display())))?;
        let here = format!("http://{}:{FILE_PORT}/", self.lab.address(CLOUD)?);
        Ok(text.replace("http://10.77.0.6:8080/", &here))
    }

    /// Where `examples/<name>.yaml` has its model from, in this lab.
    ///
    /// # Errors
    /// The file cannot be read, or names none.
    pub fn example_uri(&self, name: &str) -> Result<String> {
        let example = self.example(name)?;
        let uri = example.lines().find_map(|l| l.trim().strip_prefix("uri: "));
        uri.map(str::to_owned)
            .ok_or_else(|| SceneError::Io(format!("examples/{name}.yaml names no file")))
    }

    /// `kubectl apply` of a text.
    ///
    /// # Errors
    /// kubectl fails.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        Ok(self.lab.apply(manifest).await?)
    }

    /// Sends a signal to the processes of all pods of one component (`agent` or
    /// `operator`), only those on `host` if given.
    ///
    /// # Errors
    /// There is none.
    pub async fn kill(&self, component: &str, host: Option<&str>, signal: Signal) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.lab.client(), SYSTEM);
        let selector = format!("app.kubernetes.io/component={component}");
        for pod in api.list(&ListParams::default().labels(&selector)).await? {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
            if host.is_none() || host == node {
                self.lab.kill(&pod.name_any(), signal)?;
            }
        }
        Ok(())
    }

    /// Cuts every host off from the API server, or reconnects them.
    ///
    /// # Errors
    /// A host is unknown, which cannot be.
    pub fn api_server_away(&self, away: bool) -> Result<()> {
        for host in DEVICES.into_iter().chain(EDGES).chain([CLOUD]) {
            let links = |link: &mut Link| link.up = !away;
            self.lab.set_links_between(host, CONTROL, links)?;
        }
        Ok(())
    }

    /// The model's current state; `None` if it does not exist.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn model(&self, name: &str) -> Result<Option<DnnModel>> {
        objects::model(&self.lab.client(), name).await
    }

    /// The placement of a model; `None` if there is none.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn placement(&self, model: &str) -> Result<Option<Placement>> {
        objects::placement(&self.lab.client(), model).await
    }

    /// Waits until a model's condition Ready is True, reporting each step once.
    ///
    /// # Errors
    /// It is not in time; the message carries the last status.
    pub async fn wait_ready(
        &self,
        model: &str,
        within: Duration,
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<()> {
        objects::wait_ready(&self.lab.client(), model, within, told).await
    }

    /// Waits until a condition of the model has this status and reason, and returns
    /// its message.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn wait_condition(
        &self,
        model: &str,
        kind: &str,
        status: &str,
        reason: &str,
        within: Duration,
    ) -> Result<String> {
        poll(
            &format!("{model} {kind}={status} ({reason})"),
            within,
            async || {
                let conditions = self
                    .model(model)
                    .await?
                    .and_then(|m| m.status)
                    .map(|s| s.conditions)
                    .unwrap_or_default();
                let found = conditions
                    .iter()
                    .find(|c| c.type_ == kind && c.status == status && c.reason == reason);
                Ok(match found {
                    Some(c) => Step::Done(c.message.clone()),
                    None => Step::NotYet(
                        conditions
                            .iter()
                            .map(|c| {
                                format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message)
                            })
                            .collect::<Vec<_>>()
                            .join("; "),
                    ),
                })
            },
        )
        .await
    }

    /// Reason and note of every event of the namespace `default`, oldest first.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn events(&self) -> Result<Vec<(String, String)>> {
        objects::events(&self.lab.client()).await
    }

    /// Starts a client on `host`, outside the host's CPU share: users' clients are
    /// not part of the measurement.
    ///
    /// # Errors
    /// Python cannot be started.
    pub fn client(&self, host: &str, what: &str, model: &str, more: &[String]) -> Result<Client> {
        let url = format!("{}:{AGENT_PORT}", self.lab.address(host)?);
        let mut arguments: Vec<String> = [what, "--url", &url, "--model", model]
            .map(str::to_owned)
            .to_vec();
        arguments.extend_from_slice(more);
        let command = self.lab.command_without_limits(host, &self.python)?;
        Ok(Client::start(
            command,
            &self.scripts.join("client.py"),
            &arguments,
        )?)
    }
}

impl Scene {
    /// Python on `host`, outside the host's CPU share, with the script `name` of
    /// `e2e/python`.
    ///
    /// # Errors
    /// There is no such host.
    pub fn script(&self, host: &str, name: &str) -> Result<Command> {
        let python = self.lab.command_without_limits(host, &self.python)?;
        Ok(self.running(python, name))
    }

    /// Like [`Self::script`], within the host's CPU share.
    ///
    /// # Errors
    /// There is no such host.
    pub fn limited_script(&self, host: &str, name: &str) -> Result<Command> {
        let python = self.lab.command(host, &self.python)?;
        Ok(self.running(python, name))
    }

    fn running(&self, mut python: Command, script: &str) -> Command {
        python
            .arg(self.scripts.join(script))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(std::process::Stdio::null());
        python
    }
}

/// Makes PyTorch export those of `models` that `folder` lacks.
pub(crate) async fn export(
    python: &Path,
    scripts: &Path,
    folder: &Path,
    models: &[&str],
) -> Result<()> {
    let output = Command::new(python)
        .arg(scripts.join("models.py"))
        .arg("--out")
        .arg(folder)
        .args(models)
        .env("PYTHONWARNINGS", "ignore")
        .output()
        .await
        .map_err(|e| SceneError::Export(e.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(SceneError::Export(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

/// A plain file server on the cloud host.
fn serve(lab: &Lab, python: &Path, folder: &Path) -> Result<Child> {
    lab.command_without_limits(CLOUD, python)?
        .args(["-m", "http.server", "--directory"])
        .arg(folder)
        .arg(FILE_PORT.to_string())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| SceneError::Io(format!("cannot start the file server: {e}")))
}
