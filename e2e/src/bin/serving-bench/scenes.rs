//! The measurements, one after the other, so that nothing runs beside them.

use crate::measure::{self, Closed, Memory};
use crate::page::{Page, millis, times};
use anyhow::{Context as _, Result};
use lamina_e2e::scene::{DEVICE_LINK, FILE_PORT, SLOW_DEVICE_LINK, Scene};
use std::time::Duration;

/// The model of most scenes.
pub(crate) const MODEL: &str = "mobilenet-v2";
/// A model with early exits.
pub(crate) const DIGITS: &str = "digits";
const CAMERA: &str = "cam-1";
const EDGE: &str = "edge-1";
/// A cut in the middle of MobileNetV2: the last block on the camera.
const CUT: u32 = 14;
/// Its last block.
const LAST: u32 = 32;
/// Rows per batch.
const ROWS: u32 = 8;
/// Time for a change of the spec that moves nothing to reach the hosts.
const SETTLING: Duration = Duration::from_secs(5);
/// More than an agent holds at once.
const BURST: u32 = 2000;
/// Idle connections.
const CONNECTIONS: u32 = 10_000;
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the scenes whose names contain `only`, in the page's order.
pub(crate) async fn all(scene: &Scene, time: Duration, only: &str, page: &mut Page) -> Result<()> {
    let nothing = measure::memory(scene, EDGE).await?;
    if "one-host".contains(only) || "overload".contains(only) {
        let capacity = one_host(scene, time, only, page).await?;
        let one = measure::memory(scene, EDGE).await?;
        if "overload".contains(only) {
            overload(scene, capacity, page).await?;
        }
        remove(scene, MODEL).await?;
        page.section("Memory of an agent on the edge host, with its workers");
        page.row("nothing loaded", "", held(&nothing));
        page.row("MobileNetV2", "", held(&one));
    }
    if "two-hosts".contains(only) {
        split(scene, time, page).await?;
    }
    if "exits".contains(only) {
        exits(scene, page).await?;
    }
    Ok(())
}

async fn one_host(scene: &Scene, time: Duration, only: &str, page: &mut Page) -> Result<Closed> {
    serve(scene, MODEL, EDGE, &[(0, LAST, EDGE)], "").await?;
    page.section("One host, the whole model");
    let alone = measure::closed(scene, (EDGE, MODEL), 1, time).await?;
    page.row("one at a time", "", times(alone.p50, alone.p99));
    let python = measure::closed_in_python(scene, (EDGE, MODEL), 1, time).await?;
    page.row(
        "the same by tritonclient",
        "",
        times(python.p50, python.p99),
    );
    let eight = measure::closed(scene, (EDGE, MODEL), 8, time).await?;
    if !"one-host".contains(only) {
        return Ok(eight);
    }
    // The agent is idle meanwhile.
    let plain = measure::plain_loop(scene, EDGE, MODEL, time).await?;
    page.row(
        "throughput over that of libtorch in a plain loop with one thread under the same limits",
        "≥ 0.97",
        format!(
            "{:.2} ({:.1}/s over {:.1}/s)",
            eight.rate / plain.rate,
            eight.rate,
            plain.rate
        ),
    );
    let batching = format!("  batching: {{maxRows: {ROWS}}}\n");
    serve(scene, MODEL, EDGE, &[(0, LAST, EDGE)], &batching).await?;
    tokio::time::sleep(SETTLING).await;
    let together = measure::closed(scene, (EDGE, MODEL), ROWS, time).await?;
    page.row(
        format!(
            "{ROWS} in flight, up to {ROWS} rows computed together: throughput over that without"
        ),
        "",
        format!("{:.2} ({:.1}/s)", together.rate / eight.rate, together.rate),
    );
    serve(scene, MODEL, EDGE, &[(0, LAST, EDGE)], "").await?;
    tokio::time::sleep(SETTLING).await;
    Ok(eight)
}

