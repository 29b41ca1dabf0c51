//! The loop: look, decide, execute, and wait for the next change.

use crate::health::Health;
use crate::hosts::Hosts;
use crate::kube::execute::{Executor, Outcome};
use crate::kube::objects::Objects;
use crate::kube::secrets;
use crate::lease::Tenure;
use crate::metrics::Metrics;
use crate::news::News;
use crate::observe::{self, Place, Seen};
use crate::plan::desk::Desk;
use crate::prepare::garbage;
use crate::prepare::manifests::{self, Lacking, Loaded, Manifests};
use crate::reconcile;
use crate::state::decision::{Decisions, Interest, StartPrepare};
use crate::state::listed::Listed;
use crate::state::memory::Memory;
use crate::state::time::Moment;
use crate::store::BlobStore;
use crate::text::with_causes;
use crate::world::{PrepareRequest, World};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use lamina_plugin_host::Plugins;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Longest time between two looks, even if nothing happens.
const PERIOD: Duration = Duration::from_secs(2);
/// Shortest time between two looks: changes come in bursts.
const PAUSE: Duration = Duration::from_millis(100);
/// The loop idles for at least this multiple of its computing time, so that many minor changes
/// never fill a processor. Waiting for the API server does not count.
const REST: u32 = 2;
/// Probing is planned again after this time even if nothing changed: hosts come, and coordinates
/// improve.
const MEASURE_PERIOD: Duration = Duration::from_secs(3);
/// Time between two counts of the store's bytes.
const COUNT_PERIOD: Duration = Duration::from_secs(30);
/// Name of the loop's heartbeat.
const PULSE: &str = "controllers";
/// Name of its readiness: whether it knows the objects.
const OBJECTS: &str = "objects";

/// Settings of the loop.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
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
    /// Highest share of a host's memory for the models of one namespace, in `0..=1`.
    pub memory_share: f64,
    /// Until when this process may write.
    pub tenure: Tenure,
    /// Copies of the objects.
    pub objects: Objects,
    /// Hosts that are not Nodes, which receive decisions over their sessions.
    pub hosts: Hosts,
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum ControllersError {
    #[error("the decision loop panicked, which is a bug; please report it with the log above")]
    Decide(#[source] tokio::task::JoinError),
}

/// The part that decides and writes.
pub(crate) struct Controllers {
    settings: Settings,
    client: Client,
    world: World,
    store: BlobStore,
    health: Health,
    metrics: Metrics,
}

impl Controllers {
    /// Controllers that write with `client` and observe agents in `world`.
    pub(crate) fn new(
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
    pub(crate) async fn run(
        self,
        mut leads: watch::Receiver<bool>,
        shutdown: CancellationToken,
    ) -> Result<(), ControllersError> {
        let changed = Arc::new(Notify::new());
        let objects = self.settings.objects.clone();
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
            // Until then the objects may be older than another process's decisions.
            self.health.waits(OBJECTS, "the first look is under way");
            Looks::new(&self, objects.clone())
                .run(&changed, &shutdown)
                .await
        };
        tokio::select! {
            done = work => done,
            // Watches never end.
            () = async { while watches.next().await.is_some() {} } => Ok(()),
        }
    }

    /// Reports whether the objects are known, while another process leads.
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

/// What the loop needs to know about one look.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    /// Time for reading and deciding.
    thought: Duration,
    /// Some writes were deferred to the next one.
    is_cut: bool,
    /// The next one has something to decide after this time.
    again: Option<Duration>,
}

/// The looks of a process that leads.
struct Looks<'a> {
    all: &'a Controllers,
    objects: Objects,
    /// Origin of moments.
    began: Instant,
    place: Place,
    manifests: Manifests,
    memory: Memory,
    desk: Desk,
    executor: Executor,
    /// Which links matter.
    interest: watch::Sender<Arc<Interest>>,
    news: News,
    collected: Instant,
    counted: Option<Instant>,
    /// What the last look waited for.
    awaited: Option<String>,
}

