//! The whole process: its servers, its lease, its controllers.

use crate::admin;
use crate::control::{self, Callers, ControlService, TokenReviews};
use crate::health::Health;
use crate::hosts::{self, Hosts};
use crate::identity::{self, Identity, Keeper, Source};
use crate::keys;
use crate::kube::objects::Objects;
use crate::lease::{Elector, LeaseError, PULSE, Terms};
use crate::metrics::Metrics;
use crate::run::{Controllers, ControllersError, Settings};
use crate::store::{BlobStore, Bucket, StoreError};
use crate::world::World;
use kube::Client;
use lamina_identity::{Plain, Reached, Workload};
use lamina_plugin_host::Plugins;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Names of the parts that write to the API server.
const CONTROLLERS: &str = "the controllers";
const ELECTION: &str = "the election";
const CERTIFICATES: &str = "the certificates";
const REPORTS: &str = "the reports of hosts that are no nodes";
/// Name of the leader's Lease.
const LEASE: &str = "lamina-operator";
/// Time for everything to end after a signal; the kubelet gives 30 s.
const SHUTDOWN: Duration = Duration::from_secs(15);

/// Options of the process.
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespace of the operator and of the agents' pods.
    pub namespace: String,
    /// Service account of the agents' pods: no other is admitted.
    pub agent_service_account: String,
    /// Node on which it runs; empty if none.
    pub node: String,
    /// Address by which agents reach it.
    pub ip: IpAddr,
    /// Port for agents.
    pub port: u16,
    /// Port for probes and metrics.
    pub admin_port: u16,
    /// Where prepared models are.
    pub store: StoreAt,
    /// Bytes that one agent may store in an hour.
    pub put_quota: u64,
    /// Highest share of a host's memory for the models of one namespace, in `0..=1`.
    pub memory_share: f64,
    /// Names this process, among candidates for the lease and in Events.
    pub identity: String,
    /// The holder of a silent lease is respected this long.
    pub lease: Terms,
    /// Strategies in processes of their own.
    pub plugins: Plugins,
    /// Namespaces whose labelled Secrets have client keys; `*` for all.
    pub key_namespaces: Vec<String>,
    /// TLS settings, if enabled.
    pub tls: Option<Tls>,
}

/// Where prepared models are.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// In a folder of this machine.
    Folder(PathBuf),
    /// In a bucket.
    Bucket(Bucket),
}

/// TLS with agents.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The source of the authority.
    pub source: Source,
    /// Name of the ConfigMap with the authorities for agents to trust.
    pub bundle: String,
    /// The domain of the names in certificates.
    pub trust_domain: String,
    /// Service account of the operator, which its certificate names.
    pub service_account: String,
    /// Lifetime of agents' certificates.
    pub lifetime: Duration,
    /// Whether agents without TLS are admitted too.
    pub is_optional: bool,
    /// Whether certificates are issued only to addresses of the token's pod.
    pub checks_source: bool,
    /// Names by which clients reach agents, to be added to their certificates; `None` if clients do
    /// not use these.
    pub front: Option<Reached>,
}

