//! The cluster of one size: an API server with the chart's objects, a fleet, and the
//! operator.

use crate::operator::{Operator, Setup};
use crate::plans::Plans;
use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use lamina_crds::DnnModel;
use lamina_e2e::fleet::{Cluster, Fleet, FleetHost, Library, Pods};
use lamina_e2e::{ApiServer, Tier};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SYSTEM: &str = "lamina-system";
/// Files per network that models are made from.
const VARIANTS: usize = 10;
/// Hosts per site: devices, edges, and one in the cloud.
const SITE: usize = 25;
const EDGES_OF_SITE: usize = 4;
/// Entry hosts of the second scene, if there are that many devices.
const ENTRIES: usize = 200;
const ENTRY_LABEL: &str = "bench.lamina.dev/entry";
/// Models applied concurrently.
const CONCURRENCY: usize = 16;

/// Paths of programs and charts.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) operator: PathBuf,
    pub(crate) chart: PathBuf,
}

/// A cluster of one size.
pub(crate) struct Bench {
    // Field order is drop order.
    pub(crate) operator: Operator,
    pub(crate) plans: Plans,
    pub(crate) fleet: Fleet,
    pub(crate) api: ApiServer,
    parts: Parts,
    folder: PathBuf,
    library: Arc<Library>,
    /// Names of the devices, where requests enter.
    pub(crate) devices: Vec<String>,
    applied: usize,
}

impl Bench {
    /// Starts everything; the agents are still starting then.
    pub(crate) async fn start(parts: Parts, folder: PathBuf, nodes: usize) -> Result<Self> {
        let api = ApiServer::start(&folder).await?;
        install(&api, &parts.chart)
            .await
            .context("the chart's objects")?;
        let kubeconfig = operator_kubeconfig(&api, &folder).await?;
        let library = Arc::new(Library::of_variants(VARIANTS).context("a profile")?);
        let hosts = hosts(nodes);
        let devices = hosts.iter().filter(|h| h.tier == Tier::Device);
        let devices = devices.map(|h| h.name.clone()).collect();
        let cluster = Cluster {
            client: api.client(),
            kubeconfig: api.kubeconfig(),
            namespace: SYSTEM,
            pods: Pods::Ours,
        };
        let fleet = Fleet::start(cluster, hosts, Arc::clone(&library)).await?;
        let plans = Plans::watch(api.client());
        let operator = operator(&parts, &api, &kubeconfig, &folder)?;
        Ok(Self {
            operator,
            plans,
            fleet,
            api,
            parts,
            folder,
            library,
            devices,
            applied: 0,
        })
    }

    /// Restarts the operator's process with the same store.
    pub(crate) async fn restart_operator(self) -> Result<Self> {
        let kubeconfig = operator_kubeconfig(&self.api, &self.folder).await?;
        self.operator.stop().await;
        let operator = operator(&self.parts, &self.api, &kubeconfig, &self.folder)?;
        Ok(Self { operator, ..self })
    }

    /// Applies `count` further models, each with its own entry as far as there are devices; returns
    /// the names, each with the time it was applied.
    pub(crate) async fn apply_models(&mut self, count: usize) -> Result<BTreeMap<String, Instant>> {
        let specs = (self.applied..self.applied + count).map(|ordinal| {
            let device = &self.devices[ordinal % self.devices.len()];
            let entry = json!({"kubernetes.io/hostname": device});
            (format!("model-{ordinal:03}"), self.model(ordinal, &entry))
        });
        let specs: Vec<_> = specs.collect();
        self.applied += count;
        self.create(specs).await
    }

    /// Applies one model with many entry hosts.
    pub(crate) async fn apply_model_of_many_entries(&self) -> Result<Instant> {
        let entry = json!({ENTRY_LABEL: "true"});
        let name = "everywhere".to_owned();
        let created = self.create(vec![(name, self.model(0, &entry))]).await?;
        let first = created.into_values().next();
        first.context("no model was applied")
    }

    /// Removes every model.
    pub(crate) async fn delete_models(&self) -> Result<()> {
        let api = Api::<DnnModel>::namespaced(self.api.client(), "default");
        api.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        Ok(())
    }

    /// Number of entries of the second scene.
    pub(crate) fn entries(&self) -> usize {
        self.devices.len().min(ENTRIES)
    }

    /// Ends everything and removes its files.
    pub(crate) async fn stop(self) {
        self.operator.stop().await;
        drop(self.fleet);
        self.api.stop().await;
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }

    fn model(&self, ordinal: usize, entry: &serde_json::Value) -> serde_json::Value {
        let models = self.library.models();
        // The networks alternate, then their files.
        let network = (ordinal % 2) * VARIANTS;
        let prepared = &models[(network + ordinal / 2 % VARIANTS) % models.len()];
        json!({
            "source": {"uri": format!("http://files.example/{}", prepared.file)},
            "inputs": prepared.inputs,
            "entry": {"nodeSelector": entry},
            "objective": {"goal": "Latency", "requestsPerSecond": 0.5},
            // As with cameras: raw images stay, and not everything fits.
            "constraints": {
                "keepOnEntry": 1,
                "sliceMemory": [{"tier": "device", "limit": "4M"}],
            },
            // Every change is acted on, however recent the last one.
            "adaptation": {"coolDownSeconds": 0},
        })
    }

