//! The agent's program: `run` serves on a host; `prepare` slices and profiles one model, and
//! `run-blocks` runs the resulting blocks, without a cluster.

use clap::{Parser, Subcommand};
use lamina_node_agent::prepare::{self, PrepareArgs, RunBlocksArgs};
use lamina_node_agent::run::{self, RunArgs};
use lamina_node_agent::selftest::{SelftestArgs, selftest};
use std::process::ExitCode;

/// Lamina's node agent.
#[derive(Debug, Parser)]
#[command(name = "lamina-node-agent", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as the agent of one host of a cluster.
    Run(Box<RunArgs>),
    /// Slice and profile a TorchScript file into a folder.
    Prepare(PrepareArgs),
    /// Run the blocks of such a folder on one request and compare.
    RunBlocks(RunBlocksArgs),
    /// Serve a tiny model on a cluster and send it one request, as `helm test` does.
    Selftest(SelftestArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Prepare(args) => prepare::run(&args),
        Command::RunBlocks(args) => prepare::run_blocks(&args),
        Command::Selftest(args) => match selftest(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Run(args) => match run::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the agent ends");
                ExitCode::FAILURE
            }
        },
    }
}
