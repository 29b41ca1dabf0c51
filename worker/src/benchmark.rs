//! The reference benchmark, which needs libtorch and no model.

use clap::Args;
use lamina_torchscript::reference_speed;
use std::io::{self, Write as _};
use std::time::Duration;

/// How long to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchmarkArgs {
    /// Milliseconds that it takes, about.
    #[arg(long, default_value_t = 2000)]
    milliseconds: u64,
}

/// Prints the speed over the wall time of all rounds, in GFLOP/s.
pub(crate) fn run(args: &BenchmarkArgs) -> bool {
    let speed = reference_speed(Duration::from_millis(args.milliseconds));
    writeln!(io::stdout(), "{}", speed.mean_gflops).is_ok()
}
