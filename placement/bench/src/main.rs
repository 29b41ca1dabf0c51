//! Benchmarks of placement; `cargo xtask bench placement` runs them all.
//!
//! ```text
//! placement-bench all --python … --scripts … --work … --out …   what xtask runs
//! placement-bench solve INSTANCE STRATEGY SECONDS              one line of JSON
//! placement-bench write INSTANCE                               the instance as JSON
//! ```

mod agreement;
mod chains;
mod dice;
mod figure;
mod instance;
mod profile;
mod published;
mod report;
mod run;
mod splits;
mod targets;
mod worlds;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use instance::Instance;
use report::Results;
use run::Field;
use std::path::PathBuf;
use std::process::Command as Process;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Benchmarks of Lamina's placement", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the benchmarks and write their page, data and plots.
    All {
        /// Python with the packages of requirements.txt.
        #[arg(long)]
        python: PathBuf,
        /// Folder of the Python scripts.
        #[arg(long)]
        scripts: PathBuf,
        /// Folder for instances.
        #[arg(long)]
        work: PathBuf,
        /// Folder for results.
        #[arg(long)]
        out: PathBuf,
        /// A few instances of each.
        #[arg(long)]
        quick: bool,
        /// Only this part.
        #[arg(long)]
        only: Option<Part>,
    },
    /// Solve one instance and print what came out as a line of JSON.
    Solve {
        /// SCENARIO/PROFILE/NODES/SEED, such as tight/googlenet_fine/20/3.
        instance: Instance,
        /// Name of a strategy.
        strategy: String,
        /// Seconds that it may take.
        limit: f64,
    },
    /// Print an instance as JSON.
    Write {
        /// As for solve.
        instance: Instance,
    },
}

/// A part of the benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Targets,
    Figure,
    Splits,
}

fn main() -> ExitCode {
    match dispatch(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("placement-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    match command {
        Command::All {
            python,
            scripts,
            work,
            out,
            quick,
            only,
        } => {
            let field = Field::new(&python, &scripts, &work)?;
            let results = Results::new(&out)?;
            benchmarks(&field, &results, quick, only)?;
            let mut plot = Process::new(&python);
            plot.arg(scripts.join("plot.py")).arg(out.join("placement"));
            if !plot.status()?.success() {
                bail!("plotting failed");
            }
            println!("results: {}", results.page().display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Solve {
            instance,
            strategy,
            limit,
        } => {
            let run = run::here(&instance, &strategy, limit)?;
            println!("{}", serde_json::to_string(&run)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Write { instance } => {
            println!("{}", serde_json::to_string(&instance.problem()?)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn benchmarks(field: &Field, results: &Results, quick: bool, only: Option<Part>) -> Result<()> {
    let wanted = |part| only.is_none_or(|o| o == part);
    let mut wrong = Vec::new();
    if !field.has_cplex {
        println!("CPLEX does not import and is left out");
    }
    if wanted(Part::Targets) {
        wrong.extend(targets::run(field, results, quick)?);
    }
    if wanted(Part::Figure) {
        wrong.extend(figure::run(field, results, quick)?);
    }
    if wanted(Part::Splits) {
        splits::run(field, results, quick)?;
    }
    if !wrong.is_empty() {
        bail!("SOLVERS CONTRADICT EACH OTHER:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}
