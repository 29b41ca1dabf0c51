//! Rules of the house that no compiler checks.

use crate::run::output;
use crate::setup::root;
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

const MAX_LINES: usize = 800;

/// Crates that must stay free of others, whatever their manifests pull in.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    ("lamina-model", &["tokio", "kube", "tch", "tonic"]),
    ("lamina-sandbox", &["tokio", "kube", "tch", "tonic"]),
    (
        "lamina-placement",
        &["tokio", "kube", "tch", "tonic", "k8s-openapi"],
    ),
    ("lamina-profile", &["tokio", "kube", "tch", "tonic"]),
    // `plan` works with no cluster at all.
    ("kubectl-lamina", &["tokio", "kube", "tch", "torch-sys"]),
    ("lamina-crds", &["tokio", "hyper", "tch", "kube-client"]),
    (
        "lamina-plugin-host",
        &["kube", "k8s-openapi", "tch", "torch-sys"],
    ),
    ("lamina-operator", &["tch", "torch-sys"]),
];

/// Checks everything and reports all that is wrong at once.
pub(crate) fn check() -> Result<()> {
    let root = root();
    let mut wrong = Vec::new();
    for file in tracked(&root) {
        if file.ends_with(".rs") {
            check_length(&root, &file, &mut wrong);
        }
        if file.ends_with("Cargo.toml") && file != "Cargo.toml" {
            check_manifest(&root, &file, &mut wrong);
        }
    }
    for (package, forbidden) in FORBIDDEN {
        check_dependencies(&root, package, forbidden, &mut wrong);
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("tidy found:\n  {}", wrong.join("\n  "));
}

fn tracked(root: &Path) -> Vec<String> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files"]);
    output(&mut git)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn check_length(root: &Path, file: &str, wrong: &mut Vec<String>) {
    let lines = fs::read_to_string(root.join(file))
        .unwrap_or_default()
        .lines()
        .count();
    if lines > MAX_LINES {
        wrong.push(format!(
            "{file}: {lines} lines, at most {MAX_LINES}; split it by concern"
        ));
    }
}

fn check_manifest(root: &Path, file: &str, wrong: &mut Vec<String>) {
    let text = fs::read_to_string(root.join(file)).unwrap_or_default();
    if !text.contains("[lints]\nworkspace = true") {
        wrong.push(format!("{file}: lacks `[lints] workspace = true`"));
    }
}

fn check_dependencies(root: &Path, package: &str, forbidden: &[&str], wrong: &mut Vec<String>) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args([
        "tree",
        "--package",
        package,
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let Some(tree) = output(&mut cargo) else {
        wrong.push(format!("{package}: cargo tree failed"));
        return;
    };
    for line in tree.lines() {
        let name = line.split_whitespace().next().unwrap_or("");
        if forbidden.contains(&name) {
            wrong.push(format!(
                "{package} depends on {name}, which it must stay free of"
            ));
        }
    }
}
