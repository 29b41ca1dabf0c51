//! The agent's life cycle: it loads its ledger, measures itself, serves, and follows its
//! ComputeNode until it is told to stop.

mod admin;
mod args;
mod capacity;
mod leave;
mod listen;
mod place;
mod readiness;

pub use args::{LogFormat, RunArgs};

use crate::blobs::{BlobOptions, Blobs};
use crate::door::DoorLimits;
use crate::identity::{self, Given, Keeper};
use crate::measure::{Prober, memory_free_bytes};
use crate::net::{FrontMode, FrontTls, OperatorEndpoint, Peers, Trust};
use crate::prepare::{LimitArgs, Program, Tools, run_job};
use crate::serve::access::{Access, AccessOptions, ApiReviews, AuthMode, Keys, NoReviews, Reviews};
use crate::serve::data_plane::DataPlane;
use crate::serve::directory::{self, Directory, DirectoryFile};
use crate::serve::engine::{Engine, WorkerOptions, Workers};
use crate::serve::guard;
use crate::serve::routes::Routes;
use crate::serve::slices::{Attempts, Slices};
use crate::session::{self, JobStarter, Jobs, SessionConfig};
use crate::telemetry::Telemetry;
use crate::wish::{Follower, Ledger, LedgerFile, Publisher, Reports, Seen, watched};
use crate::worker;
use admin::Admin;
use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::future::join;
use futures::stream::BoxStream;
use kube::Api;
use lamina_crds::ComputeNode;
use lamina_identity::Reached;
use place::{Place, Way};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Warm-up forwards before a slice counts as ready.
const WARMUP_RUNS: u32 = 3;
/// Queued updates of a job.
const JOB_UPDATES: usize = 16;

/// An agent without a certificate after this time reports ready all the same.
const CERTIFICATE_WITHIN: Duration = Duration::from_secs(30);

/// Runs the agent until SIGTERM or SIGINT; then it accepts requests for some more seconds,
/// unless there is a second signal.
///
/// # Errors
/// A missing requirement at the start, or the part that failed; the process should then
/// end with a failure, so that it is restarted.
pub fn run(args: &RunArgs) -> Result<()> {
    init_tracing(args.log_format);
    // Fails if one is installed already, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(agent(args));
    // This ends the workers.
    runtime.shutdown_background();
    outcome
}

fn init_tracing(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}

