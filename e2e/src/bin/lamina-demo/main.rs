//! The main job on one machine, end to end, on real parts: a cluster of five
//! emulated hosts, the chart, a model with real weights, real photographs, a link
//! that turns bad, and the blocks that move. `cargo xtask demo` runs it.

mod story;

use clap::Parser;
use std::process::ExitCode;

/// Split a network over five emulated hosts, serve it, make a link slow, and watch
/// blocks move while requests keep flowing.
#[derive(Parser)]
#[command(name = "cargo xtask demo", version)]
struct Args {
    /// Leave everything running at the end and print how to look at it.
    #[arg(long)]
    keep: bool,
    /// Requests per second of the load.
    #[arg(long, default_value_t = 3.0)]
    rate: f64,
    /// Seconds of load before the link turns slow, and after the blocks have moved.
    #[arg(long, default_value_t = 15)]
    phase_seconds: u64,
    /// Seconds within which an answer counts.
    #[arg(long, default_value_t = 10.0)]
    deadline_seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    match story::tell(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            story::show_error(&error);
            ExitCode::FAILURE
        }
    }
}
