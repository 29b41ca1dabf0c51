//! What may be asked on the command line.

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use lamina_placement::Objective;
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
