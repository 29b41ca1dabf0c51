//! Early exits over three hosts: every row leaves where PyTorch and the SDK's policy say, and a
//! device that lost its cloud keeps answering.

use anyhow::{Context, Result, ensure};
use lamina_e2e::metrics;
use lamina_e2e::netlab::Link;
use lamina_e2e::scene::{AGENT_PORT, FILE_PORT, Scene, Step, poll};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

const MODEL: &str = "exits";
/// The network of the SDK's example.
const DIGITS: &str = "digits";
/// Port of an agent's metrics.
const FIGURES: u16 = 9091;

/// The client's results.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    sent: u64,
    wrong: Vec<String>,
    cut_off: u64,
    by_exit: BTreeMap<String, u64>,
    by_node: BTreeMap<String, u64>,
}

/// Serves `model` with a block on each host, so that each exit is on another one.
async fn serve_on_three_hosts(scene: &Scene, model: &str) -> Result<()> {
    let address = scene.lab.address("cloud-1")?;
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {model}, namespace: default}}
spec:
  source: {{uri: http://{address}:{FILE_PORT}/{model}.pt}}
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
        .wait_ready(model, Duration::from_secs(120), &mut |_| ())
        .await?;
    Ok(())
}

pub(crate) async fn each_row_leaves_at_its_exit(scene: &Scene) -> Result<()> {
    serve_on_three_hosts(scene, MODEL).await?;
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
    // The path recovers by itself.
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

/// One threshold of the digits' run.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Setting {
    threshold: String,
    images: u64,
    right: u64,
    right_in_torch: u64,
    unclear: u64,
    mean_seconds: Option<f64>,
    by_exit: BTreeMap<String, u64>,
}

pub(crate) async fn digits_are_named_as_pytorch_names_them(scene: &Scene) -> Result<()> {
    serve_on_three_hosts(scene, DIGITS).await?;
    let url = format!("{}:{AGENT_PORT}", scene.lab.address("cam-1")?);
    let mut child = scene
        .script("cam-1", "digits_client.py")?
        .args(["accuracy", "--url", &url, "--file"])
        .arg(scene.models.join(format!("{DIGITS}.pt")))
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = child.stdout.take().context("no standard output")?;
    let mut lines = BufReader::new(output).lines();
    let mut carried = carried_from_entry(scene);
    let mut settings: Vec<(Setting, u64)> = Vec::new();
    while let Some(line) = lines.next_line().await? {
        let now = carried_from_entry(scene);
        if let Ok(setting) = serde_json::from_str::<Setting>(&line) {
            println!("  {line}");
            settings.push((setting, now - carried));
        }
        carried = now;
    }
    ensure!(child.wait().await?.success(), "see above: {settings:?}");
    ensure!(settings.len() == 6, "{settings:?}");
    for (setting, _) in &settings {
        ensure!(
            setting.right.abs_diff(setting.right_in_torch) <= setting.unclear,
            "another accuracy than PyTorch's: {setting:?}"
        );
    }
    let (early, whole) = (&settings[0], &settings[settings.len() - 1]);
    ensure!(early.0.threshold == "file" && whole.0.threshold == "none");
    ensure!(early.0.by_exit.len() == 3, "{early:?}");
    ensure!(early.1 < whole.1, "exits saved no bytes: {settings:?}");
    let mean = |one: &Setting| one.mean_seconds.unwrap_or(f64::INFINITY);
    println!(
        "  {} images, {} right with exits, {} without; mean latency {:.2} and bytes {:.2} of those without exits",
        early.0.images,
        early.0.right,
        whole.0.right,
        mean(&early.0) / mean(&whole.0),
        early.1 as f64 / whole.1 as f64,
    );
    scene.lab.kubectl(&["delete", "dnn", DIGITS]).await?;
    Ok(())
}

/// Strategies from the literature choose thresholds with the placement, and the entry applies them.
pub(crate) async fn strategies_choose_thresholds(scene: &Scene) -> Result<()> {
    for strategy in ["spinn", "ddnn", "edgent"] {
        let address = scene.lab.address("cloud-1")?;
        let manifest = format!(
            "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {DIGITS}, namespace: default}}
spec:
  source: {{uri: http://{address}:{FILE_PORT}/{DIGITS}.pt}}
  inputs: [{{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}}]
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
  strategy: {{name: {strategy}}}
  exits: {{minAccuracy: 0.9}}
  constraints: {{latencyLimitMs: 5000}}
"
        );
        scene.apply(&manifest).await?;
        let plan = poll(strategy, Duration::from_secs(120), async || {
            let placement = scene.placement(DIGITS).await?;
            let status = placement.and_then(|placement| placement.status);
            let active = status.and_then(|status| status.active);
            Ok(match active.filter(|plan| plan.strategy == strategy) {
                Some(plan) => Step::Done(plan),
                None => Step::NotYet("it does not serve".to_owned()),
            })
        })
        .await?;
        println!("  {strategy}: {:?}", plan.thresholds);
        ensure!(!plan.thresholds.is_empty(), "nothing was chosen: {plan:?}");
        let applied = format!(
            "jsonpath={{.spec.routes[*].revisions[?(@.revision=={})].exits.exits}}",
            plan.revision
        );
        let told = scene
            .lab
            .kubectl(&["get", "computenode", "cam-1", "-o", &applied])
            .await?;
        for (exit, threshold) in &plan.thresholds {
            let wanted = format!("\"name\":\"{exit}\"");
            ensure!(
                told.contains(&wanted) && told.contains(&format!("\"threshold\":{threshold}")),
                "{exit} at {threshold} is not applied: {told}"
            );
        }
    }
    scene.lab.kubectl(&["delete", "dnn", DIGITS]).await?;
    Ok(())
}

/// Bytes carried by the router from the entry to the hosts behind it.
fn carried_from_entry(scene: &Scene) -> u64 {
    let counters = scene.lab.counters();
    let of_entry = counters
        .iter()
        .filter(|((from, to), _)| from == "cam-1" && to.starts_with("edge"));
    of_entry.map(|(_, counted)| counted.bytes).sum()
}
