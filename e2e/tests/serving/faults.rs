//! Failures while requests flow: none is lost, none is answered wrongly.

use crate::good::{photographs, serve};
use anyhow::{Context, Result, ensure};
use lamina_crds::placement::Segment;
use lamina_e2e::netlab::Link;
use lamina_e2e::scene::redeploy::{self, Load};
use lamina_e2e::scene::{CLOUD, DEVICE_LINK, Scene, SceneError, Step, poll};
use lamina_e2e::workload::{Client, Line, Summary};
use nix::sys::signal::Signal;
use std::time::Duration;
use tokio::time::sleep;

const MODEL: &str = "mobilenet-v2";

pub(crate) fn load(rate: f64) -> Load {
    Load {
        model: MODEL.to_owned(),
        entry: "cam-1".to_owned(),
        rate,
        phase_seconds: 8,
        // The default deadline of clients.
        deadline_seconds: 30.0,
    }
}

/// Stops the load and expects every answer, in time and right.
pub(crate) async fn all_answered(mut client: Client) -> Result<()> {
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
        ..
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

/// The active segments in order; none while nothing is active.
async fn segments(scene: &Scene) -> Result<Vec<Segment>, SceneError> {
    let status = scene.placement(MODEL).await?.and_then(|p| p.status);
    let segments = status.and_then(|s| s.active).map(|a| a.segments);
    Ok(segments.unwrap_or_default())
}

/// Their hosts.
async fn hosts(scene: &Scene) -> Result<Vec<String>, SceneError> {
    let segments = segments(scene).await?.into_iter();
    Ok(segments.map(|segment| segment.host.node).collect())
}

/// The host of the last segment, once no move is in progress.
pub(crate) async fn last_host(scene: &Scene) -> Result<String> {
    poll("no move", Duration::from_secs(60), async || {
        let status = scene.placement(MODEL).await?.and_then(|p| p.status);
        let target = status.map_or(0, |s| s.target_revision);
        Ok(if target == 0 {
            Step::Done(())
        } else {
            Step::NotYet(format!("revision {target} is on its way"))
        })
    })
    .await?;
    hosts(scene).await?.pop().context("nothing serves")
}

pub(crate) async fn agent_killed_and_restarted(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    let host = last_host(scene).await?;
    ensure!(host != "cam-1", "the last host is the entry");
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
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    let host = last_host(scene).await?;
    moved_off(scene, &host, client, async || Ok(())).await?;
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

/// The entry, a small device, loads a larger slice while requests wait for it there.
pub(crate) async fn node_lost_and_the_entry_loads_more(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(4.0)).await?;
    sleep(Duration::from_secs(3)).await;
    let as_ever = scene.example(MODEL)?;
    // With pins, because requests are refused as soon as `keepOnEntry` is violated.
    let pinned = "keepOnEntry: 2\n    pins: [{first: 0, last: 27, node: cam-1}]\n";
    let more = as_ever.replacen("keepOnEntry: 2\n", pinned, 1);
    ensure!(
        more != as_ever,
        "the example keeps another number of blocks"
    );
    // Nothing moves until the host is known to be lost.
    let paused = more.replacen("\nspec:\n", "\nspec:\n  adaptation: {paused: true}\n", 1);
    let moved = lost_while_paused(scene, client, &paused, &more).await;
    let path = segments(scene).await;
    scene.apply(&as_ever).await?;
    moved?;
    let path = path?;
    ensure!(
        path.first().is_some_and(|s| s.blocks.contains(&27)),
        "{path:?}"
    );
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
    Ok(())
}

async fn lost_while_paused(scene: &Scene, client: Client, paused: &str, then: &str) -> Result<()> {
    scene.apply(paused).await?;
    let host = last_host(scene).await?;
    let known = async || {
        let node = format!("computenode/{host}");
        let not_ready = "--for=condition=Ready=false";
        let wait = ["wait", &node, not_ready, "--timeout=30s"];
        scene.lab.kubectl(&wait).await?;
        scene.apply(then).await?;
        Ok(())
    };
    moved_off(scene, &host, client, known).await
}

/// Another path is active after `host`'s agent died and `then` was done, and `client` got every
/// answer. The agent may come back either way.
pub(crate) async fn moved_off(
    scene: &Scene,
    host: &str,
    client: Client,
    then: impl AsyncFnOnce() -> Result<()>,
) -> Result<()> {
    scene.lab.suspend_restart(host, true)?;
    let moved = async {
        scene.kill("agent", Some(host), Signal::SIGKILL).await?;
        then().await?;
        let path = path_without(scene, host).await;
        sleep(Duration::from_secs(3)).await;
        all_answered(client).await?;
        path?;
        Ok(())
    };
    let moved = moved.await;
    scene.lab.suspend_restart(host, false)?;
    moved
}

pub(crate) async fn path_without(scene: &Scene, host: &str) -> Result<String, SceneError> {
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

/// Both hosts work and reach the operator, but not each other.
pub(crate) async fn link_between_two_hosts_cut(scene: &Scene) -> Result<()> {
    // Not the operator's own host: the entry would lose the operator too.
    let hop = "edge-1";
    let unpinned = pin_most(scene, hop).await?;
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    let cut = |up: bool| {
        let links = |link: &mut Link| link.up = up;
        scene.lab.set_links_between("cam-1", hop, links)
    };
    cut(false)?;
    let moved = async {
        scene.apply(&unpinned).await?;
        another_next_hop(scene, hop, Duration::from_secs(60)).await
    };
    let moved = moved.await;
    sleep(Duration::from_secs(3)).await;
    let answered = all_answered(client).await;
    cut(true)?;
    moved?;
    answered
}

/// Pins all but the first blocks to `node`, so that the start of a case does not depend on earlier
/// measurements. Returns the manifest without that pin.
async fn pin_most(scene: &Scene, node: &str) -> Result<String> {
    let as_ever = scene.example(MODEL)?;
    let keep = "keepOnEntry: 2\n";
    let pins = format!("{keep}    pins: [{{first: 15, last: 32, node: {node}}}]\n");
    let pinned = as_ever.replacen(keep, &pins, 1);
    ensure!(
        pinned != as_ever,
        "the example keeps another number of blocks"
    );
    scene.apply(&pinned).await?;
    poll("the pinned path", Duration::from_secs(60), async || {
        let status = scene.placement(MODEL).await?.and_then(|p| p.status);
        let status = status.unwrap_or_default();
        let last = status.active.and_then(|plan| plan.segments.last().cloned());
        let is_there = last.is_some_and(|s| s.host.node == node && s.blocks.contains(&15));
        Ok(if is_there && status.target_revision == 0 {
            Step::Done(())
        } else {
            Step::NotYet(status.path)
        })
    })
    .await?;
    Ok(as_ever)
}

/// Waits until the entry sends its requests to another host than this, or keeps them.
async fn another_next_hop(scene: &Scene, than: &str, within: Duration) -> Result<()> {
    let what = format!("a next hop other than {than}");
    poll(&what, within, async || {
        let hosts = hosts(scene).await?;
        Ok(match hosts.get(1) {
            Some(hop) if hop == than => Step::NotYet(hosts.join("→")),
            _ => Step::Done(()),
        })
    })
    .await?;
    Ok(())
}

pub(crate) async fn slow_link_moves_blocks_and_operator_dies_meanwhile(
    scene: &Scene,
) -> Result<()> {
    let unpinned = pin_most(scene, CLOUD).await?;
    let load = load(3.0);
    let killer = async {
        // The first phase of the load comes before the link turns slow.
        sleep(Duration::from_secs(load.phase_seconds)).await;
        scene.apply(&unpinned).await?;
        // As soon as a new revision is being deployed.
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
    let mut quiet = |_: &str| ();
    let (run, killed) = tokio::join!(redeploy::run(scene, &load, &mut quiet), killer);
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

/// The entry starts while neither the operator nor the API server can be reached: what it has on
/// disk is enough to answer, over the whole path.
pub(crate) async fn entry_restarted_while_all_others_are_away(scene: &Scene) -> Result<()> {
    scene.api_server_away(true)?;
    let answered = async {
        scene.kill("operator", None, Signal::SIGKILL).await?;
        scene.kill("agent", Some("cam-1"), Signal::SIGKILL).await?;
        poll("right answers", Duration::from_secs(60), async || {
            let answers = photographs(scene, "cam-1", MODEL).await;
            Ok(answers.map_or_else(|e| Step::NotYet(e.to_string()), |_| Step::Done(())))
        })
        .await
    };
    let answered = answered.await;
    scene.api_server_away(false)?;
    answered?;
    scene.wait_nodes(5, Duration::from_secs(60)).await?;
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