impl Options {
    fn identity(&self) -> Option<(Identity, identity::Options)> {
        let tls = self.tls.as_ref()?;
        let workload = |account: &str| Workload {
            trust_domain: tls.trust_domain.clone(),
            namespace: self.namespace.clone(),
            account: account.to_owned(),
        };
        let plain = match tls.is_optional {
            true => Plain::Taken,
            false => Plain::Refused,
        };
        let agents = workload(&self.agent_service_account);
        let options = identity::Options {
            namespace: self.namespace.clone(),
            source: tls.source.clone(),
            bundle: tls.bundle.clone(),
            operator: workload(&tls.service_account),
            address: self.ip,
        };
        let identity = Identity::new(agents, tls.lifetime, plain);
        let identity = match &tls.front {
            Some(all) => identity.for_clients(all.clone()),
            None => identity,
        };
        Some((identity, options))
    }
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum OperatorError {
    #[error("cannot listen on port {port}; is it taken?")]
    Listen {
        port: u16,
        #[source]
        cause: std::io::Error,
    },
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    #[error("the server for agents failed")]
    Control(#[from] tonic::transport::Error),
    #[error("the server for probes and metrics failed")]
    Admin(#[source] std::io::Error),
    #[error("lost leadership")]
    Lease(#[from] LeaseError),
    #[error("the controllers ended")]
    Controllers(#[from] ControllersError),
    #[error("{0} ended unexpectedly, which is a bug")]
    Ended(&'static str),
    #[error("a task panicked, which is a bug")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Runs until `shutdown`, then frees the lease. The first part that ends before
/// ends all.
///
/// # Errors
/// A part could not start, or ended.
pub async fn run(
    options: Options,
    client: Client,
    shutdown: CancellationToken,
) -> Result<(), OperatorError> {
    let health = Health::default();
    health.waits(PULSE, "the lease was not read yet");
    let world = World::new();
    let metrics = Metrics::new(world.clone());
    let store = match &options.store {
        StoreAt::Folder(folder) => BlobStore::local(folder)?,
        StoreAt::Bucket(bucket) => BlobStore::bucket(bucket)?,
    };
    let agents = listen(options.port).await?;
    let probes = listen(options.admin_port).await?;
    world.set_operator_node(&options.node);

    let elector = Elector::new(
        client.clone(),
        (options.namespace.as_str(), LEASE),
        options.identity.clone(),
        options.lease,
        health.clone(),
    );
    let elector = Arc::new(elector);
    let (lead, leads) = watch::channel(false);
    // Whichever part ends, all others are stopped.
    let stop = shutdown.child_token();
    let mut parts: JoinSet<(&'static str, Result<(), OperatorError>)> = JoinSet::new();

    let (token, health_of) = (stop.clone(), health.clone());
    let figures = metrics.clone();
    parts.spawn(async move {
        let served = admin::serve(probes, health_of, figures, token).await;
        ("the admin server", served.map_err(OperatorError::Admin))
    });
    let auth = TokenReviews::new(
        client.clone(),
        &options.namespace,
        &options.agent_service_account,
    );
    let objects = Objects::default();
    let hosts = Hosts::new(objects.clone(), client.clone());
    let checks_source = options.tls.as_ref().is_some_and(|tls| tls.checks_source);
    let auth = Arc::new(Callers::new(auth, hosts.clone(), checks_source));
    let service = ControlService::new(world.clone(), store.clone(), auth, stop.clone());
    let mut service = service.taking(options.put_quota);
    if let Some((identity, of)) = options.identity() {
        let is_strict = options.tls.as_ref().is_some_and(|tls| !tls.is_optional);
        service = service.with_identity(identity.clone(), is_strict, checks_source);
        service = service.with_hosts(hosts.clone());
        let figures = metrics.clone();
        let told = Box::new(move |authority, own| figures.set_certificates(authority, own));
        let keeper = Keeper::new(of, identity, client.clone(), health.clone(), told);
        let (leads, token) = (leads.clone(), stop.clone());
        parts.spawn(async move {
            keeper.run(leads, token).await;
            (CERTIFICATES, Ok(()))
        });
    }
    let token = stop.clone();
    parts.spawn(async move {
        let served = control::serve(agents, service, token).await;
        ("the server for agents", served.map_err(Into::into))
    });
    let watched = world.clone();
    let token = stop.clone();
    parts.spawn(async move {
        token.run_until_cancelled(watched.watch_over()).await;
        ("the watch over agents", Ok(()))
    });
    if !options.key_namespaces.is_empty() {
        let (client, world, token) = (client.clone(), world.clone(), stop.clone());
        let (namespaces, reporter) = (options.key_namespaces, options.identity.clone());
        let leads = leads.clone();
        parts.spawn(async move {
            let following = keys::follow(client, &namespaces, world, reporter, leads);
            token.run_until_cancelled(following).await;
            ("the watch of clients' keys", Ok(()))
        });
    }
    let settings = Settings {
        namespace: options.namespace.clone(),
        node: options.node.clone(),
        endpoint: SocketAddr::new(options.ip, options.port).to_string(),
        identity: options.identity.clone(),
        plugins: options.plugins.clone(),
        memory_share: options.memory_share,
        tenure: elector.tenure(),
        objects,
        hosts: hosts.clone(),
    };
    let writing = hosts::report::write(hosts, client.clone(), elector.tenure(), leads.clone());
    let token = stop.clone();
    parts.spawn(async move {
        token.run_until_cancelled(writing).await;
        (REPORTS, Ok(()))
    });
    let controllers = Controllers::new(settings, client, world, store, health, metrics);
    let token = stop.clone();
    parts.spawn(async move {
        let done = controllers.run(leads, token).await;
        (CONTROLLERS, done.map_err(Into::into))
    });
    let (candidate, token) = (Arc::clone(&elector), stop.clone());
    parts.spawn(async move {
        let done = candidate.run(&lead, &token).await;
        (ELECTION, done.map_err(Into::into))
    });

    let first = wait(&mut parts, &stop, &shutdown).await;
    stop.cancel();
    let ended = tokio::time::timeout(SHUTDOWN, async {
        let mut writers = BTreeSet::from([CONTROLLERS, ELECTION, REPORTS]);
        if options.tls.is_some() {
            writers.insert(CERTIFICATES);
        }
        while let Some(part) = parts.join_next().await {
            // As soon as nothing writes any more: an uninstall takes the token away.
            if let Ok((name, _)) = part
                && writers.remove(name)
                && writers.is_empty()
            {
                elector.release().await;
            }
        }
        writers.is_empty()
    });
    let is_released = ended.await.unwrap_or_else(|_| {
        tracing::warn!("some parts did not end within {} s", SHUTDOWN.as_secs());
        false
    });
    if !is_released {
        parts.shutdown().await;
        elector.release().await;
    }
    first
}

/// Waits for the first part that ends before `shutdown`.
async fn wait(
    parts: &mut JoinSet<(&'static str, Result<(), OperatorError>)>,
    stop: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<(), OperatorError> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        first = parts.join_next() => match first {
            Some(Ok((_, Err(error)))) => Err(error),
            Some(Ok((part, Ok(())))) if !shutdown.is_cancelled() => Err(OperatorError::Ended(part)),
            Some(Err(panic)) => Err(OperatorError::Panicked(panic)),
            _ => Ok(()),
        },
    }
}

/// A listener on every IPv6 and IPv4 address of this machine.
async fn listen(port: u16) -> Result<TcpListener, OperatorError> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpListener::bind(any).await {
        Ok(listener) => Ok(listener),
        // A machine without IPv6.
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .map_err(|cause| OperatorError::Listen { port, cause }),
    }
}
