//! The spec asked for and the spec in force: what an edit, a lost store or a planned
//! change may do to requests, and what the status says meanwhile.

use crate::faults::{all_answered, last_host, load, moved_off, path_without};
use crate::good::photographs;
use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lamina_crds::conditions::{READY, SERVING};
use lamina_crds::reasons;
use lamina_e2e::scene::redeploy;
use lamina_e2e::scene::{Scene, Step, poll};
use std::time::Duration;
use tokio::time::sleep;

const MODEL: &str = "mobilenet-v2";
const PATIENCE: Duration = Duration::from_secs(60);

/// Applies the example with `from` replaced.
async fn edit(scene: &Scene, from: &str, to: &str) -> Result<()> {
    let as_ever = scene.example(MODEL)?;
    ensure!(as_ever.contains(from), "the example lacks `{from}`");
    scene.apply(&as_ever.replacen(from, to, 1)).await?;
    Ok(())
}

/// Reverts every edit and waits until the model is served as in its example.
async fn restore(scene: &Scene) -> Result<()> {
    scene.apply(&scene.example(MODEL)?).await?;
    scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await?;
    photographs(scene, "cam-1", MODEL).await?;
    Ok(())
}

async fn serving(scene: &Scene) -> Result<String> {
    let model = scene.model(MODEL).await?.context("no model")?;
    let status = model.status.context("no status")?;
    let serving = status.conditions.iter().find(|c| c.type_ == SERVING);
    Ok(serving.context("no condition Serving")?.status.clone())
}

/// A limit that no host meets: Ready is False, nothing is lost, the old path stays active.
pub(crate) async fn a_wish_that_nothing_meets_is_not_ready(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    let limits =
        "limit: 100k}\n      - {tier: edge, limit: 100k}\n      - {tier: cloud, limit: 100k}";
    let limits = format!("- {{tier: device, {limits}");
    edit(scene, "- tier: device\n        limit: 8M", &limits).await?;
    let reason = reasons::NO_FEASIBLE_PLACEMENT;
    scene
        .wait_condition(MODEL, READY, "False", reason, PATIENCE)
        .await?;
    let waited = [
        "wait",
        "dnn/mobilenet-v2",
        "--for=condition=Ready",
        "--timeout=3s",
    ];
    ensure!(
        scene.lab.kubectl(&waited).await.is_err(),
        "kubectl wait passed"
    );
    ensure!(serving(scene).await? == "True", "it serves meanwhile");
    let answered = all_answered(client).await;
    restore(scene).await?;
    answered
}

/// Blocks that must stay on the entry, which cannot hold them: requests are refused with the reason
/// rather than raw input leaving the camera.
pub(crate) async fn input_that_must_stay_never_leaves(scene: &Scene) -> Result<()> {
    edit(scene, "keepOnEntry: 2", "keepOnEntry: 33").await?;
    let reason = reasons::REQUESTS_REFUSED;
    scene
        .wait_condition(MODEL, READY, "False", reason, PATIENCE)
        .await?;
    let refused = poll("a refusal", PATIENCE, async || {
        let client = scene.client("cam-1", "photographs", MODEL, &[])?;
        let lines = client.finish(Duration::from_secs(60)).await;
        Ok(match lines {
            Err(error) if format!("{error:?}").contains("keepOnEntry") => Step::Done(()),
            other => Step::NotYet(format!("{other:?}")),
        })
    });
    refused.await?;
    restore(scene).await
}

/// A typo disables nothing: on a host's failure the model moves by the last valid spec.
pub(crate) async fn an_invalid_edit_leaves_failover_armed(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    edit(scene, "keepOnEntry: 2", "keepOnEntry: 2\n    tiers: [fog]").await?;
    let reason = reasons::INVALID_SPEC;
    scene
        .wait_condition(MODEL, READY, "False", reason, PATIENCE)
        .await?;
    let host = last_host(scene).await?;
    moved_off(scene, &host, client, async || Ok(())).await?;
    ensure!(
        serving(scene).await? == "True",
        "it serves by the last valid spec"
    );
    scene.wait_nodes(5, PATIENCE).await?;
    restore(scene).await
}

