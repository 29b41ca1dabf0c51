//! Models that are served correctly.

use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::Scene;
use lamina_e2e::workload::{Line, Photograph};
use std::time::Duration;

/// Applies an example and waits until it is Ready.
pub(crate) async fn serve(scene: &Scene, name: &str) -> Result<()> {
    scene.apply(&scene.example(name)?).await?;
    let mut steps = Vec::new();
    scene
        .wait_ready(name, Duration::from_secs(180), &mut |s| {
            steps.push(s.to_owned());
        })
        .await
        .with_context(|| format!("steps so far: {steps:?}"))
}

pub(crate) async fn photographs(scene: &Scene, host: &str, model: &str) -> Result<Vec<Photograph>> {
    named(scene, host, model, model).await
}

/// Like [`photographs`], for a copy of the network `reference` under another name.
pub(crate) async fn named(
    scene: &Scene,
    host: &str,
    model: &str,
    reference: &str,
) -> Result<Vec<Photograph>> {
    let reference = [format!("--reference={reference}")];
    let client = scene.client(host, "photographs", model, &reference)?;
    let lines = client.finish(Duration::from_secs(120)).await?;
    let named: Vec<Photograph> = lines
        .into_iter()
        .filter_map(|l| match l {
            Line::Photograph(p) => Some(p),
            _ => None,
        })
        .collect();
    ensure!(named.len() == 3, "{} photographs answered", named.len());
    for p in &named {
        ensure!(
            p.max_abs_diff <= 1e-4,
            "{}: {} from PyTorch's answer",
            p.name,
            p.max_abs_diff
        );
        ensure!(p.label == p.torch_label, "{p:?}");
    }
    Ok(named)
}

pub(crate) async fn mobilenet_is_served_as_pytorch_answers(scene: &Scene) -> Result<()> {
    serve(scene, "mobilenet-v2").await?;
    let named = photographs(scene, "cam-1", "mobilenet-v2").await?;
    ensure!(
        named.iter().any(|p| p.label == "military uniform"),
        "{named:?}"
    );
    for p in &named {
        let hosts: std::collections::BTreeSet<&str> = p
            .timing
            .iter()
            .filter(|h| h.compute_us > 0)
            .map(|h| h.node.as_str())
            .collect();
        ensure!(
            hosts.contains("cam-1") && hosts.len() >= 2,
            "computed on {hosts:?}"
        );
    }
    let placement = scene
        .placement("mobilenet-v2")
        .await?
        .context("no placement")?;
    let status = placement.status.context("no status")?;
    ensure!(status.path.starts_with("cam-1[0-"), "{}", status.path);
    ensure!(
        status.observed_generation == placement.metadata.generation.unwrap_or(0),
        "kstatus"
    );
    let columns = scene.lab.kubectl(&["get", "dnn", "mobilenet-v2"]).await?;
    for wanted in ["True", "Serving", "33", "optimal"] {
        ensure!(columns.contains(wanted), "lacks {wanted}: {columns}");
    }
    Ok(())
}

pub(crate) async fn googlenet_is_served(scene: &Scene) -> Result<()> {
    serve(scene, "googlenet").await?;
    photographs(scene, "cam-2", "googlenet").await?;
    scene
        .lab
        .kubectl(&["delete", "dnn", "googlenet", "--wait=true"])
        .await?;
    Ok(())
}
