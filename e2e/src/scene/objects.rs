//! Queries of tests and demo for Lamina's objects, on any cluster.

use super::{Result, Step, poll};
use k8s_openapi::api::core::v1::Event as CoreEvent;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use lamina_crds::{ComputeNode, DnnModel, Placement, conditions};
use std::time::Duration;

/// Waits until `count` ComputeNodes are Ready.
///
/// # Errors
/// They are not in time.
pub async fn wait_nodes(client: &Client, count: usize, within: Duration) -> Result<()> {
    let api: Api<ComputeNode> = Api::all(client.clone());
    poll(&format!("{count} hosts Ready"), within, async || {
        let nodes = api.list(&ListParams::default()).await?.items;
        let ready = nodes
            .iter()
            .filter(|n| {
                n.status.as_ref().is_some_and(|s| {
                    conditions::is_true(&s.conditions, conditions::READY) && s.capacity.is_some()
                })
            })
            .count();
        Ok(if ready >= count {
            Step::Done(())
        } else {
            Step::NotYet(format!("{ready} are"))
        })
    })
    .await
}

/// The model's current state; `None` if it does not exist.
///
/// # Errors
/// The API server does not answer.
pub async fn model(client: &Client, name: &str) -> Result<Option<DnnModel>> {
    let api: Api<DnnModel> = Api::namespaced(client.clone(), "default");
    Ok(api.get_opt(name).await?)
}

/// The placement of a model; `None` if there is none.
///
/// # Errors
/// The API server does not answer.
pub async fn placement(client: &Client, model: &str) -> Result<Option<Placement>> {
    let api: Api<Placement> = Api::namespaced(client.clone(), "default");
    let all = api.list(&ListParams::default()).await?.items;
    Ok(all.into_iter().find(|p| p.spec.model == model))
}

/// Waits until a model's condition Ready is True, reporting each step once.
///
/// # Errors
/// It is not in time; the message carries the last status.
pub async fn wait_ready(
    client: &Client,
    name: &str,
    within: Duration,
    told: &mut (dyn FnMut(&str) + Send),
) -> Result<()> {
    let mut last = String::new();
    poll(&format!("{name} Ready"), within, async || {
        let model = model(client, name).await?;
        let generation = model.as_ref().and_then(|m| m.metadata.generation);
        let Some(status) = model.and_then(|m| m.status) else {
            return Ok(Step::NotYet("no status".to_owned()));
        };
        let progress = status.progress.map(|p| p.text).unwrap_or_default();
        let now = format!("{} {progress}", status.stage).trim().to_owned();
        if now != last && !now.is_empty() {
            told(&now);
            last.clone_from(&now);
        }
        // As in `kubectl wait`: conditions of an older spec do not count.
        let mut all = status.conditions.iter();
        let ready = all.find(|c| c.type_ == conditions::READY);
        let ready =
            ready.is_some_and(|c| c.status == "True" && c.observed_generation == generation);
        Ok(if ready {
            Step::Done(())
        } else {
            let why: Vec<String> = status
                .conditions
                .iter()
                .filter(|c| c.type_ == conditions::READY)
                .map(|c| format!("{}: {}", c.reason, c.message))
                .collect();
            Step::NotYet(format!("{now} {}", why.join("; ")))
        })
    })
    .await
}

/// Reason and note of every event of the namespace `default`, oldest first.
///
/// # Errors
/// The API server does not answer.
pub async fn events(client: &Client) -> Result<Vec<(String, String)>> {
    let api: Api<CoreEvent> = Api::namespaced(client.clone(), "default");
    let mut all = api.list(&ListParams::default()).await?.items;
    all.sort_by_key(|e| (e.metadata.creation_timestamp.clone(), e.name_any()));
    Ok(all
        .into_iter()
        .map(|e| (e.reason.unwrap_or_default(), e.message.unwrap_or_default()))
        .collect())
}
