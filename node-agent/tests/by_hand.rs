//! The commands that need no cluster, as typed by a user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_model::{Digest, Manifest};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/by_hand.py");

/// The files of the script, and `blocks`, prepared from `served.pt`.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let mut command = Command::new(python);
    command.args(["-W", "ignore", SCRIPT]).arg(folder.path());
    let output = command.env("OMP_NUM_THREADS", "1").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let prepared = prepare(
        &folder.path().join("served.pt"),
        &folder.path().join("blocks"),
    );
    assert!(prepared.status.success(), "{}", said(&prepared));
    folder
});

fn file(name: &str) -> PathBuf {
    FOLDER.path().join(name)
}

fn agent() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lamina-node-agent"))
}

fn prepare(model: &Path, out: &Path) -> Output {
    let mut command = agent();
    command.arg("prepare").arg(model).arg("--out").arg(out);
    command.args(["--input", "x:FP32:-1x8"]).output().unwrap()
}

fn run_blocks(dir: &Path, arguments: &[&Path]) -> Output {
    let mut command = agent();
    command.arg("run-blocks").arg(dir);
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let texts = [&output.stdout, &output.stderr].map(|t| String::from_utf8_lossy(t));
    texts.concat()
}

/// A safetensors file with one FP32 tensor.
fn request(name: &str, rows: usize) -> Vec<u8> {
    let bytes = rows * 8 * 4;
    let header =
        format!(r#"{{"{name}":{{"dtype":"F32","shape":[{rows},8],"data_offsets":[0,{bytes}]}}}}"#);
    let values = (0..rows * 8).flat_map(|i| (i as f32 / 7.0).sin().to_le_bytes());
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(values);
    file
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_folder_says_what_is_in_it() {
    let text = fs::read(file("blocks/manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&text).unwrap();
    manifest.validate().unwrap();
    assert_eq!(
        manifest.source,
        Digest::of(&fs::read(file("served.pt")).unwrap())
    );
    assert!(manifest.blocks.len() > 1);
    // Blocks, the probe and the manifest, and no leftovers.
    let files = fs::read_dir(file("blocks")).unwrap().count();
    assert_eq!(files, manifest.blocks.len() + 2);
}

#[test]
fn blocks_are_run_and_compared_with_the_whole() {
    let dir = file("blocks");
    let probe = run_blocks(&dir, &[]);
    assert!(probe.status.success(), "{}", said(&probe));
    assert!(said(&probe).contains("give what the whole model gave when it was prepared"));

    let (input, whole) = (file("request.safetensors"), file("served.pt"));
    fs::write(&input, request("x", 3)).unwrap();
    let options: [&Path; 4] = ["--input".as_ref(), &input, "--whole".as_ref(), &whole];
    let right = run_blocks(&dir, &options);
    assert!(right.status.success(), "{}", said(&right));
    assert!(
        said(&right).contains("FP32 3x4: equal, bit for bit"),
        "{}",
        said(&right)
    );

    let other = file("other.pt");
    let wrong = run_blocks(&dir, &["--whole".as_ref(), &other]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(said(&wrong).contains("DIFFERS by "), "{}", said(&wrong));
    assert!(said(&wrong).contains("DO NOT give"), "{}", said(&wrong));

    let json = run_blocks(&dir, &["--input".as_ref(), &input, "--json".as_ref()]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ran"]["against"], "nothing");
    assert_eq!(
        json["ran"]["outputs"][0]["value"]["shape"],
        serde_json::json!([3, 4])
    );
}

#[test]
fn what_cannot_be_run_is_named() {
    let dir = file("blocks");
    let refused = |dir: &Path, arguments: &[&Path], about: &str| {
        let output = run_blocks(dir, arguments);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).starts_with("error: "), "{}", said(&output));
        assert!(said(&output).contains(about), "{about}: {}", said(&output));
    };
    let path = file("other-name.safetensors");
    fs::write(&path, request("y", 1)).unwrap();
    refused(&dir, &["--input".as_ref(), &path], "it has no tensor `x`");
    let path = file("no-request");
    fs::write(&path, b"PK").unwrap();
    refused(
        &dir,
        &["--input".as_ref(), &path],
        "safetensors.torch.save_file",
    );
    refused(&dir, &["--input".as_ref(), &file("none")], "none");
    let empty = file("empty");
    fs::create_dir(&empty).unwrap();
    refused(&empty, &[], "`lamina-node-agent prepare --out` writes it");

    let changed = file("changed");
    copy(&dir, &changed);
    let blocks = fs::read_dir(&changed).unwrap().map(|e| e.unwrap().path());
    for block in blocks.filter(|p| p.extension().is_some_and(|e| e == "pt")) {
        fs::copy(file("other.pt"), block).unwrap();
    }
    refused(&changed, &[], "is not what its name says");
}

#[test]
fn what_does_no_harm_is_taken() {
    for name in [
        "marked-traced.pt",
        "marked-scripted.pt",
        "v:2.pt",
        "extra.pt",
        "gpu.pt",
    ] {
        let out = file("taken").join(name);
        let output = prepare(&file(name), &out);
        assert!(output.status.success(), "{name}: {}", said(&output));
        let run = run_blocks(&out, &[]);
        assert!(run.status.success(), "{name}: {}", said(&run));
    }
}

#[test]
fn samples_take_the_place_of_what_no_range_describes() {
    let prepare = |out: &str, more: &[&str]| {
        let mut command = agent();
        command.arg("prepare").arg(file("vocabularies.pt"));
        command.arg("--out").arg(file(out));
        command.args(["--input", "ids:INT64:-1x2"]).args(more);
        command.output().unwrap()
    };
    let drawn = prepare("drawn", &[]);
    assert_eq!(drawn.status.code(), Some(1), "{}", said(&drawn));
    assert!(said(&drawn).contains("`range`"), "{}", said(&drawn));
    assert!(said(&drawn).contains("`samples`"), "{}", said(&drawn));

    let samples = file("samples.safetensors").display().to_string();
    let given = prepare("given", &["--samples", &samples]);
    assert!(given.status.success(), "{}", said(&given));
    let run = run_blocks(&file("given"), &[]);
    assert!(run.status.success(), "{}", said(&run));

    let nothing = prepare("nothing", &["--samples", "no-such-file"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(
        said(&nothing).contains("no-such-file"),
        "{}",
        said(&nothing)
    );
    let model = file("vocabularies.pt").display().to_string();
    let archive = prepare("archive", &["--samples", &model]);
    assert_eq!(archive.status.code(), Some(1));
    assert!(
        said(&archive).contains("lamina.samples"),
        "{}",
        said(&archive)
    );
}

#[test]
fn other_formats_get_a_sentence_that_says_what_to_do() {
    let out = file("out");
    for (name, about) in [
        (
            "program.pt2",
            "python -m lamina export FILE.pt2 -o MODEL.pt",
        ),
        ("package.pt", "load the module in Python with torch.package"),
        ("old.pt", "it was written by PyTorch 1.1 or older"),
        ("answering.pt", "has no `forward`: export the module whose"),
        ("weights.pth", "load it in Python and export the module"),
        ("model.onnx", "it is ONNX"),
        ("model.safetensors", "load them with load_state_dict"),
        ("model.h5", "it is HDF5"),
        ("model.tflite", "it is TensorFlow Lite"),
    ] {
        let output = prepare(&file(name), &out);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(said(&output).contains(about), "{name}: {}", said(&output));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{name} left files");
    }
}
