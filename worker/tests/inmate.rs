//! The lock without the scan: libtorch itself opens models that write files while being loaded, in
//! a locked process. This program starts itself as that process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_sandbox::lock::{Cell, Limits, Strictness, lock_up};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../node-agent/tests/fixtures/hostile.py"
);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|a| a == "inmate") {
        Some(at) => inmate(Path::new(&arguments[at + 1]), &arguments[at + 2]),
        None => models_that_write_find_nothing_to_write_to(),
    }
}

fn models_that_write_find_nothing_to_write_to() {
    let folder = tempfile::tempdir().unwrap();
    let (files, loot) = (folder.path().join("files"), folder.path().join("loot"));
    fs::create_dir(&loot).unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();
    make(&files, &loot);
    for name in [
        "save_on_load",
        "save_in_forward",
        "save_as_ops",
        "save_renamed",
    ] {
        let model = files.join(format!("{name}.pt"));
        // They do write if nothing stops them, otherwise this proves nothing.
        assert!(run(&model, "free").starts_with("done"), "{name}");
        assert!(loot.join(name).exists(), "{name} is harmless");
        fs::remove_file(loot.join(name)).unwrap();
        let said = run(&model, "locked");
        // libtorch does not check whether it could write.
        assert!(!loot.join(name).exists(), "{name} wrote");
        println!("test {name} ... ok: {said}");
    }
    let said = run(&files.join("from_file.pt"), "locked");
    assert!(!said.starts_with("done"), "it read /etc/passwd");
    println!("test from_file ... ok: {said}");
    for name in ["good", "loads"] {
        let said = run(&files.join(format!("{name}.pt")), "locked");
        assert!(said.starts_with("done"), "{name}: {said}");
        println!("test {name} ... ok: {said}");
    }
    println!("test result: ok. 1 passed; 0 failed; 0 ignored");
}

fn make(files: &Path, loot: &Path) {
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let mut command = Command::new(python);
    command.args(["-W", "ignore", SCRIPT]).args([files, loot]);
    let output = command.env("OMP_NUM_THREADS", "1").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

fn run(model: &Path, how: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.arg("inmate").arg(model).arg(how).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn inmate(model: &Path, how: &str) {
    let folder: PathBuf = model.ancestors().nth(2).unwrap().to_owned();
    if how == "locked" {
        let cell = Cell {
            read: vec![model.to_owned()],
            write: Some(folder.join("out")),
            limits: Limits {
                memory_bytes: 1 << 30,
                cpu: Some(Duration::from_secs(20)),
                file_bytes: 1 << 20,
            },
        };
        lock_up(&cell, Strictness::Required).unwrap();
    }
    match forward(model) {
        Ok(shape) => println!("done {shape:?}"),
        Err(error) => {
            let text = error.to_string();
            let cause = text.lines().rev().find(|l| l.contains("rror"));
            println!("failed: {}", cause.unwrap_or(&text));
        }
    }
}

fn forward(model: &Path) -> Result<Vec<i64>, tch::TchError> {
    let module = tch::CModule::load(model)?;
    let input = tch::Tensor::ones([1, 8], (tch::Kind::Float, tch::Device::Cpu));
    Ok(module.forward_ts(&[input])?.size())
}
