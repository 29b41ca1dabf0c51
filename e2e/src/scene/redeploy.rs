//! A load from one host, a link that turns slow under it, and the blocks that move.

use super::{DEVICE_LINK, Result, SLOW_DEVICE_LINK, Scene, SceneError, Step, poll};
use crate::workload::{Client, Evidence, Line, Reference, Summary};
use kube::Api;
use lamina_crds::ComputeNode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;

/// Settings of the load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The model.
    pub model: String,
    /// The host where requests originate.
    pub entry: String,
    /// Requests per second.
    pub rate: f64,
    /// Seconds of load before the link turns slow, and after the move.
    pub phase_seconds: u64,
    /// Seconds within which an answer counts.
    pub deadline_seconds: f64,
}

/// Result of a run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Input of the verdict.
    pub evidence: Evidence,
    /// From the change of the link until the new path was active.
    pub redeploy_seconds: f64,
    /// Path before and after.
    pub paths: (String, String),
    /// Events since the change of the link, `Reason: note`.
    pub events: Vec<String>,
}

/// Requests sent at once when the new revision is about to become active, and again until it is, so
/// that the flip has requests in flight to lose.
const BURST: u32 = 4;
/// Polls (of 100 ms) from one burst to the next: about the time in which one is answered.
const BURST_EVERY: u32 = 2;
/// Maximum number of bursts per revision: a probe may take long to fail.
const BURSTS: u32 = 10;

/// A load ends by itself after this time.
const LOAD_SECONDS: u64 = 600;
/// Images are prepared for the two phases and this time.
const SPARE_SECONDS: u64 = 120;

/// Images to prepare: each is sent once.
fn images(load: &Load) -> u64 {
    let seconds = 2 * load.phase_seconds + SPARE_SECONDS;
    (load.rate * seconds as f64).ceil() as u64 + u64::from(4 * BURST * BURSTS)
}

/// Loads the entry, slows its links, waits for the move, and measures again.
///
/// # Errors
/// The client failed, or nothing moved within three minutes.
pub async fn run(scene: &Scene, load: &Load, told: &mut (dyn FnMut(&str) + Send)) -> Result<Run> {
    told("load: every request another image, PyTorch's answers computed first");
    let mut client = start(scene, load).await?;
    let carried_at_start = carried(scene, &load.entry);
    told(&format!(
        "{} requests/s for {} s",
        load.rate, load.phase_seconds
    ));
    sleep(Duration::from_secs(load.phase_seconds)).await;
    let old_path = path(scene, &load.model).await?;

    let slow_at = now();
    let carried_when_slow = carried(scene, &load.entry);
    let events_before = scene.events().await?.len();
    scene.lab.set_host_links(&load.entry, |link| {
        link.rate_bits_per_s = SLOW_DEVICE_LINK.rate_bits_per_s;
    })?;
    told(&format!(
        "the links of {} drop from {} to {} Mbit/s",
        load.entry,
        DEVICE_LINK.mbit_per_s(),
        SLOW_DEVICE_LINK.mbit_per_s()
    ));
    moved(scene, &mut client, &load.model, &old_path).await?;
    let in_flight_at_flip = in_flight_at_flip(scene, &load.entry).await?;
    let redeploy_seconds = now() - slow_at;
    let carried_when_moved = carried(scene, &load.entry);
    let moved_at = now();
    let new_path = path(scene, &load.model).await?;
    told(&format!("{old_path} is now {new_path}"));
    sleep(Duration::from_secs(load.phase_seconds)).await;
    client.command("stop").await?;
    let lines = client.finish(Duration::from_secs(60)).await?;
    let (reference, summary) = ends(&lines)?;
    let requests = lines
        .into_iter()
        .filter_map(|line| match line {
            Line::Request(r) => Some(r),
            _ => None,
        })
        .collect();
    let events = scene.events().await?;
    Ok(Run {
        redeploy_seconds,
        paths: (old_path, new_path),
        events: events
            .iter()
            .skip(events_before)
            .map(|(reason, note)| format!("{reason}: {note}"))
            .collect(),
        evidence: Evidence {
            reference,
            requests,
            summary,
            slow_at,
            moved_at,
            slow_bits_per_second: SLOW_DEVICE_LINK.rate_bits_per_s as f64,
            in_flight_at_flip,
            router_bytes_before: carried_when_slow - carried_at_start,
            router_bytes_after: carried(scene, &load.entry) - carried_when_moved,
        },
    })
}

