//! The process that opens models. An agent starts it; it sandboxes itself before it reads a byte of
//! a model. Only this program links libtorch.

mod ahead;
mod benchmark;
mod cell;
mod chain;
mod prepare;
mod run_blocks;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Opens models for `lamina-node-agent`, which starts it.
#[derive(Debug, Parser)]
#[command(name = "lamina-worker", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load slices and run them, by calls on the sockets at standard input and output.
    Serve(serve::ServeArgs),
    /// Slice and profile one model; reports in JSON lines.
    Prepare(prepare::PrepareArgs),
    /// Run the blocks of a prepared folder once; reports in JSON lines.
    RunBlocks(run_blocks::RunBlocksArgs),
    /// Run the reference benchmark and print its GFLOP/s.
    Benchmark(benchmark::BenchmarkArgs),
}

fn main() -> ExitCode {
    let is_done = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::RunBlocks(args) => run_blocks::run(&args),
        Command::Benchmark(args) => benchmark::run(&args),
    };
    if is_done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
