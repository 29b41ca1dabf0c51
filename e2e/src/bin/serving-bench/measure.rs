//! Runs of the client, and their results.

use anyhow::{Context as _, Result, ensure};
use lamina_e2e::scene::{AGENT_PORT, Scene};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// Medians of one host of the path.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Hop {
    pub(crate) compute_us: f64,
    pub(crate) bytes_out: f64,
}

/// Requests in a closed loop.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Closed {
    /// Number of answers.
    #[serde(alias = "requests")]
    pub(crate) answered: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Seconds.
    pub(crate) p50: f64,
    /// Seconds.
    pub(crate) p99: f64,
    /// In the order of the path.
    pub(crate) hops: Vec<Hop>,
}

/// Many requests at once.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Burst {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    /// Seconds until the last answer.
    pub(crate) seconds: f64,
    /// Seconds until an answer.
    pub(crate) p50: f64,
    pub(crate) refused: u64,
    /// Errors by code.
    pub(crate) codes: BTreeMap<String, u64>,
    /// Median seconds until a refusal.
    pub(crate) refused_p50: Option<f64>,
    pub(crate) refused_p99: Option<f64>,
}

/// Megabytes by program.
pub(crate) type Memory = BTreeMap<String, f64>;

/// Idle connections.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Idle {
    pub(crate) opened: u64,
    pub(crate) before: Memory,
    pub(crate) during: Memory,
    /// Seconds of one request beside them; none if it was not answered.
    pub(crate) seconds: Option<f64>,
}

/// One threshold of the network of digits.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Threshold {
    pub(crate) threshold: String,
    pub(crate) images: u64,
    pub(crate) right: u64,
    pub(crate) mean_seconds: f64,
    pub(crate) by_exit: BTreeMap<String, u64>,
}

/// Keeps `in_flight` requests to `host` open.
pub(crate) async fn closed(
    scene: &Scene,
    (host, model): (&str, &str),
    in_flight: u32,
    time: Duration,
) -> Result<Closed> {
    let mut client = load(scene, host, model)?;
    client
        .arg("closed")
        .arg(format!("--in-flight={in_flight}"))
        .arg(format!("--seconds={}", time.as_secs()));
    said(client).await
}

/// Like [`closed`], with a third-party client in Python.
pub(crate) async fn closed_in_python(
    scene: &Scene,
    (host, model): (&str, &str),
    in_flight: u32,
    time: Duration,
) -> Result<Closed> {
    let mut client = client(scene, host, model, "closed")?;
    client
        .arg(format!("--in-flight={in_flight}"))
        .arg(format!("--seconds={}", time.as_secs()));
    said(client).await
}

/// libtorch in a loop, under the limits of `host`.
pub(crate) async fn plain_loop(
    scene: &Scene,
    host: &str,
    model: &str,
    time: Duration,
) -> Result<Closed> {
    let mut client = scene.limited_script(host, "bench_client.py")?;
    client
        .arg("loop")
        .arg("--file")
        .arg(scene.models.join(format!("{model}.pt")))
        .arg(format!("--seconds={}", time.as_secs()));
    said(client).await
}

/// `count` requests at once, over `connections` connections.
pub(crate) async fn burst(
    scene: &Scene,
    (host, model): (&str, &str),
    count: u32,
    connections: u32,
) -> Result<Burst> {
    let mut client = load(scene, host, model)?;
    client
        .arg(format!("--connections={connections}"))
        .arg("burst")
        .arg(format!("--count={count}"));
    said(client).await
}

/// Opens `count` idle connections.
pub(crate) async fn idle(scene: &Scene, host: &str, model: &str, count: u32) -> Result<Idle> {
    let mut client = client(scene, host, model, "idle")?;
    client
        .arg(format!("--count={count}"))
        .args(["--node", host]);
    said(client).await
}

/// Memory of the agent of `host` and its workers.
pub(crate) async fn memory(scene: &Scene, host: &str) -> Result<Memory> {
    let mut client = scene.script(host, "bench_client.py")?;
    client.args(["memory", "--node", host]);
    said(client).await
}

/// Processor seconds used by the agent of `host` and its workers.
pub(crate) async fn cpu(scene: &Scene, host: &str) -> Result<BTreeMap<String, f64>> {
    let mut client = scene.script(host, "bench_client.py")?;
    client.args(["cpu", "--node", host]);
    said(client).await
}

/// Runs the test images of digits under each threshold: the model's own first, none last.
pub(crate) async fn digits(scene: &Scene, host: &str, model: &str) -> Result<Vec<Threshold>> {
    let mut client = scene.script(host, "digits_client.py")?;
    client
        .args(["accuracy", "--url", &url(scene, host)?, "--file"])
        .arg(scene.models.join(format!("{model}.pt")));
    let text = output(client).await?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn url(scene: &Scene, host: &str) -> Result<String> {
    Ok(format!("{}:{AGENT_PORT}", scene.lab.address(host)?))
}

/// This program's own client, outside the limits of `host`.
fn load(scene: &Scene, host: &str, model: &str) -> Result<Command> {
    let program = std::env::current_exe()?;
    let mut client = scene.lab.command_without_limits(host, &program)?;
    client
        .args(["load", "--url", &url(scene, host)?, "--model", model])
        .stdin(std::process::Stdio::null());
    Ok(client)
}

fn client(scene: &Scene, host: &str, model: &str, what: &str) -> Result<Command> {
    let mut client = scene.script(host, "bench_client.py")?;
    client.args([what, "--url", &url(scene, host)?, "--model", model]);
    Ok(client)
}

async fn said<T: DeserializeOwned>(client: Command) -> Result<T> {
    let text = output(client).await?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| text.clone())
}

async fn output(mut client: Command) -> Result<String> {
    let program = Path::new(client.as_std().get_program()).to_owned();
    let output = client.kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "the client: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}
