//! Command-line options of the agent.

use crate::net::{FrontArgs, TlsMode};
use crate::prepare::SourceArgs;
use crate::serve::access::AuthMode;
use crate::serve::engine::Sharing;
use clap::{Args, ValueEnum};
use lamina_crds::quantity::parse_bytes;
use std::net::IpAddr;
use std::path::PathBuf;

/// Serve as the agent of one host. In Kubernetes the chart's DaemonSet sets all of
/// these.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of this Node and of its ComputeNode.
    #[arg(long, env = "NODE_NAME", required_unless_present = "join")]
    pub node_name: Option<String>,
    /// Address at which other agents reach this one. With --join, by default the one from which it
    /// reaches the operator.
    #[arg(long, env = "POD_IP", required_unless_present = "join")]
    pub pod_ip: Option<IpAddr>,
    /// The file of `kubectl lamina join`, by which a machine that is not a Node becomes a host. Its
    /// token is valid once; keep the file, which also has the operator's address.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["node_name", "tls"])]
    pub join: Option<PathBuf>,
    /// Address to listen on; `::` for all, IPv4 and IPv6, and `0.0.0.0` for IPv4 only.
    #[arg(long, default_value = "::")]
    pub listen_address: IpAddr,
    /// Port for inference requests and for other agents.
    #[arg(long, default_value_t = 8001)]
    pub port: u16,
    /// Port for inference requests over HTTP; 0 for none.
    #[arg(long, default_value_t = 8000)]
    pub rest_port: u16,
    /// Port of /livez, /readyz and /metrics.
    #[arg(long, default_value_t = 9091)]
    pub admin_port: u16,
    /// Folder for blocks and for the last spec of this host; survives restarts.
    #[arg(long, default_value = "/var/cache/lamina")]
    pub cache_dir: PathBuf,
    /// Size limit of the folder, `4Gi`. Above three quarters of it, unused blocks are
    /// removed.
    #[arg(long, default_value = "4Gi", value_parser = parse_bytes)]
    pub cache_size: u64,
    /// The pod's token, which identifies this node to the operator: projected for the
    /// audience `lamina-operator`.
    #[arg(long, default_value = "/var/run/secrets/lamina/token")]
    pub token_file: PathBuf,
    /// How clients authenticate. Health and the server's metadata are always open.
    #[arg(long, value_enum, default_value_t = AuthMode::None)]
    pub auth: AuthMode,
    /// Audience of clients' tokens, if they authenticate by token.
    #[arg(long, default_value = "lamina")]
    pub token_audience: String,
    /// Namespace of models called by a short name, if the client's credentials have none.
    #[arg(long, default_value = "default")]
    pub default_namespace: String,
    /// Inference requests per second from one address, unless its key has its own limit; 0 for no
    /// limit.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub requests_per_second: u32,
    /// TLS with the operator and with other agents.
    #[arg(long, value_enum, default_value_t = TlsMode::Disabled)]
    pub tls: TlsMode,
    /// ConfigMap with the certificate authorities to trust.
    #[arg(long, default_value = "lamina-ca")]
    pub tls_bundle: String,
    /// Namespace of the operator and of that ConfigMap.
    #[arg(long, env = "POD_NAMESPACE", default_value = "lamina-system")]
    pub namespace: String,
    /// TLS for clients.
    #[command(flatten)]
    pub front: FrontArgs,
    /// Which models share a worker process, and therefore its crashes.
    #[arg(long, value_enum, default_value_t = Sharing::PerNamespace)]
    pub workers: Sharing,
    /// Memory limit of one worker process, such as 2Gi; by default four fifths of the free
    /// memory when it starts.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub worker_memory_limit: Option<u64>,
    /// Open models even if the kernel cannot sandbox the process that opens them (no
    /// Landlock or no seccomp): only for models that you trust.
    #[arg(long)]
    pub allow_unsandboxed: bool,
    /// Allowed sources of models.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Format of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// Format of log lines; RUST_LOG filters them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
