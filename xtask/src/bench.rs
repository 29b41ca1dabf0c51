//! Benchmarks. Each prints ratios against a baseline of the same run and writes
//! its page in docs/benchmarks/.

use crate::run::{logged, output};
use crate::setup::{self, Kit};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

#[derive(Subcommand)]
pub(crate) enum BenchTarget {
    /// What slicing costs: merged slices against whole models, cuts, predicted times.
    Slicing {
        /// Print JSON and leave the page as it is.
        #[arg(long)]
        json: bool,
        /// Turns of each variant.
        #[arg(long, default_value_t = 25)]
        rounds: u32,
        /// Only these models.
        #[arg(long, value_delimiter = ',', default_values = SLICING_MODELS)]
        models: Vec<String>,
    },
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

/// The paper's network, and three that stress slicing in different ways.
const SLICING_MODELS: [&str; 4] = ["googlenet", "resnet50", "vit_b_16", "mobilenet_v2"];

/// Runs one benchmark.
pub(crate) fn run(target: &BenchTarget) -> Result<ExitCode> {
    match target {
        BenchTarget::Placement { quick, only } => placement(*quick, only.as_deref()),
        BenchTarget::Slicing {
            json,
            rounds,
            models,
        } => slicing(&setup::everything()?, *json, *rounds, models),
    }
}

fn slicing(kit: &Kit, json: bool, rounds: u32, models: &[String]) -> Result<ExitCode> {
    let files = models
        .iter()
        .map(|model| exported(kit, model))
        .collect::<Result<Vec<_>>>()?;
    // The profile of everything else: what is timed runs inside libtorch, which
    // is compiled already, and another profile would build all of it again.
    let mut build = kit.cargo();
    build.args(["build", "--workspace", "--example", "slicing"]);
    build.args(["--features", "lamina-torchscript/baseline"]);
    logged("cargo build", &mut build, &kit.log("bench-build"))?;
    let mut bench = Command::new(kit.target.join("debug/examples/slicing"));
    bench
        .env("OMP_NUM_THREADS", "1")
        .arg(format!("--rounds={rounds}"))
        .args(files)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if json {
        bench.arg("--json");
    } else if let Some(today) = output(Command::new("date").args(["-u", "+%F"])) {
        bench.arg(format!("--date={today}"));
    }
    let out = bench.output().context("cannot start the benchmark")?;
    if !out.status.success() {
        bail!("the benchmark failed ({})", out.status);
    }
    print!("{}", String::from_utf8_lossy(&out.stdout));
    if !json {
        let page = kit.root.join("docs/benchmarks/slicing.md");
        fs::write(&page, out.stdout).with_context(|| format!("cannot write {}", page.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The model, traced with random weights that the same seed gives again.
fn exported(kit: &Kit, model: &str) -> Result<PathBuf> {
    let folder = kit.target.join("bench-models");
    let name = format!("{model}-traced");
    let file = folder.join(format!("{name}.pt"));
    if !file.exists() {
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut export = Command::new(kit.python());
        export
            .args(["-W", "ignore"])
            .arg(kit.root.join("torchscript/tests/fixtures/export.py"))
            .arg(&folder)
            .arg(&name);
        let what = format!("exporting {model}");
        logged(&what, &mut export, &kit.log("bench-export"))?;
    }
    Ok(file)
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