async fn overload(scene: &Scene, capacity: Closed, page: &mut Page) -> Result<()> {
    page.section("More than it can take");
    for connections in [1, 20] {
        let burst = measure::burst(scene, (EDGE, MODEL), BURST, connections).await?;
        let rate = burst.answered as f64 / burst.seconds.max(f64::MIN_POSITIVE);
        let over = match connections {
            1 => "one connection".to_owned(),
            many => format!("{many} connections"),
        };
        page.row(
            format!(
                "{} requests at once over {over}: answered a second over capacity",
                burst.sent
            ),
            "≥ 0.9",
            format!(
                "{:.2} ({} answered in {:.1} s, p50 {})",
                rate / capacity.rate,
                burst.answered,
                burst.seconds,
                millis(burst.p50)
            ),
        );
        let refusals = match (burst.refused_p50, burst.refused_p99) {
            (Some(p50), Some(p99)) => times(p50, p99),
            _ => "none".to_owned(),
        };
        page.row(
            "time until a refusal",
            "p99 < 50 ms",
            format!(
                "{refusals} ({} refused; gRPC codes {:?})",
                burst.refused, burst.codes
            ),
        );
    }
    let idle = measure::idle(scene, EDGE, MODEL, CONNECTIONS).await?;
    page.row(
        format!(
            "memory with {} of {CONNECTIONS} idle connections open",
            idle.opened
        ),
        "bounded",
        format!("{} instead of {}", held(&idle.during), held(&idle.before)),
    );
    let beside = idle.seconds.map_or_else(|| "no answer".to_owned(), millis);
    page.row("a request beside them", "answered", beside);
    Ok(())
}

async fn split(scene: &Scene, time: Duration, page: &mut Page) -> Result<()> {
    serve(
        scene,
        MODEL,
        CAMERA,
        &[(0, CUT, CAMERA), (CUT + 1, LAST, EDGE)],
        "",
    )
    .await?;
    page.section("Two hosts: the camera and an edge host");
    for link in [DEVICE_LINK, SLOW_DEVICE_LINK] {
        let bits_per_second = link.rate_bits_per_s;
        let name = format!("{} Mbit/s", link.mbit_per_s());
        rate(scene, bits_per_second)?;
        let before = spent(scene).await?;
        let seen = measure::closed(scene, (CAMERA, MODEL), 1, time).await?;
        let after = spent(scene).await?;
        let floor = floor(&seen, bits_per_second)?;
        page.row(
            format!("{name}, one at a time: latency over the floor"),
            "≤ 1.05",
            format!(
                "{:.3} ({} over {})",
                seen.p50 / floor,
                times(seen.p50, seen.p99),
                millis(floor)
            ),
        );
        let each = |at: usize| millis((after[at] - before[at]) / seen.answered.max(1) as f64);
        page.row(
            format!("{name}: processor time of the agents for a request, workers aside"),
            "",
            format!("camera {}, edge {}", each(0), each(1)),
        );
    }
    rate(scene, DEVICE_LINK.rate_bits_per_s)?;
    let name = format!("{} Mbit/s", DEVICE_LINK.mbit_per_s());
    for in_flight in [2, 4, 8] {
        let seen = measure::closed(scene, (CAMERA, MODEL), in_flight, time).await?;
        let slowest = slowest(&seen, DEVICE_LINK.rate_bits_per_s)?;
        page.row(
            format!("{name}, {in_flight} in flight: throughput over that of the slowest stage"),
            if in_flight == 8 { "≥ 0.95" } else { "" },
            format!("{:.2} ({:.1}/s)", seen.rate * slowest, seen.rate),
        );
    }
    remove(scene, MODEL).await
}

/// Processor seconds used by the agents of camera and edge, without their workers.
async fn spent(scene: &Scene) -> Result<[f64; 2]> {
    let mut seconds = [0.0; 2];
    for (seconds, host) in seconds.iter_mut().zip([CAMERA, EDGE]) {
        let spent = measure::cpu(scene, host).await?;
        *seconds = spent.get("lamina-node-agent").copied().unwrap_or_default();
    }
    Ok(seconds)
}

