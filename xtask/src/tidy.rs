//! Project rules that no compiler checks.

mod catalogue;
mod circles;
mod imports;
mod named;
mod promises;
mod rooms;
mod tokens;

use crate::run::output;
use crate::setup::root;
use anyhow::{Result, bail};
use rooms::{CRATES, Crate, TABLE};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

const MAX_LINES: usize = 800;

/// Crates that must stay free of others, whatever their manifests pull in.
const FORBIDDEN: [(&str, &[&str]); 9] = [
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
    ("lamina-node-agent", &["tch", "torch-sys"]),
];

/// Checks everything and reports all violations at once.
pub(crate) fn check() -> Result<()> {
    let root = root();
    let mut wrong = Vec::new();
    let files = tracked(&root);
    for file in &files {
        if file.ends_with(".rs") {
            check_length(&root, file, &mut wrong);
        }
        if file.ends_with("Cargo.toml") && file != "Cargo.toml" {
            check_manifest(&root, file, &mut wrong);
        }
    }
    let text = |file: &str| fs::read_to_string(root.join(file)).ok();
    for one in CRATES {
        wrong.extend(check_imports(one, &files, &text));
    }
    check_uses(&root, &mut wrong);
    wrong.extend(catalogue::check(&files, &text));
    wrong.extend(named::check(&files, &text));
    wrong.extend(promises::check(&files, &text));
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

/// Rooms and circles of one crate.
fn check_imports(
    of: &Crate,
    files: &[String],
    text: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    let source = format!("{}/src/", of.folder);
    let mut wrong = Vec::new();
    let mut roots = Vec::new();
    for file in files.iter().filter(|file| is_root(file, &source)) {
        let imports = match imports::read(file, text) {
            Ok(imports) => imports,
            Err(unreadable) => {
                wrong.push(unreadable.to_string());
                continue;
            }
        };
        wrong.extend(rooms::judge(of, &imports));
        roots.push(imports);
    }
    wrong.extend(rooms::empty_rooms(of, &roots));
    wrong
}

/// Whether a crate's library or one of its programs has its root in `file`.
fn is_root(file: &str, source: &str) -> bool {
    let Some(inside) = file.strip_prefix(source) else {
        return false;
    };
    match inside.strip_prefix("bin/") {
        Some(program) => program
            .split_once('/')
            .is_none_or(|(_, inside)| inside == "main.rs"),
        None => ["lib.rs", "main.rs"].contains(&inside),
    }
}

/// Which crate of the workspace uses which.
fn check_uses(root: &Path, wrong: &mut Vec<String>) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args([
        "tree",
        "--workspace",
        "--no-dedupe",
        "--depth",
        "1",
        "--edges",
        "normal,build",
        "--prefix",
        "depth",
        "--format",
        " {p}",
    ]);
    let Some(tree) = output(&mut cargo) else {
        wrong.push("cargo tree of the workspace failed".to_owned());
        return;
    };
    let mut uses = uses_of_each(&tree);
    for one in CRATES {
        match uses.remove(one.package) {
            Some(used) => wrong.extend(rooms::judge_uses(one, &used)),
            None => wrong.push(format!("{TABLE} names {}, which is no crate", one.package)),
        }
    }
    wrong.extend(
        uses.keys()
            .map(|package| format!("{TABLE} lacks {package}")),
    );
}

/// Crates of the workspace that each one uses, from `0 a v1 (/path)` followed by `1 b v1 (/path)`;
/// those from a registry have no path.
fn uses_of_each(tree: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut user = String::new();
    for line in tree.lines().filter(|line| line.contains("(/")) {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(package)) = (words.next(), words.next()) else {
            continue;
        };
        if depth == "0" {
            package.clone_into(&mut user);
            uses.entry(user.clone()).or_default();
        } else if let Some(used) = uses.get_mut(&user) {
            used.insert(package.to_owned());
        }
    }
    uses
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

#[cfg(test)]
mod tests;
