//! Early exits over three hosts: every row leaves where PyTorch and the SDK's policy say,
//! and a device that lost its cloud goes on answering.

use anyhow::{Context, Result, ensure};
use lamina_e2e::metrics;
use lamina_e2e::netlab::Link;
use lamina_e2e::scene::{AGENT_PORT, FILE_PORT, Scene, Step, poll};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

const MODEL: &str = "exits";
/// Port of an agent's metrics.
const FIGURES: u16 = 9091;

/// What the client saw.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    sent: u64,
    wrong: Vec<String>,
    cut_off: u64,
    by_exit: BTreeMap<String, u64>,
    by_node: BTreeMap<String, u64>,
}

pub(crate) async fn each_row_leaves_at_its_exit(scene: &Scene) -> Result<()> {
    let address = scene.lab.address("cloud-1")?;
    // A block on each host, so that each exit lies on another one.
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {MODEL}, namespace: default}}
spec:
  source: {{uri: http://{address}:{FILE_PORT}/{MODEL}.pt}}
  inputs: [{{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}}]
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
  exits: {{whenCutOff: Answer}}
  constraints:
    pins:
      - {{first: 0, last: 0, node: cam-1}}
      - {{first: 1, last: 1, node: edge-1}}
      - {{first: 2, last: 2, node: edge-2}}
"
    );
    scene.apply(&manifest).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(120), &mut |_| ())
        .await?;
    let seen = client(scene, &[]).await?;
    for place in ["early on cam-1", "middle on edge-1", "final on edge-2"] {
        ensure!(
            seen.by_node.contains_key(place),
            "nobody left {place}: {seen:?}"
        );
    }
    ensure!(seen.by_node.len() == 3 && seen.cut_off == 0, "{seen:?}");
    rates_are_known(scene, &seen).await?;
    let cut = |up: bool| {
        let links = |link: &mut Link| link.up = up;
        scene.lab.set_links_between("cam-1", "edge-1", links)
    };
    cut(false)?;
    let alone = client(scene, &["--cut-off"]).await;
    cut(true)?;
    let alone = alone?;
    ensure!(alone.cut_off > 0, "{alone:?}");
    // The path comes back by itself.
    poll("all exits again", Duration::from_secs(60), async || {
        Ok(match client(scene, &["--images", "16"]).await {
            Ok(seen) if seen.cut_off == 0 => Step::Done(()),
            Ok(seen) => Step::NotYet(format!("{seen:?}")),
            Err(error) => Step::NotYet(error.to_string()),
        })
    })
    .await?;
    scene.lab.kubectl(&["delete", "dnn", MODEL]).await?;
    Ok(())
}

/// The entry's agent counts the rows at each exit.
async fn rates_are_known(scene: &Scene, seen: &Seen) -> Result<()> {
    let address = SocketAddr::new(scene.lab.address("cam-1")?.into(), FIGURES);
    let figures = metrics::fetch(address, "/metrics", Duration::from_secs(10)).await?;
    let counted: f64 = figures
        .lines()
        .filter(|line| line.starts_with("lamina_exit_rows_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    let rows: u64 = seen.by_exit.values().sum();
    ensure!(counted >= rows as f64, "{counted} of {rows} rows counted");
    Ok(())
}

async fn client(scene: &Scene, more: &[&str]) -> Result<Seen> {
    let url = format!("{}:{AGENT_PORT}", scene.lab.address("cam-1")?);
    let output = scene
        .script("cam-1", "exits.py")?
        .args(["--url", &url, "--model", MODEL, "--file"])
        .arg(scene.models.join(format!("{MODEL}.pt")))
        .args(more)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let seen: Seen = serde_json::from_str(said.lines().last().unwrap_or_default())
        .with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(seen.wrong.is_empty() && output.status.success(), "{seen:?}");
    ensure!(seen.sent > 0, "nothing was sent");
    Ok(seen)
}