async fn exits(scene: &Scene, page: &mut Page) -> Result<()> {
    let pins = [(0, 0, CAMERA), (1, 1, EDGE), (2, 2, "edge-2")];
    serve(scene, DIGITS, CAMERA, &pins, "").await?;
    page.section("Early exits: handwritten digits over three hosts, one image a request");
    let seen = measure::digits(scene, CAMERA, DIGITS).await?;
    let whole = seen.last().context("no thresholds")?.clone();
    for one in &seen {
        let leave: Vec<String> = one
            .by_exit
            .iter()
            .map(|(exit, count)| format!("{count} {exit}"))
            .collect();
        let name = match one.threshold.as_str() {
            "file" => "thresholds of the file".to_owned(),
            "none" => "no exits".to_owned(),
            other => format!("confidence {other}"),
        };
        page.row(
            format!("{name}: mean latency over that without exits"),
            "",
            format!(
                "{:.2} ({}; {} of {} named right; {})",
                one.mean_seconds / whole.mean_seconds,
                millis(one.mean_seconds),
                one.right,
                one.images,
                leave.join(", ")
            ),
        );
    }
    remove(scene, DIGITS).await
}

/// Seconds the request would take if serving cost nothing.
fn floor(seen: &Closed, bits_per_second: u64) -> Result<f64> {
    let (first, _) = seen.hops.split_first().context("no timing")?;
    let compute: f64 = seen.hops.iter().map(|hop| hop.compute_us / 1e6).sum();
    let round_trip = 2.0 * DEVICE_LINK.delay.as_secs_f64();
    Ok(compute + round_trip + first.bytes_out * 8.0 / bits_per_second as f64)
}

/// Seconds of the slowest stage per request.
fn slowest(seen: &Closed, bits_per_second: u64) -> Result<f64> {
    let (first, _) = seen.hops.split_first().context("no timing")?;
    let link = first.bytes_out * 8.0 / bits_per_second as f64;
    let compute = seen.hops.iter().map(|hop| hop.compute_us / 1e6);
    Ok(compute.fold(link, f64::max))
}

fn rate(scene: &Scene, bits_per_second: u64) -> Result<()> {
    scene
        .lab
        .set_host_links(CAMERA, |link| link.rate_bits_per_s = bits_per_second)?;
    Ok(())
}

/// Serves `model` with entry `entry`, pinned by `pins` and never moved. `more` are further lines of
/// the spec.
async fn serve(
    scene: &Scene,
    model: &str,
    entry: &str,
    pins: &[(u32, u32, &str)],
    more: &str,
) -> Result<()> {
    let address = scene.lab.address("cloud-1")?;
    let shape = if model == DIGITS {
        "1, 8, 8"
    } else {
        "3, 224, 224"
    };
    let pins: String = pins
        .iter()
        .map(|(first, last, node)| {
            format!("      - {{first: {first}, last: {last}, node: {node}}}\n")
        })
        .collect();
    let manifest = format!(
        "apiVersion: serving.lamina.dev/v1alpha1
kind: DnnModel
metadata: {{name: {model}, namespace: default}}
spec:
  source: {{uri: http://{address}:{FILE_PORT}/{model}.pt}}
  inputs: [{{name: image, datatype: FP32, shape: [-1, {shape}]}}]
  entry: {{nodeSelector: {{kubernetes.io/hostname: {entry}}}}}
  adaptation: {{policy: Never}}
{more}  constraints:
    pins:
{pins}"
    );
    scene.apply(&manifest).await?;
    scene.wait_ready(model, PATIENCE, &mut |_| ()).await?;
    Ok(())
}

async fn remove(scene: &Scene, model: &str) -> Result<()> {
    scene
        .lab
        .kubectl(&["delete", "dnn", model, "--wait"])
        .await?;
    Ok(())
}

/// Megabytes by program.
fn held(memory: &Memory) -> String {
    let parts: Vec<String> = memory
        .iter()
        .map(|(program, megabytes)| format!("{program} {megabytes:.0} MB"))
        .collect();
    parts.join(" + ")
}
