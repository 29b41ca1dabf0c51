//! Benchmarks. Each prints ratios against a baseline of the same run and writes
//! its page in docs/benchmarks/.

use crate::build;
use crate::run::{logged, output};
use crate::setup::{self, Kit};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

#[derive(Subcommand)]
pub(crate) enum BenchTarget {
    /// The cost of slicing: merged slices against whole models, cuts, predicted times.
    Slicing {
        /// Print JSON and do not change the page.
        #[arg(long)]
        json: bool,
        /// Rounds of each variant.
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
    /// Requests in the lab: latency over its floor, throughput, exits, overload, memory.
    Serving {
        /// Seconds of each measurement.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// The operator at scale: looks, changes, writes, memory, with fleets of agents.
    Operator(OperatorArgs),
}

#[derive(clap::Args)]
pub(crate) struct OperatorArgs {
    /// Sizes of the fleet.
    #[arg(long, value_delimiter = ',', default_values_t = [250, 500, 1000])]
    nodes: Vec<usize>,
    /// Models served at once.
    #[arg(long, default_value_t = 200)]
    models: usize,
    /// Only the smallest size with fewer models and changes; does not change the page.
    #[arg(long)]
    quick: bool,
    /// Build the operator with the release profile instead of the lab's.
    #[arg(long, conflicts_with = "operator")]
    release: bool,
    /// Measure this program instead of building one.
    #[arg(long)]
    operator: Option<PathBuf>,
    /// Commit of that program, for the page.
    #[arg(long, requires = "operator")]
    commit: Option<String>,
    /// The results' place on the page: before or after.
    #[arg(long, default_value = "after", value_parser = ["before", "after"])]
    keep_as: String,
}

/// The paper's network, and three that stress slicing in different ways.
const SLICING_MODELS: [&str; 4] = ["googlenet", "resnet50", "vit_b_16", "mobilenet_v2"];

/// Runs one benchmark.
pub(crate) fn run(target: &BenchTarget) -> Result<ExitCode> {
    match target {
        BenchTarget::Placement { quick, only } => placement(*quick, only.as_deref()),
        BenchTarget::Operator(args) => {
            setup::require_lab_host()?;
            operator(&setup::everything()?, args)
        }
        BenchTarget::Serving { seconds } => {
            setup::require_lab_host()?;
            serving(&setup::everything()?, *seconds)
        }
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
    // The same profile as everything else: the measured code runs inside libtorch, which is already
    // compiled, and another profile would rebuild everything.
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

fn serving(kit: &Kit, seconds: u64) -> Result<ExitCode> {
    build::binaries(kit)?;
    let mut bench = Command::new("sh");
    // One client connection for each silent one.
    bench.args(["-c", "ulimit -n 16384 && exec \"$@\"", "sh"]);
    bench.arg(kit.target.join("debug/serving-bench"));
    bench.envs(kit.env()).current_dir(&kit.root);
    bench.env("LAMINA_BIN", kit.target.join("debug"));
    bench
        .arg("--page")
        .arg(kit.root.join("docs/benchmarks/serving.md"));
    bench.arg(format!("--seconds={seconds}"));
    bench.args(["--machine", &machine()]);
    if let Some(head) = output(Command::new("git").args(["rev-parse", "--short", "HEAD"])) {
        bench.args(["--commit", &head]);
    }
    let status = bench.status().context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the benchmark broke off; what it found is above");
    }
    Ok(ExitCode::SUCCESS)
}

fn operator(kit: &Kit, args: &OperatorArgs) -> Result<ExitCode> {
    build::binaries(kit)?;
    let built = match (&args.operator, args.release) {
        (Some(given), _) => given.clone(),
        (None, false) => kit.target.join("debug/lamina-operator"),
        (None, true) => {
            let mut cargo = kit.cargo();
            cargo.args(["build", "--release", "--package", "lamina-operator"]);
            logged("cargo build --release", &mut cargo, &kit.log("bench-build"))?;
            kit.target.join("release/lamina-operator")
        }
    };
    // One connection for each agent at either end.
    let mut bench = Command::new("sh");
    bench.args(["-c", "ulimit -n 16384 && exec \"$@\"", "sh"]);
    bench.arg(kit.target.join("debug/operator-bench"));
    bench.envs(kit.env()).current_dir(&kit.root);
    bench.arg("--operator").arg(built);
    bench.arg("--chart").arg(kit.root.join("charts/lamina"));
    bench.arg(format!("--models={}", args.models));
    if args.quick {
        let smallest = args.nodes.iter().min().copied().unwrap_or(250);
        bench.arg("--quick").arg(format!("--nodes={smallest}"));
    } else {
        let sizes: Vec<String> = args.nodes.iter().map(ToString::to_string).collect();
        bench.arg(format!("--nodes={}", sizes.join(",")));
        let page = kit.root.join("docs/benchmarks/operator.md");
        bench.arg("--page").arg(page);
        bench.args(["--keep-as", &args.keep_as]);
    }
    let profile = if args.release { "release" } else { "dev" };
    bench.args(["--profile", profile, "--machine", &machine()]);
    let head = || output(Command::new("git").args(["rev-parse", "--short", "HEAD"]));
    if let Some(commit) = args.commit.clone().or_else(head) {
        bench.args(["--commit", &commit]);
    }
    let status = bench.status().context("cannot start the benchmark")?;
    if !status.success() {
        bail!("the benchmark broke off; what it found is above");
    }
    Ok(ExitCode::SUCCESS)
}

/// The date, the processor, its cores, the memory and the machine's load.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    };
    let day = output(Command::new("date").args(["-u", "+%F"])).unwrap_or_default();
    let processor = field(&read("/proc/cpuinfo"), "model name").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kilobytes = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let gigabytes = kilobytes
        .strip_suffix(" kB")
        .and_then(|n| n.parse::<u64>().ok())
        .map_or(0, |kb| kb >> 20);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!("{day}, {processor}, {cores} cores, {gigabytes} GiB, load {load} at the start")
}

/// The model, traced with random weights, reproducible by the seed.
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
