//! A dozen rows of the coverage table (docs/coverage.md): prepared here, compared with the model by
//! the table's checker in Python, which shares no code with the slicer.

use crate::common::options;
use lamina_model::InputSpec;
use lamina_torchscript::{prepare, set_threads};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rows that need no model zoo, with the minimum number of blocks.
const ROWS: [(&str, usize); 13] = [
    ("squeezenet1_1.tr", 18),
    ("mobilenet_v3_small.sc", 28),
    ("vit_6_layers.tr", 8),
    ("lstm.sc", 3),
    ("gru.tr", 3),
    ("attention.tr", 6),
    ("siamese.tr", 3),
    ("autoencoder.sc", 4),
    ("tuple_output.tr", 2),
    ("dict_output.sc", 3),
    ("branching.sc", 2),
    ("optional.sc", 3),
    ("multi_exit.sdk", 2),
];

#[test]
fn a_dozen_rows_of_the_coverage_table_are_cut_and_exact() {
    set_threads(1);
    let models = exported();
    let out = tempfile::tempdir().unwrap();
    for (name, least_blocks) in ROWS {
        let inputs = fs::read(models.join(format!("{name}.json"))).unwrap();
        let inputs: Vec<InputSpec> = serde_json::from_slice(&inputs).unwrap();
        let model = models.join(format!("{name}.pt"));
        let blocks = out.path().join(name);
        let manifest = prepare(&model, &blocks, &options(&inputs), &mut |_| ())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let (count, why) = (manifest.blocks.len(), &manifest.rung_reason);
        assert!(count >= least_blocks, "{name}: {count} blocks; {why:?}");
        let json = serde_json::to_vec(&manifest).unwrap();
        fs::write(blocks.join("manifest.json"), json).unwrap();
    }
    for line in coverage("check", &[models.as_os_str(), out.path().as_os_str()]).lines() {
        let found: Value = serde_json::from_str(line).unwrap();
        assert_eq!(found["large_batch"], "exact", "{line}");
        assert!(found["telling"].as_f64() > Some(1e-3), "{line}");
    }
}

/// The folder with `NAME.pt` and `NAME.json`, its declared inputs, for each row; files are exported
/// again only if their export has changed.
fn exported() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("coverage-models");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    coverage("export", &[folder.as_os_str()]);
    folder
}

/// Output of the table's program for all rows.
fn coverage(command: &str, arguments: &[&OsStr]) -> String {
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let output = Command::new(python)
        .args(["-W", "ignore"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/coverage"))
        .arg(command)
        .args(arguments)
        .args(ROWS.map(|(name, _)| name))
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
