//! The operator's binary.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use lamina_identity::Reached;
use lamina_operator::identity::Source;
use lamina_operator::lease::Terms;
use lamina_operator::operator::{self, Options, StoreAt};
use lamina_operator::store::Bucket;
use lamina_plugin_host::Plugins;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Places the blocks of neural networks on hosts, and moves them when that pays.
#[derive(Debug, Parser)]
#[command(name = "lamina-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the operator until SIGTERM or Ctrl-C.
    ///
    /// Inside a cluster it uses the pod's service account, elsewhere what
    /// KUBECONFIG names. RUST_LOG sets the log filter, `info` by default.
    Run(Run),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// Namespace of the operator, of its lease and of the agents' pods.
    #[arg(long, env = "POD_NAMESPACE", default_value = "lamina-system")]
    namespace: String,
    /// Service account of the agents' pods. No other may open a session, or fetch or store blobs.
    #[arg(long, default_value = "lamina-agent")]
    agent_service_account: String,
    /// Node on which the operator runs, so that blob transfers measure the links from there; empty
    /// if none.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    node_name: String,
    /// Address by which agents reach this process.
    #[arg(long, env = "POD_IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pod_ip: IpAddr,
    /// Name of this process as a candidate for the lease; unique by default.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pod_name: String,
    /// Seconds after which another process takes the lease of a silent one, such as on a node
    /// without power. A process that cannot renew it for three quarters of that time, because the
    /// API server is away, ends: use lower values with more than one replica.
    #[arg(long, default_value_t = Terms::ALONE_SECONDS,
        value_parser = clap::value_parser!(u16).range(i64::from(Terms::LEAST_SECONDS)..=300))]
    lease_seconds: u16,
    /// Port for agents.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Port for /livez, /readyz and /metrics.
    #[arg(long, default_value_t = 9090)]
    admin_port: u16,
    #[command(flatten)]
    store: Store,
    /// Bytes that one agent may store in an hour, such as 8Gi, not counting requested blobs.
    #[arg(long, default_value = "8Gi", value_parser = lamina_crds::quantity::parse_bytes)]
    put_quota: u64,
    /// Highest share of a host's memory, and of the space in its ComputeNode, for the models of one
    /// namespace, above 0 and up to 1.
    #[arg(long, default_value_t = 1.0, value_parser = share)]
    namespace_memory_share: f64,
    /// Strategies in processes of their own: a JSON list of name, address
    /// (http://HOST:PORT or unix:/PATH) and timeoutSeconds, such as
    /// [{"name": "mine", "address": "http://mine:50051"}]. A DnnModel selects one as
    /// `plugin/NAME`.
    #[arg(long, default_value = "")]
    plugins: String,
    /// Namespaces whose Secrets with the label serving.lamina.dev/api-key=true have client keys,
    /// separated by commas; `*` for all. None by default.
    #[arg(long, value_delimiter = ',')]
    api_key_namespaces: Vec<String>,
    #[command(flatten)]
    tls: Tls,
    /// Format of the log.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, clap::Args)]
struct Store {
    /// Folder for prepared models, unless they are in a bucket.
    #[arg(long, default_value = "/var/lib/lamina")]
    store_dir: PathBuf,
    /// Bucket of S3, or of a compatible service, for prepared models. Keys come from the
    /// environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a workload's identity.
    #[arg(long)]
    store_bucket: Option<String>,
    /// Prefix of the names of blobs in the bucket.
    #[arg(long, default_value = "", requires = "store_bucket")]
    store_prefix: String,
    /// Address of the bucket, such as https://minio:9000; AWS by default.
    #[arg(long, requires = "store_bucket")]
    store_endpoint: Option<String>,
    /// Region of the bucket.
    #[arg(long, default_value = "us-east-1", requires = "store_bucket")]
    store_region: String,
    /// The bucket's name is part of the host name.
    #[arg(long, requires = "store_bucket")]
    store_virtual_host: bool,
    /// Certificates (PEM) of further authorities to trust for the endpoint.
    #[arg(long, requires = "store_bucket")]
    store_ca: Option<PathBuf>,
}

impl Store {
    fn at(self) -> StoreAt {
        let Some(name) = self.store_bucket else {
            return StoreAt::Folder(self.store_dir);
        };
        StoreAt::Bucket(Bucket {
            name,
            prefix: self.store_prefix,
            endpoint: self.store_endpoint,
            region: self.store_region,
            is_virtual_host: self.store_virtual_host,
            authorities: self.store_ca,
        })
    }
}

