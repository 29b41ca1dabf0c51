//! The serving data plane in the lab: real agents, links of given rates, and a third-party client.
//! `cargo xtask bench serving` runs it.

mod load;
mod measure;
mod page;
mod scenes;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use lamina_e2e::scene::Scene;
use page::Page;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Measure requests: latency over its floor, throughput, exits, encodings, overload, memory.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench serving", version)]
struct Args {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Machine and date, for the page.
    #[arg(long, default_value = "")]
    machine: String,
    /// Commit, for the page.
    #[arg(long, default_value = "")]
    commit: String,
    /// The page.
    #[arg(long)]
    page: Option<PathBuf>,
    /// Only the scenes whose names contain it; all if omitted.
    #[arg(long, default_value = "")]
    only: String,
    #[command(subcommand)]
    part: Option<Part>,
}

/// Programs that the benchmark runs from its own binary.
#[derive(Debug, Subcommand)]
enum Part {
    /// The client.
    Load(load::LoadArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    if let Some(Part::Load(args)) = &args.part {
        return load::run(args).await;
    }
    let mut told = |text: &str| println!("{text}");
    let scene = Scene::start(None, &[scenes::MODEL, scenes::DIGITS], &mut told).await?;
    let mut page = Page::new(&args.machine, &args.commit);
    let outcome = scenes::all(
        &scene,
        Duration::from_secs(args.seconds),
        &args.only,
        &mut page,
    )
    .await;
    if let Err(error) = &outcome {
        page.note(format!("broke off: {error:#}"));
    }
    if let Err(error) = scene.lab.stop().await {
        eprintln!("cleaning up: {error}");
    }
    if let Some(path) = &args.page {
        std::fs::write(path, page.text())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome
}
