//! What breaks while requests flow: none is lost, none is answered wrongly.

use crate::good::{photographs, serve};
use anyhow::{Context, Result, ensure};
use lamina_crds::placement::Segment;
use lamina_e2e::netlab::Link;
use lamina_e2e::scene::redeploy::{self, Load};
use lamina_e2e::scene::{CLOUD, DEVICE_LINK, SLOW_DEVICE_LINK, Scene, SceneError, Step, poll};
use lamina_e2e::workload::{Client, Line, Summary};
use nix::sys::signal::Signal;
use std::time::Duration;
use tokio::time::sleep;

const MODEL: &str = "mobilenet-v2";

fn load(rate: f64) -> Load {
    Load {
        model: MODEL.to_owned(),
        entry: "cam-1".to_owned(),
        rate,
        phase_seconds: 8,
        // What clients get that set none.
        deadline_seconds: 30.0,
    }
}

/// Stops the load and expects every answer, in time and right.
async fn all_answered(mut client: Client) -> Result<()> {
    client.command("stop").await?;
    let lines = client.finish(Duration::from_secs(60)).await?;
    let first_loss = lines.iter().find_map(|l| match l {
        Line::Request(r) => r.error.clone(),
        _ => None,
    });
    let summary = lines.iter().find_map(|l| match l {
        Line::Summary(s) => Some(*s),
        _ => None,
    });
    let Some(Summary {
        sent,
        correct,
        lost,
        wrong,
    }) = summary
    else {
        anyhow::bail!("no summary");
    };
    ensure!(
        sent > 0 && correct == sent,
        "{sent} sent, {correct} correct, {lost} lost, {wrong} wrong; first loss {first_loss:?}"
    );
    Ok(())
}

/// The hosts of the segments that serve, in their order; none while nothing does.
async fn hosts(scene: &Scene) -> Result<Vec<String>, SceneError> {
    let status = scene.placement(MODEL).await?.and_then(|p| p.status);
    let segments = status.and_then(|s| s.active).map(|a| a.segments);
    let host = |segment: Segment| segment.host.node;
    Ok(segments.unwrap_or_default().into_iter().map(host).collect())
}

/// The host of the last segment.
async fn last_host(scene: &Scene) -> Result<String> {
    hosts(scene).await?.pop().context("nothing serves")
}

pub(crate) async fn agent_killed_and_restarted(scene: &Scene) -> Result<()> {
    let host = last_host(scene).await?;
    ensure!(host != "cam-1", "the last host is the entry");
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    scene.kill("agent", Some(&host), Signal::SIGKILL).await?;
    sleep(Duration::from_secs(12)).await;
    all_answered(client).await?;
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(60), &mut |_| ())
        .await?;
    Ok(())
}

pub(crate) async fn node_lost_for_good(scene: &Scene) -> Result<()> {
    let host = last_host(scene).await?;
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    scene.lab.suspend_restart(&host, true)?;
    scene.kill("agent", Some(&host), Signal::SIGKILL).await?;
    let moved = path_without(scene, &host).await;
    sleep(Duration::from_secs(3)).await;
    let answered = all_answered(client).await;
    scene.lab.suspend_restart(&host, false)?;
    moved?;
    answered?;
    let events = scene.events().await?;
    ensure!(
        events
            .iter()
            .any(|(reason, note)| reason == "NodeLost" && note.contains(&host)),
        "no NodeLost event: {events:?}"
    );
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    Ok(())
}