/// Starts the load and waits until its first request may leave.
///
/// # Errors
/// The client failed.
pub async fn start(scene: &Scene, load: &Load) -> Result<Client> {
    let more = [
        format!("--rate={}", load.rate),
        format!("--deadline={}", load.deadline_seconds),
        format!("--seconds={LOAD_SECONDS}"),
        format!("--images={}", images(load)),
    ];
    let mut client = scene.client(&load.entry, "load", &load.model, &more)?;
    let has_reference = |lines: &[Line]| lines.iter().any(|l| matches!(l, Line::Reference(_)));
    client
        .until(
            "the reference answers",
            Duration::from_secs(180),
            has_reference,
        )
        .await?;
    Ok(client)
}

fn ends(lines: &[Line]) -> Result<(Reference, Summary)> {
    let reference = lines.iter().find_map(|l| match l {
        Line::Reference(r) => Some(*r),
        _ => None,
    });
    let summary = lines.iter().find_map(|l| match l {
        Line::Summary(s) => Some(*s),
        _ => None,
    });
    reference
        .zip(summary)
        .ok_or_else(|| SceneError::Io("the load ended without a summary".to_owned()))
}

/// Waits until another path is active, with a burst when it is about to be.
async fn moved(scene: &Scene, client: &mut Client, model: &str, old_path: &str) -> Result<()> {
    let mut bursts_for = 0;
    let mut looks = 0;
    let within = Duration::from_secs(180);
    poll("another path", within, async || {
        let status = scene
            .placement(model)
            .await?
            .and_then(|p| p.status)
            .unwrap_or_default();
        let deployed = status
            .conditions
            .iter()
            .any(|c| c.type_ == "Deployed" && c.status == "True");
        if status.target_revision > bursts_for && deployed {
            bursts_for = status.target_revision;
            looks = 0;
        }
        if status.target_revision > 0 && status.target_revision == bursts_for {
            if looks % BURST_EVERY == 0 && looks < BURST_EVERY * BURSTS {
                client.command(&format!("burst {BURST}")).await?;
            }
            looks += 1;
        }
        Ok(if !status.path.is_empty() && status.path != old_path {
            Step::Done(())
        } else {
            Step::NotYet(format!(
                "path {}, coming {}",
                status.path, status.target_path
            ))
        })
    })
    .await
}

/// The active path of a model; empty if there is none.
///
/// # Errors
/// The API server does not answer.
pub async fn path(scene: &Scene, model: &str) -> Result<String> {
    let placement = scene.placement(model).await?;
    Ok(placement
        .and_then(|p| p.status)
        .map(|s| s.path)
        .unwrap_or_default())
}

/// Bytes carried by the router from the entry to the other hosts.
fn carried(scene: &Scene, entry: &str) -> u64 {
    scene
        .lab
        .counters()
        .into_iter()
        .filter(|((from, to), _)| from == entry && to != "control")
        .map(|(_, c)| c.bytes)
        .sum()
}

async fn in_flight_at_flip(scene: &Scene, entry: &str) -> Result<u32> {
    let api: Api<ComputeNode> = Api::all(scene.lab.client());
    let routes = api
        .get(entry)
        .await?
        .status
        .map(|s| s.routes)
        .unwrap_or_default();
    Ok(routes.first().map_or(0, |r| r.in_flight_at_flip))
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}
