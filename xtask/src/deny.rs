//! The check of dependencies: licences, banned crates and sources (`deny.toml`).

use crate::run::logged;
use crate::setup::{Kit, cache_folder};
use anyhow::Result;
use std::env;
use std::path::PathBuf;
use std::process::Command;

const VERSION: &str = "0.20.2";

/// The check, without advisories: their database is downloaded, and a new one would fail an
/// unchanged commit.
pub(crate) fn command(kit: &Kit) -> Result<Command> {
    let mut deny = Command::new(program(kit)?);
    deny.current_dir(&kit.root);
    deny.args(["check", "--hide-inclusion-graph"]);
    deny.args(["bans", "licenses", "sources"]);
    Ok(deny)
}

/// cargo-deny, built once and cached by version.
fn program(kit: &Kit) -> Result<PathBuf> {
    let folder = cache_folder()?.join(format!("cargo-deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    install
        .current_dir(&kit.root)
        // A separate build folder, removed afterwards.
        .env_remove("CARGO_TARGET_DIR")
        // It runs for seconds: optimizing it would take longer than it saves.
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .args(["install", "cargo-deny", "--locked", "--debug"])
        .args(["--version", VERSION, "--root"])
        .arg(&folder);
    logged(
        "building cargo-deny (about a minute on 2 cores, once)",
        &mut install,
        &kit.log("cargo-deny"),
    )?;
    Ok(program)
}
