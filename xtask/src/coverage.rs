//! `cargo xtask coverage`: which models are cut, as a table in the docs.

use crate::build;
use crate::setup::Kit;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What the user asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct CoverageArgs {
    /// Only models whose name contains this; the table in the docs stays as it is.
    #[arg(long, default_value = "")]
    only: String,
    /// Models at a time. Times to prepare mean little with more than one.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// A built lamina-node-agent; built from this checkout where left out.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Exports models, prepares each and proves its blocks equal; writes
/// `docs/coverage.md` and `docs/coverage.csv`. What was done before for the same
/// model and the same agent is not done again. Fails where a model is wrong.
pub(crate) fn run(kit: &Kit, args: &CoverageArgs) -> Result<ExitCode> {
    let zoo = kit.zoo_python()?;
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
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
