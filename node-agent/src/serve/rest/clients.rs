//! Third-party clients, against both ports.

use crate::serve::data_plane::testing::{Folder, Host, listed, part, route_to};
use crate::testing::image;
use lamina_crds::TensorSpec;
use lamina_crds::compute_node::Slice;
use lamina_model::DataType;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output};

const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/python/conformance");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PAGE: &str = include_str!("../../../../docs/clients.md");

/// Python with the clients.
fn python() -> OsString {
    let python = std::env::var_os("LAMINA_CLIENTS");
    python.expect("LAMINA_CLIENTS names no Python with clients: run `cargo xtask test`")
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A model on two hosts that returns one output per input, multiplied by `times`.
async fn serve(
    name: &str,
    times: f32,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
) -> [Host; 2] {
    let folder = Folder::new();
    let (mut cam, mut edge) = (
        Host::start("cam-1", &folder),
        Host::start("edge-1", &folder),
    );
    let between: Vec<TensorSpec> = inputs
        .iter()
        .map(|spec| TensorSpec {
            name: format!("between {}", spec.name),
            ..spec.clone()
        })
        .collect();
    let first = Slice {
        inputs: inputs.clone(),
        outputs: between.clone(),
        ..part(&folder, 1, 0, (times, 0.0), Some(&edge))
    };
    let last = Slice {
        inputs: between,
        outputs: outputs.clone(),
        ..part(&folder, 1, 1, (1.0, 0.0), None)
    };
    cam.hold(first).await;
    edge.hold(last).await;
    let mut route = route_to(1, &[(1, &cam)]);
    name.clone_into(&mut route.name);
    for revision in &mut route.revisions {
        revision.inputs.clone_from(&inputs);
        revision.outputs.clone_from(&outputs);
    }
    cam.routes.apply(&[route]).unwrap();
    let mut line = listed(&[(&cam, true)]);
    name.clone_into(&mut line.name);
    cam.hear(&[line.clone()]);
    edge.hear(&[line]);
    [cam, edge]
}

/// Runs `what` of the suite against `model` via `host`.
fn conforms(host: &Host, model: &str, what: &str) {
    let output = Command::new(python())
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", what])
        .args(["--grpc", &host.hop.address, "--rest", &host.http_address])
        .args(["--model", model])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let node = &host.hop.node;
    assert!(output.status.success(), "{node}:\n{}", said(&output));
    println!("{node}: {}", said(&output));
}

#[tokio::test]
async fn every_client_of_the_protocol_is_answered() {
    let images = |names: [&str; 2]| names.map(image).to_vec();
    let model = serve(
        "m",
        2.0,
        images(["left", "right"]),
        images(["sum", "difference"]),
    );
    let [cam, edge] = model.await;
    // The entry, and a forwarding agent.
    for host in [&cam, &edge] {
        conforms(host, "m", SUITE);
    }
}

#[tokio::test]
async fn every_datatype_travels_in_every_form_that_it_has() {
    let halves = [DataType::Fp16, DataType::Bf16];
    let whole = DataType::ALL.into_iter().filter(|d| !halves.contains(d));
    for datatypes in [whole.collect(), DataType::ALL.to_vec()] {
        let tensors = |end: &str| {
            let one = |datatype: &DataType| TensorSpec {
                datatype: datatype.to_string(),
                ..image(&format!("{datatype} {end}"))
            };
            datatypes.iter().map(one).collect::<Vec<_>>()
        };
        let model = serve("echo", 1.0, tensors("in"), tensors("out"));
        let [cam, edge] = model.await;
        for host in [&cam, &edge] {
            conforms(host, "echo", &format!("{SUITE}/test_datatypes.py"));
        }
    }
}

/// The language and text of each executable block of the page.
fn examples() -> Vec<(&'static str, String)> {
    let mut blocks = Vec::new();
    let mut rest = PAGE;
    while let Some((_, block)) = rest.split_once("```") {
        let (language, block) = block.split_once('\n').unwrap();
        let (text, after) = block.split_once("```").unwrap();
        blocks.push((language, text.to_owned()));
        rest = after;
    }
    blocks.retain(|(language, _)| ["sh", "python"].contains(language));
    blocks
}

/// The folders with programs: those that `cargo xtask test` builds come first.
fn path() -> OsString {
    let built = std::env::var_os("LAMINA_SERVERS");
    let built = built.expect("LAMINA_SERVERS is not set: run `cargo xtask setup`");
    let own = std::env::var_os("PATH").unwrap_or_default();
    let all = [PathBuf::from(built)].into_iter();
    std::env::join_paths(all.chain(std::env::split_paths(&own))).unwrap()
}

#[tokio::test]
async fn every_example_of_the_documentation_works() {
    let photograph = |name: &str| TensorSpec {
        shape: vec![-1, 3, 224, 224],
        ..image(name)
    };
    let model = serve(
        "mobilenet-v2",
        2.0,
        vec![photograph("image")],
        vec![photograph("logits")],
    );
    let [cam, _edge] = model.await;
    let folder = tempfile::tempdir().unwrap();
    let examples = examples();
    assert!(examples.len() >= 6, "the page has lost its examples");
    for (language, text) in examples {
        let answer = folder.path().join("answer.bin");
        let text = text
            .replace("localhost:8000", &cam.http_address)
            .replace("localhost:8001", &cam.hop.address)
            .replace("answer.bin", &answer.display().to_string());
        let mut command = if language == "python" {
            let mut command = Command::new(python());
            command.args(["-c", &text]);
            command
        } else {
            let mut command = Command::new("bash");
            command.args(["-euo", "pipefail", "-c", &text]);
            command
        };
        let output = command.env("PATH", path()).current_dir(ROOT).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{text}\n{}", said(&output));
    }
}
