//! Benchmarks, one function for each target.

use crate::run::logged;
use crate::setup;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::process::{Command, ExitCode};

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchTarget {
    /// Placement: targets against general solvers, the paper's figure, when splitting pays.
    Placement {
        /// A few instances of each, written outside the checkout.
        #[arg(long)]
        quick: bool,
        /// Only this part: targets, figure or splits.
        #[arg(long)]
        only: Option<String>,
    },
}

/// Runs one benchmark and writes its page under docs/benchmarks.
pub(crate) fn run(target: &BenchTarget) -> Result<ExitCode> {
    match target {
        BenchTarget::Placement { quick, only } => placement(*quick, only.as_deref()),
    }
}

fn placement(quick: bool, only: Option<&str>) -> Result<ExitCode> {
    let bench = setup::bench()?;
    let root = setup::root();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", &bench.target)
        .args(["build", "--release", "--package", "lamina-placement-bench"]);
    logged(
        "cargo build --release",
        &mut cargo,
        &bench.log("bench-build"),
    )?;
    let work = bench.target.join("bench/placement");
    let out = if quick {
        work.join("quick")
    } else {
        root.join("docs/benchmarks")
    };
    let mut run = Command::new(bench.target.join("release/placement-bench"));
    run.current_dir(&root).arg("all");
    run.arg("--python").arg(&bench.python);
    run.arg("--scripts")
        .arg(root.join("placement/bench/python"));
    run.arg("--work").arg(&work).arg("--out").arg(&out);
    if quick {
        run.arg("--quick");
    }
    if let Some(part) = only {
        run.args(["--only", part]);
    }
    let status = run.status().context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the placement benchmark failed; what it found is above");
    }
    Ok(ExitCode::SUCCESS)
}
