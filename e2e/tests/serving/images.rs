//! Image files as requests arise: clients send JPEGs and PNGs, a host of the path decodes them,
//! and the answers are PyTorch's.

use crate::activations::bytes_to_edge;
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{AGENT_PORT, REST_PORT, Scene};
use std::collections::BTreeMap;
use std::time::Duration;

const MODEL: &str = "images";
const FILE: &str = "mobilenet-v2";
/// Decoders of JPEG differ by a few levels of 255, which a network answers with as much.
const LARGEST: f64 = 0.05;

/// What the client saw.
#[derive(Debug, serde::Deserialize)]
struct Seen {
    sent: u64,
    largest: f64,
    moved: u64,
    bytes: f64,
    refused: BTreeMap<String, String>,
}

/// The camera runs nothing: what crosses its link are files, which the edge decodes.
pub(crate) async fn files_cross_the_first_link_and_are_decoded_behind_it(
    scene: &Scene,
) -> Result<()> {
    apply(scene, &[(0, 14, "edge-1"), (15, 33, "cloud-1")]).await?;
    let before = bytes_to_edge(scene).await?;
    let seen = client(scene).await?;
    check(&seen)?;
    let crossed = bytes_to_edge(scene).await? - before;
    // Each file went alone and in a batch, over both protocols; the refused ones are small.
    let rows = 4.0 * seen.bytes + 9.0 * 480.0 * 480.0 * 3.0;
    ensure!(crossed > 0.0 && crossed < rows, "{crossed} bytes of {rows}");
    Ok(())
}

/// The camera decodes; what crosses are values of the network.
pub(crate) async fn a_camera_decodes_where_it_is_told_to(scene: &Scene) -> Result<()> {
    apply(scene, &[(0, 9, "cam-1"), (10, 33, "edge-1")]).await?;
    let seen = client(scene).await?;
    check(&seen)?;
    scene.lab.kubectl(&["delete", "dnn", MODEL]).await?;
    Ok(())
}

fn check(seen: &Seen) -> Result<()> {
    ensure!(seen.sent == 9 && seen.moved == 0, "{seen:?}");
    ensure!(seen.largest <= LARGEST, "{seen:?}");
    ensure!(seen.refused.len() == 8, "{seen:?}");
    for (what, said) in &seen.refused {
        let about = match what.split(' ').next().unwrap_or_default() {
            "cut" => "image 0: ",
            "bomb" => "16384 by 16384 pixels",
            "text" => "neither a JPEG nor a PNG",
            _ => "CMYK",
        };
        ensure!(said.contains(about), "{what}: {said}");
        let is_the_clients = said.contains("INVALID_ARGUMENT") || said.starts_with("400");
        ensure!(is_the_clients, "{what}: {said}");
    }
    Ok(())
}

async fn apply(scene: &Scene, pins: &[(u32, u32, &str)]) -> Result<()> {
    let uri = scene.example_uri(FILE)?;
    let pins = pins.iter().map(|(first, last, node)| {
        format!("      - {{first: {first}, last: {last}, node: {node}}}\n")
    });
    let pins: String = pins.collect();
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {MODEL}, namespace: default}}
spec:
  source: {{uri: {uri}}}
  inputs:
    - name: image
      datatype: BYTES
      shape: [-1]
      image:
        resize: {{shorterSide: 224}}
        crop: {{width: 224, height: 224}}
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
        typical: {{width: 480, height: 320, bytes: 40000}}
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
  constraints:
    pins:
{pins}"
    );
    scene.apply(&manifest).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(180), &mut |_| ())
        .await?;
    Ok(())
}

async fn client(scene: &Scene) -> Result<Seen> {
    let host = scene.lab.address("cam-1")?;
    let (url, rest) = (
        format!("{host}:{AGENT_PORT}"),
        format!("{host}:{REST_PORT}"),
    );
    let output = scene
        .script("cam-1", "image_client.py")?
        .args(["--url", &url, "--rest", &rest, "--model", MODEL, "--file"])
        .arg(scene.models.join(format!("{FILE}.pt")))
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let seen: Seen = serde_json::from_str(said.lines().last().unwrap_or_default())
        .with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(output.status.success(), "{seen:?}");
    Ok(seen)
}
