//! `cargo xtask coverage`: which models are cut, as a table in the docs.

use crate::build;
use crate::setup::{Kit, Zoo};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct CoverageArgs {
    /// Only models whose name contains this; does not change the table in the docs.
    #[arg(long, default_value = "")]
    only: String,
    /// Models at a time. With more than one, times to prepare mean little.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// A built lamina-node-agent; by default built from this checkout.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Write docs/coverage-programs.md instead: networks that the SDK exports from `torch.export`
    /// bit for bit equal to eager. Needs no agent.
    #[arg(long, conflicts_with_all = ["agent", "jobs"])]
    programs: bool,
}

/// Exports models, prepares each and verifies its blocks; writes `docs/coverage.md` and
/// `docs/coverage.csv`. Results for the same model and agent are reused. Fails if a model is wrong.
pub(crate) fn run(kit: &Kit, args: &CoverageArgs) -> Result<ExitCode> {
    let zoo = kit.zoo_python()?;
    if args.programs {
        return programs(kit, &zoo, &args.only);
    }
    let agent = match &args.agent {
        Some(given) => given
            .canonicalize()
            .with_context(|| format!("cannot find {}", given.display()))?,
        None => {
            build::binaries(kit)?;
            kit.target.join("debug/lamina-node-agent")
        }
    };
    let status = Command::new(&zoo.python)
        .arg(kit.root.join("torchscript/coverage"))
        .arg("table")
        .args(["--only", &args.only])
        .args(["--jobs", &args.jobs.to_string()])
        .arg("--agent")
        .arg(agent)
        .arg("--models")
        .arg(&zoo.models)
        .arg("--results")
        .arg(zoo.models.join("results"))
        .arg("--docs")
        .arg(kit.root.join("docs"))
        .current_dir(&kit.root)
        .envs(kit.env())
        .env("OMP_NUM_THREADS", "1")
        .status()
        .context("Python does not start")?;
    Ok(code(status))
}

/// Exports each network as a program of `torch.export` and as the SDK's file; results for the same
/// SDK are reused. Fails if the SDK refuses one.
fn programs(kit: &Kit, zoo: &Zoo, only: &str) -> Result<ExitCode> {
    let status = Command::new(&zoo.python)
        .arg(kit.root.join("torchscript/coverage"))
        .arg("programs")
        .args(["--only", only])
        .arg("--results")
        .arg(zoo.models.join("programs"))
        .arg("--docs")
        .arg(kit.root.join("docs"))
        .current_dir(&kit.root)
        .env("OMP_NUM_THREADS", "1")
        .status()
        .context("Python does not start")?;
    Ok(code(status))
}

fn code(status: ExitStatus) -> ExitCode {
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