/// The operator's pod is lost with its store, the source is unavailable, a host of the path dies.
pub(crate) async fn a_store_that_is_lost_comes_back_from_the_hosts(scene: &Scene) -> Result<()> {
    let file = scene.models.join("mobilenet-v2.pt");
    let away = scene.models.join("mobilenet-v2.pt.away");
    std::fs::rename(&file, &away)?;
    let outcome = store_lost(scene).await;
    std::fs::rename(&away, &file)?;
    outcome?;
    restore(scene).await
}

async fn store_lost(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    let operator = "app.kubernetes.io/component=operator";
    let delete = [
        "delete",
        "pod",
        "-n",
        "lamina-system",
        "-l",
        operator,
        "--wait=true",
    ];
    scene.lab.kubectl(&delete).await?;
    scene.wait_nodes(5, PATIENCE).await?;
    // A new operator verifies the active path before it reports it.
    poll("Ready again", PATIENCE, async || {
        let status = scene.model(MODEL).await?.and_then(|m| m.status);
        let conditions = status.map(|s| s.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == READY);
        Ok(match ready {
            Some(c) if c.status == "True" => Step::Done(()),
            other => Step::NotYet(format!("{other:?}")),
        })
    })
    .await?;
    sleep(Duration::from_secs(15)).await;
    let host = last_host(scene).await?;
    moved_off(scene, &host, client, async || Ok(())).await?;
    scene.wait_nodes(5, PATIENCE).await?;
    Ok(())
}

/// The release is uninstalled and reinstalled while its objects stay: the status is the new
/// release's, and no lease of the old one delays it.
pub(crate) async fn a_release_that_comes_back_is_proved_again(scene: &Scene) -> Result<()> {
    scene.uninstall().await?;
    let begin = Timestamp::now();
    scene.install().await?;
    scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await?;
    // As soon as it is Ready: no request waits for loading.
    let at_once = ["--deadline=3".to_owned()];
    let client = scene.client("cam-1", "photographs", MODEL, &at_once)?;
    client.finish(Duration::from_secs(60)).await?;
    let acquired = "jsonpath={.items[*].spec.acquireTime}";
    let lease = ["get", "leases", "-n", "lamina-system", "-o", acquired];
    let acquired = scene.lab.kubectl(&lease).await?;
    let acquired: Timestamp = acquired.trim().parse().context(acquired.clone())?;
    let waited = acquired.duration_since(begin);
    // It would expire by itself after 40 s.
    ensure!(
        waited > SignedDuration::ZERO && waited < SignedDuration::from_secs(25),
        "the lease was taken after {waited:#}"
    );
    scene.wait_nodes(5, PATIENCE).await?;
    Ok(())
}

/// A cordon empties a host, make before break.
pub(crate) async fn a_cordoned_host_is_emptied(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(3)).await;
    let host = last_host(scene).await?;
    scene.lab.kubectl(&["cordon", &host]).await?;
    let path = path_without(scene, &host).await;
    sleep(Duration::from_secs(2)).await;
    let answered = all_answered(client).await;
    scene.lab.kubectl(&["uncordon", &host]).await?;
    path?;
    answered
}

/// Requests go on at the old entry's agent while the entry moves to another camera.
pub(crate) async fn an_entry_that_moves_loses_nothing(scene: &Scene) -> Result<()> {
    let client = redeploy::start(scene, &load(2.0)).await?;
    sleep(Duration::from_secs(2)).await;
    edit(scene, "hostname: cam-1", "hostname: cam-2").await?;
    let moved = scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await;
    sleep(Duration::from_secs(4)).await;
    let answered = all_answered(client).await;
    let restored = restore(scene).await;
    moved?;
    answered?;
    restored
}