#[derive(Debug, clap::Args)]
struct Tls {
    /// TLS and certificates for agents: all must use them (Required), some may still not
    /// (Optional), or none do.
    #[arg(long, value_enum, default_value_t = TlsMode::Disabled)]
    tls: TlsMode,
    /// Secret in which the operator keeps the certificate authority that it creates. It must exist,
    /// and may be empty.
    #[arg(long, default_value = "lamina-ca")]
    tls_secret: String,
    /// Folder with a given certificate authority, as tls.crt and tls.key, instead of one that the
    /// operator creates.
    #[arg(long)]
    tls_authority_dir: Option<PathBuf>,
    /// ConfigMap with the authorities for agents to trust. It must exist, and may be empty.
    #[arg(long, default_value = "lamina-ca")]
    tls_bundle: String,
    /// Lifetime of agents' certificates in hours, 1 to 8784. An agent that cannot reach an operator
    /// for longer is no longer trusted by others.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8784))]
    tls_certificate_hours: u64,
    /// The same in seconds, instead of hours: for tests.
    #[arg(long, env = "LAMINA_TLS_CERTIFICATE_SECONDS", hide = true)]
    tls_certificate_seconds: Option<u64>,
    /// Domain of the names in certificates: spiffe://DOMAIN/ns/…
    #[arg(long, default_value = "lamina", value_parser = trust_domain)]
    tls_trust_domain: String,
    /// Issue certificates also to addresses that are not of the token's pod, if there is NAT
    /// between agents and operator.
    #[arg(long)]
    tls_any_source: bool,
    /// Add the names by which clients reach agents to their certificates: the addresses of pod and
    /// node, the node's name, and those in --front-names.
    #[arg(long)]
    front_tls: bool,
    /// Names and addresses by which clients reach every agent, such as those of a Service,
    /// separated by commas.
    #[arg(long, value_delimiter = ',')]
    front_names: Vec<String>,
    /// Service account of the operator's pod, which its certificate names.
    #[arg(long, default_value = "lamina-operator")]
    service_account: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TlsMode {
    /// No certificates; all traffic is unencrypted.
    Disabled,
    /// Agents without certificates are admitted too, while a cluster is being changed over.
    Optional,
    /// Agents without certificates may only request one.
    Required,
}

impl Tls {
    fn options(self) -> Result<Option<operator::Tls>> {
        let is_optional = match self.tls {
            TlsMode::Disabled => return Ok(None),
            TlsMode::Optional => true,
            TlsMode::Required => false,
        };
        let hours = self.tls_certificate_hours * 3600;
        let lifetime = self.tls_certificate_seconds.unwrap_or(hours);
        let names = self.front_names.iter().map(String::as_str);
        let names = Reached::parse(names).context("--front-names cannot be used")?;
        Ok(Some(operator::Tls {
            source: match self.tls_authority_dir {
                Some(folder) => Source::Folder(folder),
                None => Source::Secret(self.tls_secret),
            },
            bundle: self.tls_bundle,
            trust_domain: self.tls_trust_domain,
            service_account: self.service_account,
            lifetime: Duration::from_secs(lifetime),
            is_optional,
            checks_source: !self.tls_any_source,
            front: self.front_tls.then_some(names),
        }))
    }
}

fn trust_domain(text: &str) -> Result<String, String> {
    if lamina_identity::is_node_name(text) {
        Ok(text.to_owned())
    } else {
        Err("give lower-case labels with dots between, such as `lamina.example`".to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

fn main() -> ExitCode {
    let Command::Run(run) = Cli::parse().command;
    log(run.log_format);
    match start(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.init(),
    }
}

#[tokio::main]
async fn start(run: Run) -> Result<()> {
    // Before any connection: two crates in the tree bring their own provider.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider was installed already");
    }
    let plugins = Plugins::parse(&run.plugins).context("--plugins cannot be used")?;
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_at_signal(shutdown.clone())?);
    let client = kube::Client::try_default()
        .await
        .context("no way to the API server; run in a pod or set KUBECONFIG")?;
    let identity = if run.pod_name.is_empty() {
        format!(
            "{}{:08x}",
            lamina_operator::lease::LOCAL,
            rand::random::<u32>()
        )
    } else {
        run.pod_name
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        identity,
        namespace = run.namespace,
        "starting"
    );
    let options = Options {
        namespace: run.namespace,
        agent_service_account: run.agent_service_account,
        node: run.node_name,
        ip: run.pod_ip,
        port: run.port,
        admin_port: run.admin_port,
        store: run.store.at(),
        put_quota: run.put_quota,
        memory_share: run.namespace_memory_share,
        identity,
        lease: Terms::of_seconds(run.lease_seconds),
        plugins,
        key_namespaces: run.api_key_namespaces,
        tls: run.tls.options()?,
    };
    operator::run(options, client, shutdown).await?;
    tracing::info!("stopped");
    Ok(())
}

/// A share above 0 and up to 1.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok();
    let share = share.filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "a share is above 0 and at most 1, such as 0.5".to_owned())
}

/// Cancels `shutdown` at the first signal.
fn stop_at_signal(shutdown: CancellationToken) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("no handler for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no handler for SIGINT")?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        shutdown.cancel();
    })
}