async fn agent(args: &RunArgs) -> Result<()> {
    let telemetry = Telemetry::default();
    let place = Place::of(args)?;
    let trust = Trust::new(place.tls(args));
    let Front {
        shown: front,
        given,
        reached,
    } = front(args, &place, &trust, &telemetry).await?;
    let endpoint = OperatorEndpoint::trusted(trust.clone());
    let Cached {
        blobs,
        mut ledger,
        ledger_file,
        directory,
        keys,
    } = cached(args, &place, &endpoint, &telemetry).await?;
    if let Some(operator) = place.operator() {
        operator.clone_into(&mut ledger.operator);
    }

    let program = worker::program().context("the program that opens models is not there")?;
    let capacity = capacity::capacity(&args.cache_dir, &program)
        .await
        .context("cannot measure this host")?;
    tracing::info!(?capacity, node = place.node, "measured");
    let changed = Arc::new(Notify::new());
    let room = guard::room(capacity.memory_bytes);
    let options = WorkerOptions {
        program,
        folder: args.cache_dir.join("workers"),
        lanes: capacity.lanes,
        threads: capacity.threads,
        warmup_runs: WARMUP_RUNS,
        memory_bytes: args.worker_memory_limit,
        memory_free_bytes,
        answer_bytes: room.largest_answer(),
        allow_unsandboxed: args.allow_unsandboxed,
    };
    let engine = Workers::new(options, args.workers, Arc::clone(&changed));
    let engine: Arc<dyn Engine> =
        Arc::new(engine.context("the folder of the workers cannot be used")?);

    let attempts = Attempts::in_dir(&args.cache_dir).context("the cache folder cannot be used")?;
    let slices = Slices::noting(
        Arc::clone(&engine),
        blobs.clone(),
        Arc::clone(&changed),
        attempts.clone(),
    );
    let routes = Routes::new(Arc::clone(&changed));
    let seen = watch::Sender::new(Seen {
        generation: ledger.generation,
        ..Seen::default()
    });
    let way = place.way().await?;
    let publisher = Publisher {
        to: match &way {
            Way::Api(client) => Reports::Api(Box::new(Api::all(client.clone()))),
            Way::Session(uplink) => Reports::Session(uplink.clone()),
        },
        node: place.node.clone(),
        address: place.address(args.port),
        slices: slices.clone(),
        routes: routes.clone(),
        engine: Arc::clone(&engine),
        blobs: Arc::clone(&blobs),
        capacity,
        trust: trust.clone(),
        auth: args.auth,
        seen: seen.subscribe(),
        changed: Arc::clone(&changed),
    };
    let mut follower = Follower::new(
        ledger,
        ledger_file,
        (slices.clone(), routes.clone()),
        endpoint.clone(),
        Arc::clone(&blobs),
        seen,
    );
    follower.resume();
    let (known, shown) = (trust.clone(), front.clone());
    let settled = readiness::settled(slices.clone(), publisher.seen.clone());
    let settled = async move {
        settled.await;
        // Others accept nothing from a host without one; clients of models that enter here must not
        // wait forever.
        let certified = join(known.ready(), shown.ready());
        if timeout(CERTIFICATE_WITHIN, certified).await.is_err() {
            tracing::warn!("ready without a certificate: only models that lie here are served");
        }
    };
    let keeper = trust.is_on().then(|| {
        let keeper = Keeper::new(
            &place.node,
            identity::Files::in_dir(&args.cache_dir),
            place.shown(args),
            endpoint.clone(),
            (telemetry.clone(), changed),
        );
        match reached {
            Some(reached) => keeper.for_clients(front.clone(), reached),
            None => keeper,
        }
    });
    let bundles = match &way {
        Way::Api(client) => {
            let api = Api::namespaced(client.clone(), &args.namespace);
            identity::bundles(api, &args.tls_bundle).boxed()
        }
        Way::Session(uplink) => uplink.bundles().boxed(),
    };
    let wishes = match &way {
        Way::Api(client) => watched(Api::all(client.clone()), &place.node).boxed(),
        Way::Session(uplink) => uplink.objects().boxed(),
    };
    let peers = Peers::default();
    let prober = Prober::new(telemetry.clone(), trust.clone());
    let access = access(args, &way, &keys, (&peers, &directory), &telemetry);
    let keeping = directory::keep(directory.clone(), DirectoryFile::in_dir(&args.cache_dir));
    let keeping_keys = keys.clone().keep(&args.cache_dir);
    let (leaving, is_heard) = (CancellationToken::new(), watch::Sender::new(false));
    let heard = is_heard.subscribe();
    session::spawn(SessionConfig {
        node: place.node.clone(),
        address: place.address(args.port),
        token_file: place.token_file(args),
        uplink: match way {
            Way::Api(_) => None,
            Way::Session(uplink) => Some(uplink),
        },
        cpu_millis: capacity.cpu_millis,
        endpoint,
        peers,
        telemetry: telemetry.clone(),
        blobs: Arc::clone(&blobs),
        directory: directory.clone(),
        keys,
        prober: prober.clone(),
        leaving: leaving.clone(),
        is_heard,
        jobs: Jobs::new(job_starter(Arc::clone(&blobs), args).await?),
    })
    .context("cannot start the session's thread")?;

    let (set_ready, ready) = watch::channel(false);
    let farewell = Farewell {
        leaving,
        moved: Box::pin(leave::moved(
            slices.clone(),
            routes.clone(),
            telemetry.clone(),
            heard,
        )),
    };
    let parts = Parts {
        admin: Admin::new(
            engine,
            slices.clone(),
            telemetry.clone(),
            ready.clone(),
            args.auth,
        ),
        data_plane: DataPlane {
            node: place.node.as_str().into(),
            trust,
            front,
            routes,
            directory,
            round_trip: Arc::new(move |node: &str| prober.rtt(node)),
            slices,
            blobs: blobs.clone(),
            telemetry,
            ready,
            access,
            limits: DoorLimits::for_requests(),
            room,
            run_memory_bytes: run_memory_bytes(args, capacity.memory_bytes),
        },
        blobs,
        follower,
        publisher,
        set_ready,
    };
    let _keeping = AbortOnDropHandle::new(tokio::spawn(keeping));
    let _keeping_keys = AbortOnDropHandle::new(tokio::spawn(keeping_keys));
    let _certified = keeper.map(|keeper| AbortOnDropHandle::new(tokio::spawn(keeper.run(bundles))));
    let _given = given.map(|given| AbortOnDropHandle::new(tokio::spawn(given.follow())));
    parts.serve(args, wishes, settled, farewell).await?;
    attempts.give_up();
    Ok(())
}

