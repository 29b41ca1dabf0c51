//! The process that opens models. An agent starts it; it locks itself up before it reads a
//! byte of a model. It alone links libtorch.

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
    /// Load slices and run them, as the sockets on standard input and output ask.
    Serve(serve::ServeArgs),
    /// Slice and profile one model; tells of it in JSON lines.
    Prepare(prepare::PrepareArgs),
    /// Run the blocks of a prepared folder once; tells of it in JSON lines.
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