impl<'a> Looks<'a> {
    fn new(all: &'a Controllers, objects: Objects) -> Self {
        let settings = &all.settings;
        let (interest, told) = watch::channel(Arc::default());
        tokio::spawn(measure(all.world.clone(), told));
        Self {
            all,
            began: Instant::now(),
            place: Place {
                started: Moment::default(),
                endpoint: settings.endpoint.clone(),
                node: settings.node.clone(),
                plugins: settings.plugins.strategies(),
                memory_share: settings.memory_share,
            },
            manifests: Manifests::new(all.store.clone()),
            memory: Memory::default(),
            desk: Desk::new(settings.plugins.clone()),
            executor: Executor::new(
                all.client.clone(),
                objects.clone(),
                settings.identity.clone(),
                settings.tenure.clone(),
            ),
            objects,
            interest,
            news: News::of(&all.world),
            collected: Instant::now(),
            counted: None,
            awaited: None,
        }
    }

    async fn run(
        mut self,
        changed: &Notify,
        shutdown: &CancellationToken,
    ) -> Result<(), ControllersError> {
        let done = self.look_until(changed, shutdown).await;
        self.executor.finish().await;
        done
    }

    async fn look_until(
        &mut self,
        changed: &Notify,
        shutdown: &CancellationToken,
    ) -> Result<(), ControllersError> {
        loop {
            self.all.health.beat(PULSE);
            let Look {
                thought,
                is_cut,
                again,
            } = self.look().await?;
            let retry = self.executor.next_retry();
            let next = retry.map_or(PERIOD, |at| {
                at.saturating_duration_since(Instant::now()).min(PERIOD)
            });
            let next = if is_cut { PAUSE } else { next };
            let next = again.map_or(next, |again| again.min(next));
            let interest = Arc::clone(&self.interest.borrow());
            tokio::select! {
                () = changed.notified() => {}
                () = self.news.urgent(&interest) => {}
                () = self.desk.answered() => {}
                () = tokio::time::sleep(next) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE.max(thought * REST)) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            self.news.take_up();
        }
    }

    fn now(&self) -> Moment {
        Moment::at(self.began.elapsed().as_secs_f64())
    }

    /// One look, and everything that follows from it.
    async fn look(&mut self) -> Result<Look, ControllersError> {
        let began = Instant::now();
        let listed = match self.objects.list() {
            Ok(listed) => listed,
            Err(awaited) => {
                self.awaits(awaited);
                return Ok(Look::default());
            }
        };
        if self.awaited.take().is_some() {
            tracing::info!("every list is here");
        }
        let world = &self.all.world;
        world.set_known(listed.hosts());
        world.retain_placements(&listed.entries());
        // First the jobs: what one of them has done is in the store by now.
        let prepares = observe::prepares(&self.all.world);
        let wanted = manifests::referenced(&listed, &prepares);
        let mut loaded = self.manifests.load(&wanted).await;
        self.take_back(&mut loaded);
        self.keep_house(&listed, &loaded).await;
        let seen = Seen {
            now: self.now(),
            wall: Timestamp::now(),
            listed,
            prepares,
            loaded,
            questions: self.desk.views(),
            changed_links: self.news.changed_links(),
        };
        let snapshot = Arc::new(observe::snapshot(&self.place, seen, &self.all.world));
        self.all.metrics.set_snapshot(Arc::clone(&snapshot));
        let mut memory = std::mem::take(&mut self.memory);
        // Even a short look would block the threads that sessions share.
        let decided = tokio::task::spawn_blocking(move || {
            let decisions = reconcile::decide(&snapshot, &mut memory);
            (decisions, memory)
        });
        let (decisions, memory) = decided.await.map_err(ControllersError::Decide)?;
        self.memory = memory;
        let decided = began.elapsed();
        // A little later, so that it is certainly over.
        let again = decisions.again_seconds.map(|s| s + 0.01);
        let again = again.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let Outcome {
            written,
            failed,
            is_cut,
        } = self.carry_out(decisions).await;
        let metrics = &self.all.metrics;
        metrics.looked(decided, began.elapsed(), written, failed);
        if !is_cut {
            self.all.health.ready(OBJECTS);
        }
        Ok(Look {
            thought: decided,
            is_cut,
            again,
        })
    }

