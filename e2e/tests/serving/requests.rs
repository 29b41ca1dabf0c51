//! Requests that the servers must refuse, and hosts that are not the entry.

use crate::good::photographs;
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::Scene;
use lamina_e2e::workload::{Health, Line, Refusal};
use std::time::Duration;

/// Case, gRPC status, and what the message must name.
const REFUSALS: [(&str, &str, &[&str]); 8] = [
    ("wrong model", "NOT_FOUND", &["no-such-model"]),
    ("wrong name", "INVALID_ARGUMENT", &["picture", "image"]),
    (
        "wrong datatype",
        "INVALID_ARGUMENT",
        &["image", "FP32", "INT64"],
    ),
    (
        "wrong rank",
        "INVALID_ARGUMENT",
        &["image", "[-1, 3, 224, 224]", "[3, 224, 224]"],
    ),
    (
        "wrong shape",
        "INVALID_ARGUMENT",
        &["image", "[1, 3, 224, 225]"],
    ),
    (
        "wrong size",
        "INVALID_ARGUMENT",
        &["image", "602112", "602108"],
    ),
    ("no input", "INVALID_ARGUMENT", &["image"]),
    ("input twice", "INVALID_ARGUMENT", &["image"]),
];

pub(crate) async fn malformed_requests_are_refused_by_name(scene: &Scene) -> Result<()> {
    let client = scene.client("cam-1", "malformed", "mobilenet-v2", &[])?;
    let lines = client.finish(Duration::from_secs(60)).await?;
    let refusals: Vec<&Refusal> = lines
        .iter()
        .filter_map(|l| match l {
            Line::Refusal(r) => Some(r),
            _ => None,
        })
        .collect();
    for (case, code, names) in REFUSALS {
        let refusal = refusals.iter().find(|r| r.case == case).context(case)?;
        ensure!(refusal.code == code, "{refusal:?}");
        for name in names {
            ensure!(refusal.details.contains(name), "lacks {name}: {refusal:?}");
        }
    }
    let health = lines.iter().find_map(|l| match l {
        Line::Health(h) => Some(*h),
        _ => None,
    });
    let wanted = Health {
        live: true,
        ready: true,
        model: true,
        unknown: false,
    };
    ensure!(health == Some(wanted), "{health:?}");
    // The agent serves on as before.
    photographs(scene, "cam-1", "mobilenet-v2").await?;
    Ok(())
}

pub(crate) async fn any_agent_takes_any_model(scene: &Scene) -> Result<()> {
    let named = photographs(scene, "edge-2", "mobilenet-v2").await?;
    ensure!(
        named.iter().all(|p| p.path.starts_with("cam-1[")),
        "{named:?}"
    );
    Ok(())
}
