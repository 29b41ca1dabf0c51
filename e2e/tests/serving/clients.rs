//! Third-party clients against a split model: all get the same numbers, and the error for each
//! mistake.

use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{AGENT_PORT, FILE_PORT, REST_PORT, Scene};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

const SUITE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/conformance");
/// With two inputs and two outputs, so that their order and types can be mixed.
const MODEL: &str = "clients";
const FILE: &str = "two-images.pt";
/// Fewer would mean that the suite was not found, or most of it skipped.
const FEWEST: u32 = 120;

pub(crate) async fn every_client_of_the_protocol_is_answered(scene: &Scene) -> Result<()> {
    let address = scene.lab.address("cloud-1")?;
    // On two hosts, so that no answer comes before the shortest deadline.
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {MODEL}, namespace: default}}
spec:
  source: {{uri: http://{address}:{FILE_PORT}/{FILE}}}
  inputs:
    - {{name: left, datatype: FP32, shape: [-1, 3, 64, 64], range: {{min: -3, max: 3}}}}
    - {{name: right, datatype: FP32, shape: [-1, 3, 64, 64], range: {{min: -3, max: 3}}}}
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
  constraints: {{pins: [{{first: 8, last: 8, node: edge-1}}]}}
"
    );
    scene.apply(&manifest).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(120), &mut |_| ())
        .await?;
    let passed = suite(scene, "cam-1", &[]).await?;
    ensure!(passed >= FEWEST, "only {passed} checks passed");
    // A relaying agent is a server like any other.
    suite(scene, "edge-2", &["-k", "triton"]).await?;
    scene.lab.kubectl(&["delete", "dnn", MODEL]).await?;
    Ok(())
}

/// Output of `script`, a client's program on `host` that gets its agent's gRPC and HTTP addresses
/// and `more`: a line for each of the two.
pub(crate) async fn both_ways(
    scene: &Scene,
    host: &str,
    script: &str,
    more: &[&OsStr],
) -> Result<Vec<String>> {
    let address = scene.lab.address(host)?;
    let output = scene
        .lab
        .command_without_limits(host, python()?)?
        .args(["-W", "ignore", "-c", script])
        .arg(format!("{address}:{AGENT_PORT}"))
        .arg(format!("{address}:{REST_PORT}"))
        .args(more)
        .output()
        .await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{errors}");
    let said = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 2, "{said}");
    Ok(lines)
}

/// Python with the clients.
fn python() -> Result<PathBuf> {
    let python = std::env::var_os("LAMINA_CLIENTS");
    let python = python.context("LAMINA_CLIENTS is not set: run `cargo xtask test`")?;
    Ok(python.into())
}

/// Runs the suite on `host` against its agent, and counts passed tests.
async fn suite(scene: &Scene, host: &str, more: &[&str]) -> Result<u32> {
    let address = scene.lab.address(host)?;
    let output = scene
        .lab
        .command_without_limits(host, python()?)?
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", SUITE])
        .args(["--grpc", &format!("{address}:{AGENT_PORT}")])
        .args(["--rest", &format!("{address}:{REST_PORT}")])
        .args(["--model", MODEL])
        .args(more)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "on {host}:\n{said}");
    let count = said.lines().rev().find_map(|line| {
        line.split_once(" passed")?
            .0
            .rsplit(' ')
            .next()?
            .parse()
            .ok()
    });
    count.with_context(|| format!("nothing passed on {host}:\n{said}"))
}
