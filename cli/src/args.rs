//! Command-line arguments.

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;
use lamina_placement::Objective;
use std::net::IpAddr;
use std::path::PathBuf;

/// Lamina for kubectl.
#[derive(Debug, Parser)]
#[command(name = "kubectl-lamina", bin_name = "kubectl lamina", version, about)]
pub struct Cli {
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of the plugin.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare placements of a model over hosts, without a cluster.
    Plan(Box<PlanArgs>),
    /// Let a machine without a kubelet join the cluster's hosts.
    Join(Box<JoinArgs>),
}

const JOIN_EXAMPLES: &str = "\
Examples:
  # makes ComputeNode cam-9 and the file cam-9.join, good once and for an hour
  kubectl lamina join cam-9 --operator edge.example:9000 --tier device

  # on the machine
  lamina-node-agent run --join cam-9.join

  # the machine is to leave: its certificate counts no more
  kubectl delete computenode cam-9

The same command again replaces the token: for a machine that lost its disk, or was away for
longer than its certificate is good. docs/hosts.md says what the machine needs.";

/// Lets a machine without a kubelet join the cluster's hosts: creates its ComputeNode, and the file
/// by which it joins.
#[derive(Debug, Clone, Args)]
#[command(after_help = JOIN_EXAMPLES)]
pub struct JoinArgs {
    /// Name of the host; no Node may have it.
    #[arg(value_name = "HOST")]
    pub name: String,
    /// Address at which the machine reaches the operator.
    #[arg(long, value_name = "HOST:PORT")]
    pub operator: String,
    /// Its tier.
    #[arg(long, value_enum)]
    pub tier: Option<HostTier>,
    /// A label by which models select it; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Address at which other hosts reach it [default: the one from which it reaches the
    /// operator].
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// How long the token is valid.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub valid: SignedDuration,
    /// The file to write [default: HOST.join].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Namespace of the operator.
    #[arg(long, short, value_name = "NAMESPACE", default_value = "lamina-system")]
    pub namespace: String,
    /// The chart's release.
    #[arg(long, value_name = "RELEASE", default_value = "lamina")]
    pub release: String,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// The kubeconfig.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// The tier of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HostTier {
    /// Where requests arise.
    Device,
    /// Near the devices.
    Edge,
    /// Far away and fast.
    Cloud,
}

impl HostTier {
    /// The value of the tier label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  # every strategy side by side
  kubectl lamina plan --profile examples/plan/mobilenet-v2.json \\
      --topology examples/plan/camera-edge-cloud.yaml --rate 10/s

  # why this placement, and which limits bind
  kubectl lamina plan --profile ... --topology ... --entry-blocks 2 --explain

  # what happens when a link gets slow, and how slow it must get
  kubectl lamina plan --profile ... --topology ... --what-if link.cam-1:edge-1.bandwidth=5Mbit
  kubectl lamina plan --profile ... --topology ... --regions link.cam-1:edge-1.bandwidth