    async fn carry_out(&mut self, decisions: Decisions) -> Outcome {
        let (world, metrics) = (self.all.world.clone(), &self.all.metrics);
        for solve in &decisions.solves {
            metrics.solved(solve);
        }
        for phases in &decisions.redeployed {
            metrics.redeployed(phases);
        }
        for key in &decisions.forget_asks {
            self.desk.forget(key);
        }
        for ask in decisions.asks {
            self.desk.ask(ask);
        }
        for job in &decisions.forget_prepares {
            world.forget_prepare(&job.to_string());
        }
        let all = self.all;
        let starting = decisions.prepares.into_iter().map(|job| start(all, job));
        futures::future::join_all(starting).await;
        world.set_directory(decisions.directory);
        self.interest.send_if_modified(|known| {
            let is_news = **known != decisions.interest;
            if is_news {
                *known = Arc::new(decisions.interest);
            }
            is_news
        });
        let outcome = self.executor.run(decisions.writes).await;
        all.settings.hosts.touch();
        outcome
    }

    /// Asks hosts for blobs that the store lacks.
    fn take_back(&self, loaded: &mut Loaded) {
        for (manifest, blobs) in &loaded.missing {
            let world = &self.all.world;
            let is_coming = |of: &Lacking| world.take_back(&of.blob, of.most_bytes);
            // Each is asked for, whatever becomes of the others.
            let coming = blobs.iter().filter(|of| is_coming(of)).count();
            if coming > 0 {
                loaded.recovering.insert(manifest.clone());
            }
        }
    }

    fn awaits(&mut self, awaited: String) {
        if self.awaited.as_ref() != Some(&awaited) {
            tracing::info!("{awaited}");
        }
        self.all.health.waits(OBJECTS, awaited.as_str());
        self.awaited = Some(awaited);
    }

    /// Removes unneeded blobs, and counts the rest.
    async fn keep_house(&mut self, listed: &Listed, loaded: &Loaded) {
        let store = &self.all.store;
        if self.collected.elapsed() >= garbage::PERIOD && loaded.is_certain {
            self.collected = Instant::now();
            let needed = garbage::needed(listed, loaded);
            match store.gc(&needed, garbage::MIN_AGE).await {
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

/// Tells agents which links to measure, when that changed or periodically, until the looks end.
/// With a thousand hosts this takes too long to be part of a look.
async fn measure(world: World, mut interest: watch::Receiver<Arc<Interest>>) {
    while !matches!(
        tokio::time::timeout(MEASURE_PERIOD, interest.changed()).await,
        Ok(Err(_))
    ) {
        let (world, of) = (world.clone(), Arc::clone(&interest.borrow_and_update()));
        let planned = tokio::task::spawn_blocking(move || {
            world.set_interest(&of.hosts, &of.paths, &of.wanted, &of.entries);
        });
        if let Err(error) = planned.await {
            tracing::error!(%error, "whom to measure could not be planned, which is a bug");
        }
    }
}

/// Gives a job to its agent, with the credentials for its source.
async fn start(all: &Controllers, job: StartPrepare) {
    let uri = crate::text::without_secrets(&job.uri);
    tracing::info!(node = job.node, uri, job = %job.job, "preparing");
    let mut request = PrepareRequest {
        job: job.job.to_string(),
        node: job.node,
        uri: job.uri,
        sha256: job.sha256,
        inputs_json: job.inputs_json,
        samples: job.samples,
        secret: None,
    };
    if let Some(secret) = &job.secret {
        match secrets::read(&all.client, secret).await {
            Ok(secret) => request.secret = Some(secret),
            Err(error) => {
                let message = with_causes(&error);
                all.world.refuse_prepare(request, message);
                return;
            }
        }
    }
    if let Err(error) = all.world.start_prepare(request) {
        // The agent disconnected meanwhile; the next look finds another.
        tracing::warn!(%error, "preparing could not begin");
    }
}
