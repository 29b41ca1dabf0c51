//! Memory of one copy and time to load it, each in its own process.

use crate::variants::{Variant, request};
use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use lamina_model::Manifest;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

#[derive(Serialize)]
pub(crate) struct Load {
    pub(crate) variant: Variant,
    #[serde(flatten)]
    pub(crate) took: Took,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Took {
    /// Seconds for reading, optimizing and warming up.
    pub(crate) seconds: f64,
    /// Additional resident memory.
    pub(crate) bytes: u64,
    /// Its peak while loading.
    pub(crate) peak_bytes: u64,
}

pub(crate) fn loads(model: &Path, folder: &Path) -> Result<Vec<Load>> {
    let load = |variant: &Variant| -> Result<Load> {
        let name = variant.to_possible_value();
        let name = name.context("a variant without a name")?;
        let out = Command::new(std::env::current_exe()?)
            .arg(model)
            .args(["--load", name.get_name(), "--blocks"])
            .arg(folder)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(out.status.success(), "loading {} failed", name.get_name());
        Ok(Load {
            variant: *variant,
            took: serde_json::from_slice(&out.stdout)?,
        })
    };
    Variant::value_variants().iter().map(load).collect()
}

/// In the child: loads, runs once, and prints its cost.
pub(crate) fn child(model: &Path, folder: &Path, variant: Variant) -> Result<()> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(folder.join("manifest.json"))?)?;
    let before = status("VmRSS:")?;
    let start = Instant::now();
    let loaded = variant.load(model, folder, &manifest)?;
    let seconds = start.elapsed().as_secs_f64();
    loaded.run(&request(&manifest.inputs))?;
    let took = Took {
        seconds,
        bytes: status("VmRSS:")?.saturating_sub(before),
        peak_bytes: status("VmHWM:")?.saturating_sub(before),
    };
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

/// A figure of /proc/self/status, in bytes.
fn status(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|l| l.trim().strip_suffix(" kB"));
    let kilobytes: u64 = kilobytes
        .context("the kernel does not say how much memory we hold")?
        .parse()?;
    Ok(kilobytes * 1024)
}
