//! Many agents in one process: each with its own Node, Pod, token and session,
//! none computing any model.
//!
//! The operator sees what real agents send: heartbeats each second, samples of the
//! links that it asks for, the state of slices and routes in the ComputeNode's
//! status, live times. So it can be measured at sizes for which no machine could
//! hold real agents.

mod duty;
mod host;
mod links;
mod models;
mod objects;
mod ping;
mod prober;
mod session;
mod traffic;

pub use links::{Links, Quality};
pub use models::{Library, Prepared};
pub use objects::Pods;
pub use ping::answer_pings;

use crate::config::Tier;
use duty::Wish;
use futures::StreamExt as _;
use host::{Host, Shared, lock};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use lamina_crds::ComputeNode;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::task::JoinSet;

/// Why there is no fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The API server refused.
    #[error("the API server refused")]
    Api(#[from] kube::Error),
    /// The kubeconfig does not work.
    #[error("cannot read the kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// An object is malformed.
    #[error("cannot make an object")]
    Object(#[source] serde_json::Error),
    /// The DaemonSet is late.
    #[error("of {wanted} hosts {there} have an agent's Pod")]
    Pods {
        /// Hosts that have a Pod.
        there: usize,
        /// Hosts.
        wanted: usize,
    },
}

/// A simulated host.
#[derive(Debug, Clone)]
pub struct FleetHost {
    /// Also the name of its Node.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// Hosts of one site are near each other.
    pub site: u32,
    /// GFLOP/s that its agent reports.
    pub gflops: f64,
    /// Thousandths of a processor that its agent reports.
    pub cpu_millis: u64,
    /// Memory that its agent may use, in bytes; with 0 it serves nothing.
    pub memory_bytes: u64,
    /// Further labels of the Node.
    pub labels: BTreeMap<String, String>,
    /// Its reported listen address, `10.128.0.7:8001`.
    pub address: String,
}

/// The cluster that a fleet joins.
pub struct Cluster<'a> {
    /// A client with all rights.
    pub client: Client,
    /// The kubeconfig of that client.
    pub kubeconfig: &'a Path,
    /// Namespace of the agents.
    pub namespace: &'a str,
    /// Who creates the agents' Pods.
    pub pods: Pods,
}

/// A running fleet. Dropping it ends all sessions at once; its objects stay.
pub struct Fleet {
    client: Client,
    hosts: Arc<BTreeMap<String, Arc<Host>>>,
    shared: Arc<Shared>,
    // Held for its tasks.
    _tasks: JoinSet<()>,
}

impl Fleet {
    /// Creates Nodes, Pods and tokens, and starts an agent for each host. They
    /// connect once their ComputeNodes say where the operator is.
    ///
    /// # Errors
    /// The API server refuses something.
    pub async fn start(
        cluster: Cluster<'_>,
        hosts: Vec<FleetHost>,
        library: Arc<Library>,
    ) -> Result<Self, FleetError> {
        let Cluster {
            client,
            kubeconfig,
            namespace,
            pods,
        } = cluster;
        let shared = Arc::new(Shared {
            client: anonymous(kubeconfig).await?,
            library,
            links: Mutex::new(Links::between(
                hosts.iter().map(|host| (host.name.clone(), host.site)),
            )),
            traffic: Mutex::default(),
            silent: Mutex::default(),
            began: (Instant::now(), Timestamp::now()),
        });
        objects::create_nodes(&client, &hosts).await?;
        let mut tokens = objects::tokens(&client, namespace, &hosts, pods).await?;
        let count = hosts.len();
        let hosts = hosts.into_iter().enumerate().map(|(ordinal, spec)| {
            let name = spec.name.clone();
            let token = tokens.remove(&name).unwrap_or_default();
            let host = Host::new(spec, token, (ordinal, count), Arc::clone(&shared));
            (name, Arc::new(host))
        });
        let hosts: Arc<BTreeMap<String, Arc<Host>>> = Arc::new(hosts.collect());
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(client.clone(), Arc::clone(&hosts)));
        for host in hosts.values() {
            tasks.spawn(session::keep(Arc::clone(host)));
            tasks.spawn(Arc::clone(host).publish());
        }
        Ok(Self {
            client,
            hosts,
            shared,
            _tasks: tasks,
        })
    }

    /// Turns the requests at all entries on or off.
    pub fn set_traffic(&self, flows: bool) {
        lock(&self.shared.traffic).flows = flows;
    }

    /// Makes these hosts neither report nor answer their peers, until they are removed from the
    /// set.
    pub fn silence(&self, hosts: BTreeSet<String>) {
        *lock(&self.shared.silent) = hosts;
    }

    /// Divides the bandwidth between two hosts by `factor` (1 restores it), which both see on the
    /// traffic of their next second. Returns when the operator got the first report; `None` if
    /// neither has a session.
    pub async fn slow_down(&self, a: &str, b: &str, factor: f64) -> Option<Instant> {
        lock(&self.shared.links).slow_down(a, b, factor);
        let told = [(a, b), (b, a)].map(|(host, peer)| {
            let host = self.hosts.get(host);
            host.map(|host| host.sees_change(peer))
        });
        let mut first: Option<Instant> = None;
        for answer in told.into_iter().flatten() {
            if let Ok(at) = answer.await {
                first = Some(first.map_or(at, |known| known.min(at)));
            }
        }
        first
    }

    /// Number of sessions opened so far by all hosts, reconnects included.
    pub fn sessions(&self) -> u32 {
        self.hosts.values().map(|host| host.sessions()).sum()
    }

    /// Hosts whose session is open now.
    pub fn connected(&self) -> usize {
        let hosts = self.hosts.values();
        hosts.filter(|host| host.is_connected()).count()
    }

    /// Hosts whose ComputeNode is Ready.
    pub fn ready(&self) -> usize {
        self.hosts.values().filter(|host| host.is_ready()).count()
    }

    /// Ends the agents and removes the Nodes; what belongs to them follows.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn remove(self) -> Result<(), FleetError> {
        let Self {
            client,
            hosts,
            _tasks: tasks,
            ..
        } = self;
        drop(tasks);
        let names: Vec<&str> = hosts.keys().map(String::as_str).collect();
        objects::delete_nodes(&client, &names).await
    }
}

/// A client for the same API server without a user.
async fn anonymous(kubeconfig: &Path) -> Result<Client, FleetError> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await?;
    config.auth_info = AuthInfo::default();
    Ok(Client::try_from(config)?)
}

/// Passes each host the wishes of its ComputeNode.
async fn follow(client: Client, hosts: Arc<BTreeMap<String, Arc<Host>>>) {
    let resource = ApiResource::erase::<ComputeNode>(&());
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let events = watcher(api, watcher::Config::default());
    let mut objects = std::pin::pin!(events.default_backoff().applied_objects());
    while let Some(object) = objects.next().await {
        match object {
            Ok(object) => {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                if let Some(host) = hosts.get(name) {
                    host.judged(&object.data["status"]);
                    host.follow(&Wish::read(&object.metadata, &object.data["spec"]));
                }
            }
            Err(error) => tracing::warn!(%error, "cannot watch ComputeNodes; trying again"),
        }
    }
}
