//! The reference benchmark, which needs libtorch but no model.

use clap::Args;
use lamina_torchscript::{Lanes, speed_side_by_side};
use std::io::{self, Write as _};
use std::time::Duration;

/// What to measure, and for how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct BenchmarkArgs {
    /// Approximate duration in milliseconds.
    #[arg(long, default_value_t = 2000)]
    milliseconds: u64,
    /// Concurrent forwards and threads in each, `2x1`.
    #[arg(long = "lanes", value_parser = lanes, default_value = "1x1")]
    lanes: Vec<Lanes>,
}

/// Prints for each the speed of all forwards together, over the wall time of all rounds, in
/// GFLOP/s.
pub(crate) fn run(args: &BenchmarkArgs) -> bool {
    let count = u32::try_from(args.lanes.len()).unwrap_or(u32::MAX).max(1);
    let budget = Duration::from_millis(args.milliseconds) / count;
    let mut told = args.lanes.iter().map(|of| {
        let speed = speed_side_by_side(*of, budget);
        writeln!(io::stdout(), "{speed}")
    });
    told.all(|told| told.is_ok())
}

fn lanes(text: &str) -> Result<Lanes, String> {
    let parts = text.split_once('x');
    let parts =
        parts.and_then(|(lanes, threads)| Some((lanes.parse().ok()?, threads.parse().ok()?)));
    let (lanes, threads) = parts.ok_or("say how many forwards and threads, as in 2x1")?;
    Ok(Lanes { lanes, threads })
}
