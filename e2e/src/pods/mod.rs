//! The pod runner: a kubelet without images and containers.
//!
//! It watches the pods that the scheduler has bound to hosts of the lab and
//! runs each container's program: with its arguments, environment, volumes,
//! user and a token bound to the pod, in the host's network namespace and
//! control groups. It reports the pods' true status.

mod container;
mod environment;
mod probe;
mod script;
mod status;
mod task;
mod volumes;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Image;
use crate::nodes::Size;
use container::Process;
use environment::HostFacts;
use task::{Identity, PodTask};

/// A host as the runner sees it.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) namespace: Option<PathBuf>,
    pub(crate) join_files: Vec<PathBuf>,
    /// The host's disk: holds its `hostPath` volumes.
    pub(crate) folder: PathBuf,
    pub(crate) size: Size,
    /// While true, ended processes are not restarted.
    pub(crate) suspended: watch::Sender<bool>,
}

impl Host {
    fn facts(&self) -> HostFacts {
        HostFacts {
            address: self.address,
            size: self.size,
        }
    }
}

/// State shared by all pods.
struct Shared {
    client: kube::Client,
    api: SocketAddr,
    images: BTreeMap<String, Image>,
    folder: PathBuf,
}

impl Shared {
    fn log(&self, pod: &str, container: &str) -> PathBuf {
        self.folder
            .join("logs")
            .join(format!("{pod}.{container}.log"))
    }
}

/// A pod that runs, starts or stops.
struct Running {
    name: String,
    host: String,
    updates: watch::Sender<Pod>,
    processes: BTreeMap<String, Process>,
    task: JoinHandle<()>,
}

type Pods = Arc<Mutex<BTreeMap<String, Running>>>;

/// The pod runner. Dropping it ends every process at once.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    hosts: BTreeMap<String, Arc<Host>>,
    pods: Pods,
    watching: JoinHandle<()>,
}

impl Runner {
    /// Starts watching. Logs and volumes go into `folder`.
    pub(crate) fn start(
        client: kube::Client,
        api: SocketAddr,
        images: BTreeMap<String, Image>,
        folder: PathBuf,
        hosts: Vec<Host>,
    ) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder.join("logs"))?;
        let shared = Arc::new(Shared {
            client,
            api,
            images,
            folder,
        });
        let hosts: BTreeMap<String, Arc<Host>> = hosts
            .into_iter()
            .map(|host| (host.name.clone(), Arc::new(host)))
            .collect();
        let pods = Pods::default();
        let watching = tokio::spawn(watch_pods(
            Arc::clone(&shared),
            hosts.clone(),
            Arc::clone(&pods),
        ));
        Ok(Self {
            shared,
            hosts,
            pods,
            watching,
        })
    }

    /// Sends a signal to the processes of a pod, or of all pods of a host. Returns how many
    /// received it.
    pub(crate) fn signal(&self, pod_or_host: &str, signal: Signal) -> usize {
        lock(&self.pods)
            .values()
            .filter(|pod| pod.name == pod_or_host || pod.host == pod_or_host)
            .flat_map(|pod| pod.processes.values())
            .filter(|process| process.signal(signal))
            .count()
    }

    /// Stops or resumes restarts on this host. False if the host is unknown.
    pub(crate) fn suspend(&self, host: &str, suspended: bool) -> bool {
        match self.hosts.get(host) {
            Some(host) => {
                host.suspended.send_replace(suspended);
                true
            }
            None => false,
        }
    }

    /// The folder of all pods' logs, `<pod>.<container>.log`.
    pub(crate) fn logs(&self) -> PathBuf {
        self.shared.folder.join("logs")
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.watching.abort();
        for pod in lock(&self.pods).values() {
            pod.task.abort();
        }
    }
}

fn lock(pods: &Pods) -> MutexGuard<'_, BTreeMap<String, Running>> {
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn watch_pods(shared: Arc<Shared>, hosts: BTreeMap<String, Arc<Host>>, pods: Pods) {
    let api = Api::<Pod>::all(shared.client.clone());
    let mut events = watcher(api, watcher::Config::default()).boxed();
    let mut listed: Option<Vec<String>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed = Some(Vec::new()),
            Ok(Event::InitApply(pod)) => {
                listed
                    .get_or_insert_default()
                    .extend(pod.metadata.uid.clone());
                update(&shared, &hosts, &pods, pod);
            }
            Ok(Event::InitDone) => {
                let listed = listed.take().unwrap_or_default();
                // Dropping a pod's sender tells its task that the pod is gone.
                lock(&pods).retain(|uid, _| listed.contains(uid));
            }
            Ok(Event::Apply(pod)) => update(&shared, &hosts, &pods, pod),
            Ok(Event::Delete(pod)) => {
                if let Some(uid) = &pod.metadata.uid {
                    lock(&pods).remove(uid);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the watch of pods broke");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

/// Starts a new pod, or passes the change to its task.
fn update(shared: &Arc<Shared>, hosts: &BTreeMap<String, Arc<Host>>, pods: &Pods, pod: Pod) {
    let spec = pod.spec.as_ref();
    let bound = spec.and_then(|spec| spec.node_name.as_ref());
    let Some(host) = bound.and_then(|name| hosts.get(name)) else {
        return;
    };
    let Some(identity) = Identity::of(&pod) else {
        return;
    };
    let mut pods = lock(pods);
    if let Some(running) = pods.get(&identity.uid) {
        running.updates.send_replace(pod);
        return;
    }
    let containers = spec.into_iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        init.chain(&spec.containers)
    });
    let processes: BTreeMap<String, Process> = containers
        .map(|container| (container.name.clone(), Process::default()))
        .collect();
    let (updates, seen) = watch::channel(pod.clone());
    let (uid, name) = (identity.uid.clone(), identity.name.clone());
    let task = PodTask::new(
        Arc::clone(shared),
        Arc::clone(host),
        pod,
        identity,
        processes.clone(),
    );
    let running = Running {
        name,
        host: host.name.clone(),
        updates,
        processes,
        task: tokio::spawn(task.run(seen)),
    };
    pods.insert(uid, running);
}