/// TLS for clients.
struct Front {
    shown: FrontTls,
    /// The certificate, if given by the user.
    given: Option<Given>,
    /// The names for the operator's certificate, if clients see that.
    reached: Option<Reached>,
}

async fn front(
    args: &RunArgs,
    place: &Place,
    trust: &Trust,
    telemetry: &Telemetry,
) -> Result<Front> {
    let of = &args.front;
    let shown = FrontTls::new(of.front_tls, of.front_tls_optional, trust);
    let (mut given, mut reached) = (None, None);
    match of.front_tls {
        FrontMode::None => {}
        FrontMode::Auto => {
            anyhow::ensure!(
                trust.is_on(),
                "--front-tls=auto needs certificates of the operator: set --tls"
            );
            let names = of.front_names.iter().map(String::as_str);
            let names = Reached::parse(names).context("--front-names cannot be used")?;
            let own = Reached {
                addresses: vec![place.ip.to_canonical()],
                ..Reached::default()
            };
            reached = Some(own.and(&names));
        }
        FrontMode::Given => {
            let open = Given::open(&of.front_tls_dir, shown.clone(), telemetry.clone());
            let opened = open.await;
            given = Some(opened.context("the certificate for clients cannot be used")?);
        }
    }
    Ok(Front {
        shown,
        given,
        reached,
    })
}

/// The contents of the cache folder.
struct Cached {
    blobs: Arc<Blobs>,
    ledger: Ledger,
    ledger_file: LedgerFile,
    directory: Directory,
    keys: Keys,
}

async fn cached(
    args: &RunArgs,
    place: &Place,
    endpoint: &OperatorEndpoint,
    telemetry: &Telemetry,
) -> Result<Cached> {
    let (dir, endpoint, telemetry) = (args.cache_dir.clone(), endpoint.clone(), telemetry.clone());
    let options = BlobOptions {
        dir: dir.join("blobs"),
        limit_bytes: args.cache_size / 4 * 3,
        token_file: place.token_file(args),
    };
    let reading = tokio::task::spawn_blocking(move || -> Result<Cached> {
        let blobs =
            Blobs::open(options, endpoint, telemetry).context("the cache folder cannot be used")?;
        let ledger_file = LedgerFile::in_dir(&dir);
        Ok(Cached {
            blobs: Arc::new(blobs),
            ledger: ledger_file.read()?,
            ledger_file,
            directory: Directory::with(DirectoryFile::in_dir(&dir).read()),
            keys: Keys::in_dir(&dir),
        })
    });
    reading.await?
}

/// Authentication of clients.
fn access(
    args: &RunArgs,
    way: &Way,
    keys: &Keys,
    (peers, directory): (&Peers, &Directory),
    telemetry: &Telemetry,
) -> Access {
    if args.auth == AuthMode::None {
        tracing::warn!("clients need not say who they are (--auth=none): all get every model");
    }
    let options = AccessOptions {
        mode: args.auth,
        default_namespace: args.default_namespace.as_str().into(),
        audience: args.token_audience.clone(),
        requests_per_second: Some(args.requests_per_second).filter(|limit| *limit > 0),
    };
    let reviews: Arc<dyn Reviews> = match way {
        Way::Api(client) => {
            let audience = args.token_audience.clone();
            Arc::new(ApiReviews::new(client.clone(), audience))
        }
        Way::Session(_) => Arc::new(NoReviews),
    };
    let (peers, directory) = (peers.clone(), directory.clone());
    let is_agent = move |ip: IpAddr| {
        let is_it = |address: &str| {
            let known: Option<SocketAddr> = address.parse().ok();
            known.is_some_and(|known| known.ip().to_canonical() == ip.to_canonical())
        };
        let is_peer = peers.list().iter().any(|(_, address)| is_it(address));
        is_peer || directory.now().addresses().any(is_it)
    };
    Access::new(
        options,
        keys.clone(),
        reviews,
        Arc::new(is_agent),
        telemetry.clone(),
    )
}

