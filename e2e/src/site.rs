//! The chart on a cluster of real kubelets: three nodes, a file server with models, and
//! clients in the nodes' networks.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use kube::api::ListParams;
use tokio::process::{Child, Command};

use crate::Tier;
use crate::cluster::{Cluster, ClusterConfig, NodeSpec};
use crate::nodes;
use crate::scene::{FILE_PORT, Result, SYSTEM, SceneError, Step, environment, export, poll};
use crate::workload::{Client, ClientError};

/// The chart's release, and so the Service of its agents.
pub const RELEASE: &str = "lamina";
/// The node where requests originate.
pub const ENTRY: &str = "cam-1";
const NODES: [(&str, Tier); 3] = [
    (ENTRY, Tier::Device),
    ("edge-1", Tier::Edge),
    ("cloud-1", Tier::Cloud),
];
/// How long the control plane and kubelets may take on a busy machine.
const NODES_WITHIN: Duration = Duration::from_secs(120);

/// The running site.
pub struct Site {
    /// The cluster below it.
    pub cluster: Cluster,
    chart: PathBuf,
    python: PathBuf,
    scripts: PathBuf,
    _files: Child,
}

impl Site {
    /// Starts the cluster with the images of `LAMINA_IMAGES`, and a server for the files
    /// of `models`. `told` receives the progress.
    ///
    /// # Errors
    /// Something is missing or fails; the error has the path of its log.
    pub async fn start(models: &[&str], told: &mut (dyn FnMut(&str) + Send)) -> Result<Self> {
        let chart = environment("LAMINA_CHART")?;
        let images = archives(&environment("LAMINA_IMAGES")?)?;
        let python = environment("LAMINA_PYTHON")?;
        let folder = environment("LAMINA_MODELS")?;
        let scripts = chart.join("../../e2e/python");
        export(&python, &scripts, &folder, models).await?;
        told("starting kine on SQLite, API server, controller manager and scheduler");
        let mut cluster = Cluster::start(ClusterConfig {
            dir: std::env::temp_dir().join("lamina-cluster"),
            nodes: NODES
                .map(|(name, tier)| NodeSpec {
                    name: name.to_owned(),
                    tier,
                })
                .to_vec(),
            images,
        })
        .await?;
        told("switching on three nodes: containerd, kubelet and kube-proxy in each");
        for (node, _) in NODES {
            cluster.power_on(node).await?;
        }
        told("importing the images into the nodes' stores");
        cluster.import_images().await?;
        let address = cluster.control_address().to_string();
        let files = serve(&python, &folder, &address)?;
        let site = Self {
            cluster,
            chart,
            python,
            scripts,
            _files: files,
        };
        site.wait_kubelets(NODES.len()).await?;
        told("three Nodes are Ready");
        Ok(site)
    }

    /// Waits until `count` kubelets report their node ready.
    ///
    /// # Errors
    /// They do not in time.
    pub async fn wait_kubelets(&self, count: usize) -> Result<()> {
        let api = Api::<Node>::all(self.cluster.client());
        poll("kubelets Ready", NODES_WITHIN, async || {
            let list = api.list(&ListParams::default()).await?;
            let ready = list.iter().filter(|node| nodes::is_ready(node)).count();
            Ok(if ready >= count {
                Step::Done(())
            } else {
                Step::NotYet(format!("{ready} are"))
            })
        })
        .await
    }

    /// Installs the chart, or upgrades it, with further arguments for helm.
    ///
    /// # Errors
    /// helm fails.
    pub async fn install(&self, more: &[&str]) -> Result<()> {
        let chart = self.chart.to_string_lossy();
        let mut arguments = vec![
            "upgrade",
            "--install",
            RELEASE,
            &chart,
            "--namespace",
            SYSTEM,
            "--reset-values",
        ];
        arguments.extend_from_slice(more);
        self.cluster.helm(&arguments).await?;
        Ok(())
    }

    /// The chart's folder.
    pub fn chart(&self) -> &Path {
        &self.chart
    }

    /// The manifest `examples/<name>.yaml` with the file server of this site.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn example(&self, name: &str) -> Result<String> {
        let path = self.scripts.join(format!("../../examples/{name}.yaml"));
        let text = std::fs::read_to_string(&path)
            .map_err(|e| SceneError::Io(format!("cannot read {}: {e}", path.display())))?;
        let here = format!("http://{}:{FILE_PORT}/", self.cluster.control_address());
        Ok(text.replace("http://10.77.0.6:8080/", &here))
    }

    /// The address at which programs on any node reach the agent of their node: the
    /// chart's Service, which outlives pods.
    ///
    /// # Errors
    /// There is no such Service.
    pub async fn service(&self) -> Result<String> {
        let api = Api::<Service>::namespaced(self.cluster.client(), SYSTEM);
        let spec = api.get(RELEASE).await?.spec.unwrap_or_default();
        let port = spec.ports.unwrap_or_default().first().map(|p| p.port);
        match (spec.cluster_ip, port) {
            (Some(address), Some(port)) => Ok(format!("{address}:{port}")),
            _ => Err(SceneError::Io(format!(
                "the Service {RELEASE} has no address"
            ))),
        }
    }

    /// Starts a client on the entry node that calls the Service.
    ///
    /// # Errors
    /// Python cannot be started.
    pub async fn client(&self, what: &str, model: &str, more: &[String]) -> Result<Client> {
        let url = self.service().await?;
        let mut arguments: Vec<String> = [what, "--url", &url, "--model", model]
            .map(str::to_owned)
            .to_vec();
        arguments.extend_from_slice(more);
        let python = self.cluster.command_in_network(ENTRY, &self.python)?;
        let script = self.scripts.join("client.py");
        Ok(Client::start(python, &script, &arguments)?)
    }
}

/// The archives of images in a folder.
///
/// # Errors
/// It cannot be read.
pub fn archives(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |e| SceneError::Io(format!("cannot read {}: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|e| e == "tar") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A plain file server beside the control plane.
fn serve(python: &Path, folder: &Path, address: &str) -> Result<Child> {
    Command::new(python)
        .args(["-m", "http.server", "--bind", address, "--directory"])
        .arg(folder)
        .arg(FILE_PORT.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| SceneError::Client(ClientError::Start(e)))
}