    async fn create(
        &self,
        specs: Vec<(String, serde_json::Value)>,
    ) -> Result<BTreeMap<String, Instant>> {
        let api = &Api::<DnnModel>::namespaced(self.api.client(), "default");
        let created = futures::stream::iter(specs).map(|(name, spec)| async move {
            let model = DnnModel::new(&name, serde_json::from_value(spec)?);
            let at = Instant::now();
            api.create(&PostParams::default(), &model).await?;
            anyhow::Ok((name, at))
        });
        created.buffer_unordered(CONCURRENCY).try_collect().await
    }
}

fn operator(parts: &Parts, api: &ApiServer, kubeconfig: &Path, folder: &Path) -> Result<Operator> {
    Operator::start(&Setup {
        program: &parts.operator,
        kubeconfig,
        address: api.address(),
        folder,
    })
}

/// Sites of devices, edges and a cloud host, with the speeds of boards, workstations and servers.
fn hosts(nodes: usize) -> Vec<FleetHost> {
    let mut entries = 0;
    let host = |ordinal: usize| {
        let (site, place) = (ordinal / SITE, ordinal % SITE);
        let (tier, speed, memory_mib, cpu_millis) = match place {
            0 => (Tier::Cloud, 80.0, 16_384, 8000),
            1..=EDGES_OF_SITE => (Tier::Edge, 24.0 + 4.0 * place as f64, 4096, 4000),
            _ => (Tier::Device, 3.0 + 0.05 * place as f64, 768, 1000),
        };
        let mut labels = BTreeMap::new();
        if tier == Tier::Device && entries < ENTRIES {
            entries += 1;
            labels.insert(ENTRY_LABEL.to_owned(), "true".to_owned());
        }
        FleetHost {
            name: format!("{}-{ordinal:04}", tier.label()),
            tier,
            site: u32::try_from(site).unwrap_or(u32::MAX),
            gflops: speed,
            cpu_millis,
            memory_bytes: memory_mib << 20,
            labels,
            address: format!("10.128.{}.{}:8001", ordinal / 250, ordinal % 250 + 1),
        }
    };
    (0..nodes).map(host).collect()
}

/// Applies the chart's objects except the workloads: CRDs, accounts, roles, the admission policy.
async fn install(api: &ApiServer, chart: &Path) -> Result<()> {
    let chart = chart.display().to_string();
    let arguments = ["template", "lamina", &chart, "--namespace", SYSTEM];
    let all = api.tool("helm", &arguments, "").await?;
    let is_workload =
        |text: &str| text.contains("\nkind: Deployment\n") || text.contains("\nkind: DaemonSet\n");
    let wanted: Vec<&str> = all.split("\n---\n").filter(|t| !is_workload(t)).collect();
    api.tool("kubectl", &["create", "namespace", SYSTEM], "")
        .await?;
    let apply = [
        "apply",
        "--server-side",
        "--namespace",
        SYSTEM,
        "--filename=-",
    ];
    api.tool("kubectl", &apply, &wanted.join("\n---\n")).await?;
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=30s",
    ];
    api.tool("kubectl", &wait, "").await?;
    Ok(())
}

/// A kubeconfig with exactly the rights that the chart gives the operator.
async fn operator_kubeconfig(api: &ApiServer, folder: &Path) -> Result<PathBuf> {
    let token = operator_token(api.client()).await?;
    let file = std::fs::read_to_string(api.kubeconfig())?;
    let mut config: serde_json::Value = serde_json::from_str(&file)?;
    for user in config["users"].as_array_mut().into_iter().flatten() {
        user["user"] = json!({ "token": token });
    }
    let path = folder.join("operator.kubeconfig");
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

async fn operator_token(client: Client) -> Result<String> {
    let accounts = Api::<ServiceAccount>::namespaced(client, SYSTEM);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: Vec::new(),
            expiration_seconds: Some(7200),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("lamina-operator", &PostParams::default(), &request)
        .await?;
    answer.status.map(|s| s.token).context("no token came")
}

/// Time left of a limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget(Instant);

impl Budget {
    pub(crate) fn of(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// The time left, at most `most`.
    pub(crate) fn at_most(self, most: Duration) -> Duration {
        self.0.saturating_duration_since(Instant::now()).min(most)
    }

    /// Whether at least `wanted` is left.
    pub(crate) fn has(self, wanted: Duration) -> bool {
        self.at_most(wanted) == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_its_entries_and_every_tier() {
        for nodes in [250, 500, 1000] {
            let hosts = hosts(nodes);
            assert_eq!(hosts.len(), nodes);
            let entries = hosts.iter().filter(|h| h.labels.contains_key(ENTRY_LABEL));
            assert_eq!(entries.count(), ENTRIES);
            for tier in [Tier::Device, Tier::Edge, Tier::Cloud] {
                assert!(hosts.iter().any(|h| h.tier == tier));
            }
            let mut addresses: Vec<_> = hosts.iter().map(|h| &h.address).collect();
            addresses.sort();
            addresses.dedup();
            assert_eq!(addresses.len(), nodes);
        }
    }
}
