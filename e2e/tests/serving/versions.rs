//! A model's next version, under load.

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use lamina_e2e::scene::Scene;
use lamina_e2e::workload::{Client, Line, Outcome, Request};
use std::time::Duration;
use tokio::time::sleep;

const MODEL: &str = "changing";
const ENTRY: &str = "cam-2";
const PATIENCE: Duration = Duration::from_secs(90);

/// The model with the file `version` and inputs of these names.
fn manifest(scene: &Scene, version: &str, inputs: &[&str]) -> Result<String> {
    let file = scene.example_uri("mobilenet-v2")?;
    let uri = file.replace("mobilenet-v2", version);
    let input = |name: &&str| {
        format!(
            "    - {{name: {name}, datatype: FP32, shape: [-1, 3, 64, 64], range: {{min: -4, max: 4}}}}\n"
        )
    };
    let inputs: String = inputs.iter().map(input).collect();
    Ok(format!(
        "apiVersion: serving.lamina.dev/v1alpha1\nkind: DnnModel\nmetadata: {{name: {MODEL}, namespace: default}}\nspec:\n  source: {{uri: {uri}}}\n  inputs:\n{inputs}  entry: {{nodeSelector: {{kubernetes.io/hostname: {ENTRY}}}}}\n"
    ))
}

/// Requests as the clients of `version` send them.
async fn client_of(scene: &Scene, version: &str) -> Result<Client> {
    let more = [
        "--rate=4",
        "--seconds=300",
        "--images=1200",
        "--deadline=20",
    ];
    let mut more: Vec<String> = more.map(str::to_owned).to_vec();
    more.push(format!("--reference={version}"));
    let mut client = scene.client(ENTRY, "load", MODEL, &more)?;
    let has_begun = |lines: &[Line]| lines.iter().any(|l| matches!(l, Line::Reference(_)));
    client
        .until("the reference answers", PATIENCE, has_begun)
        .await?;
    Ok(client)
}

async fn requests(mut client: Client) -> Result<Vec<Request>> {
    client.command("stop").await?;
    let lines = client.finish(Duration::from_secs(60)).await?;
    let mut requests: Vec<Request> = lines
        .into_iter()
        .filter_map(|line| match line {
            Line::Request(r) => Some(r),
            _ => None,
        })
        .collect();
    requests.sort_by_key(|r| r.id);
    Ok(requests)
}

/// The next version takes other inputs and has more outputs. Until it is active, clients of the old
/// one are answered and those of the new one get an error; then the reverse. Nothing is lost, and
/// nothing is answered by the wrong version.
pub(crate) async fn another_signature_rolls_out_under_load(scene: &Scene) -> Result<()> {
    scene
        .apply(&manifest(scene, "one-image", &["image"])?)
        .await?;
    let ready = async || scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await;
    ready().await?;
    let old = client_of(scene, "one-image").await?;
    let new = client_of(scene, "two-images").await?;
    sleep(Duration::from_secs(3)).await;
    let next = manifest(scene, "two-images", &["left", "right"])?;
    scene.apply(&next).await?;
    ready().await?;
    let ready_at = Timestamp::now().as_millisecond() as f64 / 1e3;
    sleep(Duration::from_secs(3)).await;
    let (old, new) = (requests(old).await?, requests(new).await?);
    scene
        .lab
        .kubectl(&["delete", "dnn", MODEL, "--wait=true"])
        .await?;
    turned(&old, Outcome::Correct, Outcome::Refused).context("clients of the old version")?;
    turned(&new, Outcome::Refused, Outcome::Correct).context("clients of the new version")?;
    serves_from(ready_at, &old, Outcome::Refused).context("clients of the old version")?;
    serves_from(ready_at, &new, Outcome::Correct).context("clients of the new version")?;
    let told = |requests: &[Request], name: &str| {
        let mut errors = requests.iter().filter_map(|r| r.error.as_deref());
        errors.all(|e| e.contains(name))
    };
    ensure!(told(&old, "left"), "{:?}", errors(&old));
    ensure!(told(&new, "image"), "{:?}", errors(&new));
    Ok(())
}

fn errors(requests: &[Request]) -> Vec<&str> {
    let errors = requests.iter().filter_map(|r| r.error.as_deref());
    errors.collect()
}

/// Every request came to `before`, and from one on to `after`. Requests that were under
/// way together may be answered in any order.
fn turned(requests: &[Request], before: Outcome, after: Outcome) -> Result<()> {
    let of = |outcome| requests.iter().filter(move |r| r.outcome == outcome);
    let (earlier, later) = (of(before).count(), of(after).count());
    ensure!(
        earlier > 0 && later > 0 && earlier + later == requests.len(),
        "{earlier} {before:?} and {later} {after:?} of {}; {:?}",
        requests.len(),
        errors(requests)
    );
    let last = of(before).map(|r| r.at).fold(f64::MIN, f64::max);
    let first = of(after).map(|r| r.at).fold(f64::MAX, f64::min);
    ensure!(
        first > last - 1.0,
        "the first {after:?} was sent {:.1} s before the last {before:?}",
        last - first
    );
    Ok(())
}

/// Who waits for Ready finds the next version: every request that was sent from then on
/// came to `outcome`.
fn serves_from(ready_at: f64, requests: &[Request], outcome: Outcome) -> Result<()> {
    let late: Vec<&Request> = requests.iter().filter(|r| r.at > ready_at).collect();
    let other = late.iter().find(|r| r.outcome != outcome);
    ensure!(
        !late.is_empty() && other.is_none(),
        "of {} requests after Ready, not {outcome:?}: {other:?}",
        late.len()
    );
    Ok(())
}
