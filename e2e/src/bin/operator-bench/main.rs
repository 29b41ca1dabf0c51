//! The operator at size: the real binary against a real API server, with a fleet of
//! agents in this process. `cargo xtask bench operator` runs it.

mod audit;
mod cluster;
mod operator;
mod page;
mod plans;
mod result;
mod scenes;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use cluster::{Bench, Parts};
use page::Named;
use result::{Run, Size};
use scenes::Effort;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Measure the operator with fleets of agents, and print each figure beside its goal.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench operator", version)]
struct Args {
    /// Sizes of the fleet.
    #[arg(long, value_delimiter = ',', default_values_t = [250, 500, 1000])]
    nodes: Vec<usize>,
    /// Models that are served at once.
    #[arg(long, default_value_t = 200)]
    models: usize,
    /// Fewer models and changes.
    #[arg(long)]
    quick: bool,
    /// The operator's program.
    #[arg(long)]
    operator: PathBuf,
    /// The chart's folder.
    #[arg(long)]
    chart: PathBuf,
    /// Cargo's profile that the program was built with, for the page.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// Machine and date, for the page.
    #[arg(long, default_value = "")]
    machine: String,
    /// Commit of the operator, for the page.
    #[arg(long, default_value = "")]
    commit: String,
    /// Keep the figures under this name beside the page, and write the page anew.
    #[arg(long, requires = "page")]
    keep_as: Option<String>,
    /// The page.
    #[arg(long)]
    page: Option<PathBuf>,
}

/// Names of runs on the page, in their order.
const NAMES: [&str; 2] = ["before", "after"];

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    let outcome = tokio::select! {
        outcome = run(&args) => outcome,
        // Child processes are in their own process groups, which Ctrl-C does not reach; they are
        // dropped with the run, and so killed.
        interrupted = interrupted() => interrupted,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for a termination signal.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no handler for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        pressed = tokio::signal::ctrl_c() => pressed.context("no handler for Ctrl-C")?,
    }
    bail!("interrupted")
}

async fn run(args: &Args) -> Result<()> {
    let mut run = Run {
        machine: args.machine.clone(),
        commit: args.commit.clone(),
        profile: args.profile.clone(),
        models: args.models,
        ..Run::default()
    };
    for &nodes in &args.nodes {
        println!("{nodes} nodes");
        let begin = Instant::now();
        let mut size = Size::default();
        if let Err(error) = measure(args, nodes, &mut size).await {
            println!("    broke off: {error:#}");
            size.many.notes.push(format!("broke off: {error:#}"));
        }
        println!("  {:.0} s in all", begin.elapsed().as_secs_f64());
        run.sizes.insert(nodes, size);
        if let (Some(page), Some(name)) = (&args.page, &args.keep_as) {
            // After each size, so that a run that is ended early keeps its figures.
            keep(page, name, &run)?;
        }
    }
    Ok(())
}

fn effort(args: &Args) -> Effort {
    let seconds = Duration::from_secs;
    if args.quick {
        Effort {
            models: args.models.min(40),
            changes: 5,
            redeploys: 1,
            idle: seconds(8),
            limits: (seconds(150), seconds(60)),
        }
    } else {
        Effort {
            models: args.models,
            changes: 20,
            redeploys: 3,
            idle: seconds(30),
            limits: (seconds(450), seconds(280)),
        }
    }
}

async fn measure(args: &Args, nodes: usize, size: &mut Size) -> Result<()> {
    let effort = effort(args);
    let folder = std::env::temp_dir().join(format!("lamina-bench-{}", std::process::id()));
    let parts = Parts {
        operator: args.operator.clone(),
        chart: args.chart.clone(),
    };
    println!("  starting etcd, API server, {nodes} agents and the operator");
    let mut bench = Bench::start(parts, folder, nodes).await?;
    println!("  {} models, each at an entry of its own", effort.models);
    size.many = scenes::many(&mut bench, effort, nodes).await?;
    if scenes::clear(&bench, Duration::from_secs(30)).await? {
        println!("  one model at {} entries, a new operator", bench.entries());
        bench = bench.restart_operator().await?;
        size.one = scenes::one(&mut bench, effort, nodes).await?;
    } else {
        let note = "not begun: Placements of the first scene were still there after 30 s";
        println!("  one model at {} entries: {note}", bench.entries());
        size.one.notes.push(note.to_owned());
    }
    bench.stop().await;
    Ok(())
}

/// Stores the figures of `run` beside the page, and writes the page of all stored there.
fn keep(page: &Path, name: &str, run: &Run) -> Result<()> {
    let folder = page.with_extension("");
    let file = |name: &str| folder.join(format!("{name}.json"));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let own = file(name);
    let text = serde_json::to_string_pretty(run)? + "\n";
    std::fs::write(&own, text).with_context(|| format!("cannot write {}", own.display()))?;
    let mut runs = Vec::new();
    for name in NAMES {
        if let Ok(text) = std::fs::read_to_string(file(name)) {
            let run: Run = serde_json::from_str(&text)
                .with_context(|| format!("{} is of another version", file(name).display()))?;
            runs.push((name, run));
        }
    }
    let named: Vec<Named<'_>> = runs.iter().map(|(name, run)| Named { name, run }).collect();
    std::fs::write(page, page::page(&named))
        .with_context(|| format!("cannot write {}", page.display()))
}
