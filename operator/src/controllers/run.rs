//! The loop: looks at the world, decides, does, and waits for the next change.

use super::decision::StartPrepare;
use super::desk::Desk;
use super::execute::{Executor, Outcome};
use super::manifests::{self, Manifests};
use super::memory::Memory;
use super::objects::Objects;
use super::observe::{self, Place};
use super::{collect, reconcile};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::BlobStore;
use crate::text::with_causes;
use crate::world::{PrepareRequest, World};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use lamina_placement::Ctx;
use lamina_plugin_host::Plugins;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// The world is looked at again after this time, though nothing happened.
const PERIOD: Duration = Duration::from_secs(2);
/// Time between two looks, however much happens: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(100);
/// Time that all strategies of one look may take together.
const SOLVE_TIME: Duration = Duration::from_secs(4);
/// Time between two counts of the store's bytes.
const COUNT_PERIOD: Duration = Duration::from_secs(30);
/// Name under which the loop says that it lives.
const PULSE: &str = "controllers";
/// Name under which it says whether it knows the objects.
const OBJECTS: &str = "objects";

/// Where this operator is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Namespace of the operator and of the agents' pods.
    pub namespace: String,
    /// Node on which the operator runs.
    pub node: String,
    /// Where agents reach it, `10.0.0.3:9000`.
    pub endpoint: String,
    /// Names this process in Events.
    pub identity: String,
    /// Strategies in processes of their own.
    pub plugins: Plugins,
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ControllersError {
    #[error("deciding broke off, which is a bug; please report it with the log above")]
    Decide(#[source] tokio::task::JoinError),
}

/// Everything that decides and writes.
pub struct Controllers {
    settings: Settings,
    client: Client,
    world: World,
    store: BlobStore,
    health: Health,
    metrics: Metrics,
}

impl Controllers {
    /// Controllers that write with `client` and know agents by `world`.
    pub fn new(
        settings: Settings,
        client: Client,
        world: World,
        store: BlobStore,
        health: Health,
        metrics: Metrics,
    ) -> Self {
        health.waits(OBJECTS, "the first lists are on their way");
        Self {
            settings,
            client,
            world,
            store,
            health,
            metrics,
        }
    }

    /// Decides and writes while `leads` says so, until `shutdown`. A look that has
    /// begun is finished first.
    ///
    /// # Errors
    /// Deciding panicked.
    pub async fn run(
        self,
        mut leads: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) -> Result<(), ControllersError> {
        let changed = Arc::new(Notify::new());
        let objects = Objects::default();
        let watches = objects.watches(&self.client, &self.settings.namespace, &changed);
        let mut watches: FuturesUnordered<_> = watches.into_iter().collect();
        let work = async {
            tokio::select! {
                held = leads.wait_for(|leads| *leads) => {
                    if held.is_err() {
                        return Ok(());
                    }
                }
                () = self.watch_lists(&objects, &changed) => return Ok(()),
                () = shutdown.cancelled() => return Ok(()),
            }
            self.metrics.set_leader(true);
            Looks::new(&self, objects.clone())
                .run(&changed, &shutdown)
                .await
        };
        tokio::select! {
            done = work => done,
            // Watches go on for ever.
            () = async { while watches.next().await.is_some() {} } => Ok(()),
        }
    }

    /// Says whether the objects are known, for as long as another process leads.
    async fn watch_lists(&self, objects: &Objects, changed: &Notify) {
        loop {
            self.health.beat(PULSE);
            match objects.list() {
                Ok(_) => self.health.ready(OBJECTS),
                Err(awaited) => self.health.waits(OBJECTS, awaited),
            }
            let _ = tokio::time::timeout(PERIOD, changed.notified()).await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// The looks of a process that leads.
struct Looks<'a> {
    all: &'a Controllers,
    objects: Objects,
    place: Place,
    manifests: Manifests,
    memory: Memory,
    desk: Desk,
    executor: Executor,
    collected: Instant,
    counted: Option<Instant>,
    /// What the last look waited for.
    awaited: Option<String>,
}

impl<'a> Looks<'a> {
    fn new(all: &'a Controllers, objects: Objects) -> Self {
        let settings = &all.settings;
        Self {
            all,
            place: Place {
                started: Timestamp::now(),
                endpoint: settings.endpoint.clone(),
                node: settings.node.clone(),
                plugins: settings.plugins.strategies(),
            },
            manifests: Manifests::new(all.store.clone()),
            memory: Memory::default(),
            desk: Desk::new(settings.plugins.clone()),
            executor: Executor::new(
                all.client.clone(),
                objects.clone(),
                settings.identity.clone(),
            ),
            objects,
            collected: Instant::now(),
            counted: None,
            awaited: None,
        }
    }

    async fn run(
        &mut self,
        changed: &Notify,
        shutdown: &CancellationToken,
    ) -> Result<(), ControllersError> {
        let mut events = self.all.world.subscribe();
        loop {
            self.all.health.beat(PULSE);
            self.look().await?;
            let retry = self.executor.next_retry();
            let next = retry.map_or(PERIOD, |at| {
                at.saturating_duration_since(Instant::now()).min(PERIOD)
            });
            tokio::select! {
                () = changed.notified() => {}
                () = something_happened(&mut events) => {}
                () = self.desk.answered() => {}
                () = tokio::time::sleep(next) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            while events.try_recv().is_ok() {}
        }
    }

    /// One look, and everything that follows from it.
    async fn look(&mut self) -> Result<(), ControllersError> {
        let began = Instant::now();
        let listed = match self.objects.list() {
            Ok(listed) => listed,
            Err(awaited) => {
                self.awaits(awaited);
                return Ok(());
            }
        };
        if self.awaited.take().is_some() {
            tracing::info!("every list is here");
        }
        self.all.health.ready(OBJECTS);
        // First the jobs: what one of them has done is in the store by now.
        let prepares = observe::prepares(&self.all.world);
        let wanted = manifests::referenced(&listed, &prepares);
        let loaded = self.manifests.load(&wanted).await;
        self.keep_house(&listed, &loaded).await;
        let snapshot = Arc::new(observe::snapshot(
            &self.place,
            Timestamp::now(),
            listed,
            &self.all.world,
            prepares,
            loaded.manifests,
            self.desk.views(),
        ));
        self.all.metrics.set_snapshot(Arc::clone(&snapshot));
        let mut memory = std::mem::take(&mut self.memory);
        // A strategy may compute for seconds, which sessions must not feel.
        let decided = tokio::task::spawn_blocking(move || {
            let ctx = Ctx::until(Instant::now() + SOLVE_TIME);
            let decisions = reconcile::decide(&snapshot, &mut memory, &ctx);
            (decisions, memory)
        });
        let (decisions, memory) = decided.await.map_err(ControllersError::Decide)?;
        self.memory = memory;
        for solve in &decisions.solves {
            self.all.metrics.solved(solve);
        }
        for (node, peers) in decisions.peers {
            self.all.world.set_peers(&node, peers);
        }
        for key in &decisions.forget_asks {
            self.desk.forget(key);
        }
        for ask in decisions.asks {
            self.desk.ask(ask);
        }
        for job in &decisions.forget_prepares {
            self.all.world.forget_prepare(job);
        }
        for job in decisions.prepares {
            self.start(job);
        }
        let Outcome { written, failed } = self.executor.run(decisions.writes).await;
        self.all.metrics.looked(began.elapsed(), written, failed);
        Ok(())
    }

    fn awaits(&mut self, awaited: String) {
        if self.awaited.as_ref() != Some(&awaited) {
            tracing::info!("{awaited}");
        }
        self.all.health.waits(OBJECTS, awaited.as_str());
        self.awaited = Some(awaited);
    }

    fn start(&self, job: StartPrepare) {
        tracing::info!(node = job.node, uri = job.uri, job = job.job, "preparing");
        let request = PrepareRequest {
            job: job.job,
            node: job.node,
            uri: job.uri,
            sha256: job.sha256,
            inputs_json: job.inputs_json,
        };
        if let Err(error) = self.all.world.start_prepare(request) {
            // The agent went away meanwhile; the next look finds another.
            tracing::warn!(%error, "preparing could not begin");
        }
    }

    /// Removes blobs that nothing needs, and counts the others.
    async fn keep_house(&mut self, listed: &super::objects::Listed, loaded: &manifests::Loaded) {
        let store = &self.all.store;
        if self.collected.elapsed() >= collect::PERIOD && loaded.is_certain {
            self.collected = Instant::now();
            let needed = collect::needed(listed, loaded);
            match store.gc(&needed, collect::MIN_AGE).await {
                Ok(gone) if gone.blobs > 0 => {
                    tracing::info!(
                        blobs = gone.blobs,
                        bytes = gone.bytes,
                        "removed from the store"
                    );
                }
                Ok(_) => {}
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "the store could not be cleaned");
                }
            }
        }
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT_PERIOD) {
            self.counted = Some(Instant::now());
            match store.total_bytes().await {
                Ok(bytes) => self.all.metrics.set_store_bytes(bytes),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(error, "the store could not be read");
                }
            }
        }
    }
}

/// Waits for the next event of the world. A listener that lags has missed some,
/// which is an event as well.
async fn something_happened(events: &mut broadcast::Receiver<crate::world::WorldEvent>) {
    if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
        // The world outlives the loop; without events the period will do.
        std::future::pending::<()>().await;
    }
}
