//! Equal blocks have equal digests, wherever and from whatever they were cut.

use crate::common::*;
use lamina_model::{DataType, Digest, InputSpec, Manifest};
use lamina_torchscript::{prepare, set_threads};
use std::path::PathBuf;
use std::process::Command;

/// Where the child process writes; the model's name is appended.
const OUT: &str = "LAMINA_TEST_PREPARE_OUT";
const NAME: &str = "LAMINA_TEST_PREPARE_NAME";

fn inputs_of(name: &str) -> Vec<InputSpec> {
    match name {
        "tied" => vec![ranged(
            input("tokens", DataType::Int64, &[-1, 5]),
            0.0,
            49.0,
        )],
        "shape_numbers" => row(),
        _ => vec![input("x", DataType::Fp32, &[-1, 3, 12, 12])],
    }
}

fn digests(manifest: &Manifest) -> Vec<Digest> {
    manifest.blocks.iter().map(|b| b.digest.clone()).collect()
}

#[test]
#[ignore = "only as a child process"]
fn in_a_process_of_its_own() {
    let (Some(out), Ok(name)) = (std::env::var_os(OUT), std::env::var(NAME)) else {
        return;
    };
    set_threads(1);
    let options = options(&inputs_of(&name));
    prepare(&model(&name), &PathBuf::from(out), &options, &mut |_| ()).unwrap();
}

#[test]
fn another_process_writes_the_same_files() {
    // Cut directly and after retracing.
    for name in ["version_one", "shape_numbers"] {
        let here = prepared(name, &inputs_of(name));
        let there = tempfile::tempdir().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stable_blocks::in_a_process_of_its_own"])
            .args(["--ignored", "--nocapture"])
            .env(OUT, there.path())
            .env(NAME, name)
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let files = |dir: &std::path::Path| {
            let entries = std::fs::read_dir(dir).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(files(there.path()), files(here.dir.path()), "{name}");
        assert_eq!(files(there.path()).len(), here.manifest.blocks.len() + 1);
    }
}

#[test]
fn a_version_with_another_last_layer_shares_all_other_blocks() {
    let one = prepared("version_one", &inputs_of("version_one")).manifest;
    let two = prepared("version_two", &inputs_of("version_two")).manifest;
    assert_ne!(one.source, two.source);
    let (one, two) = (digests(&one), digests(&two));
    assert_eq!(one.len(), 3);
    assert_eq!(one[..2], two[..2]);
    assert_ne!(one[2], two[2]);
}

#[test]
fn a_layer_used_twice_is_one_block_and_tied_weights_run_in_both_places() {
    let p = prepared("tied", &inputs_of("tied"));
    let digests = digests(&p.manifest);
    assert_eq!(digests.len(), 4, "{:?}", p.manifest.rung_reason);
    assert_eq!(digests[1], digests[2]);
    // Embedding, the layer once, the end and the probe.
    assert_eq!(std::fs::read_dir(p.dir.path()).unwrap().count(), 4);
    let weights: Vec<u64> = p.manifest.blocks.iter().map(|b| b.weight_bytes).collect();
    assert_eq!(weights, [3200, 1088, 1088, 3200]);
    let probe = p.probe();
    assert_eq!(p.chain(&[1, 2, 3], false, &probe.inputs), probe.outputs);
    assert!(difference(&p.chain(&[2], true, &probe.inputs), &probe.outputs) < 1e-5);
}
