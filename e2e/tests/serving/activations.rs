//! Encoded activations over a slow link: answers are within the reported error, and faster.

use anyhow::{Context, Result, ensure};
use lamina_crds::WireType;
use lamina_crds::placement::Crossing;
use lamina_e2e::metrics;
use lamina_e2e::netlab::Link;
use lamina_e2e::scene::{AGENT_PORT, Scene, Step, poll};
use std::net::SocketAddr;
use std::time::Duration;

const MODEL: &str = "activations";
const FILE: &str = "mobilenet-v2";
/// Port of an agent's metrics.
const FIGURES: u16 = 9091;
const SLOW_BITS_PER_SECOND: u64 = 5_000_000;
/// The reported error is that of drawn inputs; photographs differ, and int8 reaches almost three
/// times of it on them.
const MARGIN: f64 = 5.0;
/// Rounding error of optimized graphs, as a share of an answer.
const ROUNDING: f64 = 1e-3;

/// The client's results.
#[derive(Debug, serde::Deserialize)]
struct Seen {
    sent: u64,
    largest: f64,
    moved: u64,
    seconds: f64,
}

/// Results of one type.
#[derive(Debug)]
struct Measured {
    crossing: Option<Crossing>,
    seen: Seen,
    bytes_each: f64,
}

pub(crate) async fn fewer_bytes_cross_a_slow_link(scene: &Scene) -> Result<()> {
    let slow = |rate: u64| {
        let links = move |link: &mut Link| link.rate_bits_per_s = rate;
        scene.lab.set_links_between("cam-1", "edge-1", links)
    };
    let before = scene.lab.network().link("cam-1", "edge-1")?.rate_bits_per_s;
    slow(SLOW_BITS_PER_SECOND)?;
    let outcome = compared(scene).await;
    slow(before)?;
    outcome?;
    scene.lab.kubectl(&["delete", "dnn", MODEL]).await?;
    Ok(())
}

async fn compared(scene: &Scene) -> Result<()> {
    let raw = measured(scene, "fp32", None).await?;
    ensure!(raw.crossing.is_none(), "{raw:?}");
    ensure!(
        raw.seen.largest <= ROUNDING && raw.seen.moved == 0,
        "{raw:?}"
    );
    for (dtype, wire, share) in [
        ("fp16", WireType::Fp16, 0.55),
        ("int8", WireType::Int8, 0.3),
    ] {
        let small = measured(scene, dtype, Some(wire)).await?;
        let crossing = small.crossing.as_ref().context("no crossing")?;
        let told = crossing.error.context("no error is told")?;
        ensure!(
            small.seen.largest <= told * MARGIN + ROUNDING,
            "{dtype}: {small:?}"
        );
        ensure!(
            small.bytes_each <= share * raw.bytes_each,
            "{dtype}: {} of {} bytes",
            small.bytes_each,
            raw.bytes_each
        );
        ensure!(
            (small.bytes_each - crossing.bytes as f64).abs() <= 0.1 * small.bytes_each,
            "{dtype}: {small:?}"
        );
        ensure!(
            small.seen.seconds < raw.seen.seconds,
            "{dtype} was not sooner: {small:?}, {raw:?}"
        );
        println!(
            "  {dtype}: {:.0} % of the bytes, {:.0} % of the time, answers off by {:.2} % (told {:.2} %), {} of {} labels others",
            100.0 * small.bytes_each / raw.bytes_each,
            100.0 * small.seen.seconds / raw.seen.seconds,
            100.0 * small.seen.largest,
            100.0 * told,
            small.seen.moved,
            small.seen.sent
        );
    }
    Ok(())
}

async fn measured(scene: &Scene, dtype: &str, wire: Option<WireType>) -> Result<Measured> {
    let uri = scene.example_uri(FILE)?;
    // An early cut with large activations.
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {MODEL}, namespace: default}}
spec:
  source: {{uri: {uri}}}
  inputs: [{{name: image, datatype: FP32, shape: [-1, 3, 224, 224], range: {{min: -2.2, max: 2.7}}}}]
  entry: {{nodeSelector: {{kubernetes.io/hostname: cam-1}}}}
  activations: {{dtype: {dtype}}}
  constraints:
    pins:
      - {{first: 0, last: 8, node: cam-1}}
      - {{first: 9, last: 32, node: edge-1}}
"
    );
    scene.apply(&manifest).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(180), &mut |_| ())
        .await?;
    let crossing = poll("the encoding serves", Duration::from_secs(60), async || {
        let placement = scene.placement(MODEL).await?;
        let active = placement.and_then(|p| p.status?.active);
        let crossing = active.as_ref().and_then(|p| p.crossings.first().cloned());
        let serves = crossing.as_ref().and_then(|c| c.encoding.as_ref());
        Ok(match active {
            Some(_) if serves.map(|e| e.dtype) == wire => Step::Done(crossing),
            _ => Step::NotYet(format!("{crossing:?}")),
        })
    })
    .await?;
    let before = bytes_to_edge(scene).await?;
    let seen = client(scene).await?;
    let bytes = bytes_to_edge(scene).await? - before;
    Ok(Measured {
        crossing,
        bytes_each: bytes / seen.sent as f64,
        seen,
    })
}

/// Bytes of tensors sent from the camera to the edge so far.
pub(crate) async fn bytes_to_edge(scene: &Scene) -> Result<f64> {
    let address = SocketAddr::new(scene.lab.address("cam-1")?.into(), FIGURES);
    let figures = metrics::fetch(address, "/metrics", Duration::from_secs(10)).await?;
    let ours = |line: &&str| {
        line.starts_with("lamina_hop_bytes_total")
            && line.contains("peer=\"edge-1\"")
            && line.contains("direction=\"out\"")
    };
    let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    Ok(figures.lines().filter(ours).filter_map(value).sum())
}

async fn client(scene: &Scene) -> Result<Seen> {
    let url = format!("{}:{AGENT_PORT}", scene.lab.address("cam-1")?);
    let output = scene
        .script("cam-1", "activations.py")?
        .args(["--url", &url, "--model", MODEL, "--file"])
        .arg(scene.models.join(format!("{FILE}.pt")))
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let seen: Seen = serde_json::from_str(said.lines().last().unwrap_or_default())
        .with_context(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(seen.sent > 0 && output.status.success(), "{seen:?}");
    Ok(seen)
}
