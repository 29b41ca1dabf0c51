//! Developer entry point.
//!
//! ```text
//! cargo xtask demo     the main job on this machine: cluster, split, serve, move
//! cargo xtask test     everything that CI runs
//! cargo xtask setup    only fetch and build what the two above need
//! cargo xtask bench    measure, and write docs/benchmarks/
//! cargo xtask coverage test which models can be cut, and write docs/coverage.md
//! cargo xtask random   cut random networks and compare them with their files
//! cargo xtask cluster  the chart on real kubelets and containers, on this machine
//! cargo xtask bundle   images, chart, CRDs and checksums for an air-gapped site
//! cargo xtask images   container images of both programs, as OCI archives
//! cargo xtask codegen  write generated files
//! cargo xtask tidy     check project rules that no compiler checks
//! ```

mod bench;
mod build;
mod bundle;
mod cluster;
mod coverage;
mod deny;
mod earlier;
mod images;
mod random;
mod run;
mod servers;
mod setup;
mod steps;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Lamina's developer commands", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main job: a lab of five hosts, the real chart, a model served and moved.
    Demo {
        /// Leave everything running at the end and print how to look at it.
        #[arg(long)]
        keep: bool,
        /// Further arguments for the demo.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Run everything that CI runs.
    Test {
        /// Only the steps whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// With `--only cluster`: the revision from which the chart is upgraded to this one. By
        /// default images of this build stand in for an earlier version.
        #[arg(long, value_name = "REVISION")]
        earlier: Option<String>,
    },
    /// Measure, print ratios and write the page in docs/benchmarks/.
    Bench {
        #[command(subcommand)]
        target: bench::BenchTarget,
    },
    /// Fetch and build what demo and test need, with progress.
    Setup,
    /// Test many models and write docs/coverage.md; takes more than an hour on two cores.
    Coverage(coverage::CoverageArgs),
    /// Cut random small networks and compare their answers with their files'; 20 000 take an hour or
    /// two on two cores. With one network, say what is wrong with it.
    Random(random::RandomArgs),
    /// Start three nodes with real kubelets and containers, install the chart, serve a model.
    Cluster(cluster::ClusterArgs),
    /// Put images, chart, CRDs and checksums into one archive for an air-gapped site.
    Bundle(bundle::BundleArgs),
    /// Build the container images as OCI archives, with SBOMs; needs buildah, no registry.
    Images(images::ImagesArgs),
    /// Write generated files (CRDs).
    Codegen,
    /// Check layout, lints, file lengths and the direction of dependencies.
    Tidy,
}

fn main() -> ExitCode {
    match dispatch(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { keep, rest } => {
            setup::require_lab_host()?;
            let kit = setup::everything()?;
            build::binaries(&kit)?;
            let mut args = rest;
            if keep {
                args.insert(0, "--keep".to_owned());
            }
            build::demo(&kit, &args)
        }
        Command::Test { only, earlier } => {
            setup::require_lab_host()?;
            let kit = setup::everything()?;
            servers::build(&kit)?;
            steps::test(&kit, only.as_deref(), earlier.as_deref())
        }
        Command::Setup => {
            let kit = setup::everything()?;
            servers::build(&kit)?;
            println!("ready:");
            for (key, value) in kit.env() {
                println!("  {key}={value}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Bench { target } => bench::run(&target),
        Command::Coverage(args) => {
            let kit = setup::everything()?;
            coverage::run(&kit, &args)
        }
        Command::Random(args) => {
            let kit = setup::everything()?;
            random::run(&kit, &args)
        }
        Command::Cluster(args) => {
            setup::require_lab_host()?;
            let kit = setup::everything()?;
            cluster::run(&kit, &args)
        }
        Command::Bundle(args) => {
            let kit = setup::everything()?;
            bundle::run(&kit, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Images(args) => {
            let kit = setup::everything()?;
            images::run(&kit, &args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Codegen => {
            build::codegen()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Tidy => {
            tidy::check()?;
            println!("tidy: ok");
            Ok(ExitCode::SUCCESS)
        }
    }
}