  # the fewest joules under a limit on latency, for a script
  kubectl lamina plan --profile ... --topology ... --objective energy --slo 150ms --json

What-if keys (repeat --what-if; all changes apply together):
  link.A:B.bandwidth=5Mbit   both directions; also latency=80ms, and gone
  oneway.A:B.bandwidth=...   from A to B alone
  node.N.memory=512MiB       also load=50%, speed=0.5x (half as fast as now), and gone
  rate=20/s
  Bandwidth, latency, memory and rate also take a factor: bandwidth=0.1x

Exit status: 0 a placement was found, 1 there is none, 2 the input cannot be used.
Colours follow NO_COLOR. docs/plan.md describes the files and the JSON.";

/// Compares placements of a model over hosts, without a cluster.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("question").required(true).args(["profile", "problem"]))]
pub struct PlanArgs {
    /// The model: the output of `lamina-node-agent prepare --json`, or a profile
    /// file (YAML, JSON).
    #[arg(long, value_name = "FILE", requires = "topology")]
    pub profile: Option<PathBuf>,
    /// Nodes and links (YAML, JSON).
    #[arg(long, value_name = "FILE", requires = "profile")]
    pub topology: Option<PathBuf>,
    /// The whole problem in one file, in the placement library's format (YAML,
    /// JSON).
    #[arg(long, value_name = "FILE", conflicts_with = "topology")]
    pub problem: Option<PathBuf>,
    /// Node where requests arrive [default: the topology's `entry`, else its only
    /// device].
    #[arg(long, value_name = "NODE")]
    pub entry: Option<String>,
    /// Expected request rate, such as 10/s. Without it, utilisation is not
    /// limited.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<String>,
    /// Objective to minimize (throughput: maximize) [default: latency].
    #[arg(long, value_enum)]
    pub objective: Option<Goal>,
    /// Limit on the expected latency, such as 100ms.
    #[arg(long, value_name = "TIME")]
    pub slo: Option<String>,
    /// Strategy to run; may be repeated [default: all that apply].
    #[arg(long, value_name = "NAME")]
    pub strategy: Vec<String>,
    /// Blocks that must run on a node, such as 3=edge-1 or 0-14=cam-1; may be
    /// repeated.
    #[arg(long, value_name = "BLOCKS=NODE")]
    pub pin: Vec<String>,
    /// Number of leading blocks that stay on the entry, for privacy.
    #[arg(long, value_name = "COUNT")]
    pub entry_blocks: Option<usize>,
    /// Early exits of a model whose profile has none (YAML, JSON).
    #[arg(long, value_name = "FILE", conflicts_with = "problem")]
    pub exits: Option<PathBuf>,
    /// Format of FP32 values sent between nodes; needs the manifest of a model
    /// [default: fp32].
    #[arg(long, value_name = "DTYPE", value_enum, conflicts_with = "problem")]
    pub activations: Option<Bits>,
    /// Maximum error that this may cause at one cut, such as 1% of the answers' largest
    /// magnitude; above it, values are sent unchanged [default: 1% with auto].
    #[arg(long, value_name = "SHARE", requires = "activations")]
    pub max_error: Option<String>,
    /// Minimum expected accuracy when thresholds of exits can be chosen, such as
    /// 85%.
    #[arg(long, value_name = "SHARE")]
    pub min_accuracy: Option<String>,
    /// Time limit for each strategy, which then returns the best it has found.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub deadline: String,
    /// Random seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Explain why the best placement was chosen, and why not another.
    #[arg(long)]
    pub explain: bool,
    /// Compare with a change, such as
    /// link.edge-1:cloud-1.bandwidth=5Mbit; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub what_if: Vec<String>,
    /// Show the best placement for each bandwidth of a link, such as
    /// link.cam-1:edge-1.bandwidth.
    #[arg(long, value_name = "LINK")]
    pub regions: Option<String>,
    /// One JSON document instead of tables.
    #[arg(long)]
    pub json: bool,
}

/// Format of values sent between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bits {
    /// Unchanged.
    Fp32,
    /// 16 bits with more precision.
    Fp16,
    /// 16 bits with a larger range.
    Bf16,
    /// 8 bits.
    Int8,
    /// At each cut, the fewest bits that the limit allows.
    Auto,
}

/// A criterion on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Expected latency.
    Latency,
    /// Latency of a request that takes no exit.
    TailLatency,
    /// Highest sustainable rate.
    Throughput,
    /// Joules per request.
    Energy,
    /// Utilisation of the busiest node.
    Fairness,
    /// Utilisation of the busiest node, relative to what others leave free.
    ProportionalFairness,
    /// Money per request.
    Money,
}

impl From<Goal> for Objective {
    fn from(goal: Goal) -> Self {
        match goal {
            Goal::Latency => Self::Latency,
            Goal::TailLatency => Self::TailLatency,
            Goal::Throughput => Self::Throughput,
            Goal::Energy => Self::Energy,
            Goal::Fairness => Self::Fairness,
            Goal::ProportionalFairness => Self::ProportionalFairness,
            Goal::Money => Self::Money,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