/// Memory limit of a worker: the configured one, or its default share of the host's memory.
fn run_memory_bytes(args: &RunArgs, memory_bytes: u64) -> u64 {
    args.worker_memory_limit
        .unwrap_or_else(|| worker::memory_share(memory_bytes))
}

/// Steps after the signal to end.
struct Farewell {
    /// Informs the operator.
    leaving: CancellationToken,
    /// Then requests may be refused.
    moved: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Concurrent parts.
struct Parts {
    admin: Admin,
    blobs: Arc<Blobs>,
    data_plane: DataPlane,
    follower: Follower,
    publisher: Publisher,
    set_ready: watch::Sender<bool>,
}

impl Parts {
    /// Serves until a signal, and reports ready once `settled`; a part that ends earlier ends the
    /// process.
    async fn serve(
        self,
        args: &RunArgs,
        wishes: BoxStream<'static, ComputeNode>,
        settled: impl Future<Output = ()> + Send + 'static,
        farewell: Farewell,
    ) -> Result<()> {
        let listen = |port| listen::listen(args.listen_address, port);
        let requests = listen(args.port)?;
        let http = match args.rest_port {
            0 => None,
            port => Some(listen(port)?),
        };
        let probes = listen(args.admin_port)?;
        let (shutdown, admin_ends) = (CancellationToken::new(), CancellationToken::new());
        let (follower, publisher) = (self.follower, self.publisher);
        let mut beside = JoinSet::new();
        beside.spawn(async move {
            follower.run(wishes).await;
            anyhow::Ok("the watch of the ComputeNode")
        });
        beside.spawn(async move {
            publisher.run().await;
            Ok("the report")
        });
        let blobs = self.blobs;
        beside.spawn(async move {
            blobs.refill().await;
            Ok("the refilling of the store")
        });
        let admin = self.admin.serve(probes, admin_ends.clone());
        beside.spawn(async move {
            admin.await;
            Ok("the admin server")
        });
        let mut serving = tokio::spawn(self.data_plane.serve(requests, http, shutdown.clone()));
        let set_ready = self.set_ready.clone();
        let settling = AbortOnDropHandle::new(tokio::spawn(async move {
            settled.await;
            set_ready.send_replace(true);
            tracing::info!("ready");
        }));
        tracing::info!(port = args.port, "serving");
        let set_ready = self.set_ready;
        let told = async {
            let mut signals = Signals::listen()?;
            let signal = signals.next().await;
            tracing::info!(signal, "ending");
            // Not ready again behind this.
            settling.abort();
            let _ = settling.await;
            set_ready.send_replace(false);
            farewell.leaving.cancel();
            tokio::select! {
                () = farewell.moved => {}
                signal = signals.next() => tracing::info!(signal, "ending at once"),
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = beside.join_next() => {
                let what = ended.context("nothing runs")???;
                anyhow::bail!("{what} has ended")
            }
            ended = &mut serving => {
                ended.context("the server of requests failed")?;
                anyhow::bail!("the server of requests has ended")
            }
            told = told => told?,
        }
        tracing::info!("no request is taken any more; those in flight are answered first");
        shutdown.cancel();
        serving.await.context("the server of requests failed")?;
        admin_ends.cancel();
        Ok(())
    }
}

/// Signals that end an agent.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Prepares models on the main runtime, away from the session's thread.
async fn job_starter(blobs: Arc<Blobs>, args: &RunArgs) -> Result<JobStarter> {
    let cell = LimitArgs {
        allow_unsandboxed: args.allow_unsandboxed,
        ..LimitArgs::default()
    };
    let program = Program::worker(cell).context("the program that opens models is not there")?;
    let work_dir = args.cache_dir.join("work");
    let sources = args.sources.clone();
    // Empties the folder first.
    let tools = move || Tools::new(blobs, program, work_dir, sources);
    let tools = tokio::task::spawn_blocking(tools).await?;
    let tools = tools.context("the folder for preparing cannot be used")?;
    let runtime = tokio::runtime::Handle::current();
    Ok(Arc::new(move |job, updates, cancel| {
        let tools = tools.clone();
        runtime.spawn(async move {
            let (sender, mut receiver) = mpsc::channel(JOB_UPDATES);
            let forward = async {
                while let Some(update) = receiver.recv().await {
                    // The session keeps its end for the rest of the process.
                    let _ = updates.send(update);
                }
            };
            tokio::join!(run_job(job, tools, sender, cancel), forward);
        });
    }))
}
