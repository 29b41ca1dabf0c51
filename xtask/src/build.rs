//! Builds our own programs.

use crate::setup::{Kit, root};
use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode};

/// Builds what the lab's pods run.
pub(crate) fn binaries(kit: &Kit) -> Result<()> {
    println!("building Lamina (the first time 11 to 30 minutes on 2 cores):");
    let mut cargo = kit.cargo();
    // The whole workspace each time: another selection of packages would select other features of
    // dependencies, and rebuild them.
    cargo.args(["build", "--workspace", "--bins"]);
    crate::run::logged(
        "cargo build",
        crate::run::counting(&mut cargo),
        &kit.log("build"),
    )
}

/// Runs the demo, with our own standard streams.
pub(crate) fn demo(kit: &Kit, args: &[String]) -> Result<ExitCode> {
    let status = Command::new(kit.target.join("debug/lamina-demo"))
        .args(args)
        .current_dir(&kit.root)
        .envs(kit.env())
        .env("LAMINA_BIN", kit.target.join("debug"))
        .status()
        .context("cannot start the demo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Writes the CRDs' YAML into crds/ and the chart.
pub(crate) fn codegen() -> Result<()> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root())
        .args([
            "run",
            "--quiet",
            "--package",
            "lamina-crds",
            "--bin",
            "lamina-crdgen",
            "--",
            "crds",
            "charts/lamina/files/crds",
        ])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("generating the CRDs failed");
    }
    Ok(())
}