/// The entry, a small device, loads a larger slice of its own while requests wait
/// for it there.
pub(crate) async fn node_lost_and_the_entry_loads_more(scene: &Scene) -> Result<()> {
    let host = last_host(scene).await?;
    let client = redeploy::start(scene, &load(4.0)).await?;
    sleep(Duration::from_secs(3)).await;
    // Nothing moves until the host is known to be lost.
    let paused = r#"{"constraints":{"keepOnEntry":28},"adaptation":{"paused":true}}"#;
    wish(scene, paused).await?;
    scene.lab.suspend_restart(&host, true)?;
    scene.kill("agent", Some(&host), Signal::SIGKILL).await?;
    let node = format!("computenode/{host}");
    let lost = [
        "wait",
        &node,
        "--for=condition=Ready=false",
        "--timeout=30s",
    ];
    let lost = scene.lab.kubectl(&lost).await;
    wish(scene, r#"{"adaptation":null}"#).await?;
    let moved = path_without(scene, &host).await;
    sleep(Duration::from_secs(3)).await;
    let answered = all_answered(client).await;
    scene.lab.suspend_restart(&host, false)?;
    wish(scene, r#"{"constraints":{"keepOnEntry":null}}"#).await?;
    lost?;
    let path = moved?;
    ensure!(path.starts_with("cam-1[0-27]"), "{path}");
    answered?;
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    Ok(())
}

/// Merges this into the model's spec.
async fn wish(scene: &Scene, spec: &str) -> Result<()> {
    let patch = format!(r#"{{"spec":{spec}}}"#);
    let arguments = ["patch", "dnn", MODEL, "--type=merge", "--patch", &patch];
    scene.lab.kubectl(&arguments).await?;
    Ok(())
}

async fn path_without(scene: &Scene, host: &str) -> Result<String, SceneError> {
    let what = format!("a path without {host}");
    poll(&what, Duration::from_secs(60), async || {
        let path = redeploy::path(scene, MODEL).await?;
        Ok(if !path.is_empty() && !path.contains(host) {
            Step::Done(path)
        } else {
            Step::NotYet(path)
        })
    })
    .await
}

/// Both hosts live and reach the operator, but not each other.
///
/// The hop is not one to the operator's own host: with that, the entry would lose the
/// operator too. So its links to that host stay slow for as long as the case lasts.
pub(crate) async fn link_between_two_hosts_cut(scene: &Scene) -> Result<()> {
    let to_operator = |rate_bits_per_s: u64| {
        let links = |link: &mut Link| link.rate_bits_per_s = rate_bits_per_s;
        scene.lab.set_links_between("cam-1", CLOUD, links)
    };
    to_operator(SLOW_DEVICE_LINK.rate_bits_per_s)?;
    let answered = next_hop_cut(scene).await;
    to_operator(DEVICE_LINK.rate_bits_per_s)?;
    answered
}

async fn next_hop_cut(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    // A move that was pending comes to pass first.
    sleep(Duration::from_secs(3)).await;
    let hop = another_next_hop(scene, CLOUD, Duration::from_secs(120)).await?;
    let cut = |up: bool| {
        let links = |link: &mut Link| link.up = up;
        scene.lab.set_links_between("cam-1", &hop, links)
    };
    cut(false)?;
    let moved = another_next_hop(scene, &hop, Duration::from_secs(60)).await;
    sleep(Duration::from_secs(3)).await;
    let answered = all_answered(client).await;
    cut(true)?;
    moved?;
    answered
}

/// Waits until the entry hands its requests to another host than this.
async fn another_next_hop(scene: &Scene, than: &str, within: Duration) -> Result<String> {
    let what = format!("a next hop other than {than}");
    let hop = poll(&what, within, async || {
        let hosts = hosts(scene).await?;
        Ok(match hosts.get(1) {
            Some(hop) if hop != than => Step::Done(hop.clone()),
            _ => Step::NotYet(hosts.join("→")),
        })
    });
    Ok(hop.await?)
}

pub(crate) async fn slow_link_moves_blocks_and_operator_dies_meanwhile(
    scene: &Scene,
) -> Result<()> {
    let killer = async {
        // As soon as a new revision is on its way.
        poll("a target revision", Duration::from_secs(120), async || {
            let status = scene.placement(MODEL).await?.and_then(|p| p.status);
            let target = status.map_or(0, |s| s.target_revision);
            Ok(if target > 0 {
                Step::Done(())
            } else {
                Step::NotYet("none".to_owned())
            })
        })
        .await?;
        scene.kill("operator", None, Signal::SIGKILL).await?;
        anyhow::Ok(())
    };
    let load = load(3.0);
    let mut quiet = |_: &str| ();
    let (run, killed) = tokio::join!(redeploy::run(scene, &load, &mut quiet), async {
        // The first phase of the load comes before the link turns slow.
        sleep(Duration::from_secs(load.phase_seconds)).await;
        killer.await
    });
    scene.lab.set_host_links("cam-1", |link| {
        link.rate_bits_per_s = DEVICE_LINK.rate_bits_per_s;
    })?;
    killed?;
    let run = run?;
    let summary = run.evidence.summary;
    ensure!(
        summary.sent > 0 && summary.correct == summary.sent,
        "{summary:?} on the way {:?}",
        run.paths
    );
    Ok(())
}

pub(crate) async fn api_server_away(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    scene.api_server_away(true)?;
    sleep(Duration::from_secs(10)).await;
    scene.api_server_away(false)?;
    sleep(Duration::from_secs(3)).await;
    all_answered(client).await?;
    scene
        .wait_ready(MODEL, Duration::from_secs(60), &mut |_| ())
        .await?;
    Ok(())
}

pub(crate) async fn model_deleted_and_applied_again(scene: &Scene) -> Result<()> {
    scene
        .lab
        .kubectl(&["delete", "dnn", MODEL, "--wait=true"])
        .await?;
    poll("no placement", Duration::from_secs(30), async || {
        Ok(match scene.placement(MODEL).await? {
            None => Step::Done(()),
            Some(_) => Step::NotYet("still there".to_owned()),
        })
    })
    .await?;
    serve(scene, MODEL).await?;
    photographs(scene, "cam-1", MODEL).await?;
    Ok(())
}
