//! Doing what was decided: server-side apply with our field manager.

use super::decision::{Change, Notice, Write};
use super::events::{self, Series};
use super::watch::{Copies, chain};
use futures::StreamExt;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use lamina_crds::{ComputeNode, DnnModel, OPERATOR_MANAGER, Placement};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// A write that takes longer is given up; the next look decides again. kube
/// itself would try for minutes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that go on at once.
const CONCURRENCY: usize = 8;

/// Why a write did not come about.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the API server refused")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
}

/// Writes to the API server and keeps the copies in step.
pub(crate) struct Executor {
    client: Client,
    models: Arc<Copies<DnnModel>>,
    placements: Arc<Copies<Placement>>,
    compute_nodes: Arc<Copies<ComputeNode>>,
    series: Mutex<Series>,
    reporter: String,
}

impl Executor {
    /// `reporter` names this process in Events.
    pub(crate) fn new(
        client: Client,
        models: Arc<Copies<DnnModel>>,
        placements: Arc<Copies<Placement>>,
        compute_nodes: Arc<Copies<ComputeNode>>,
        reporter: String,
    ) -> Self {
        Self {
            client,
            models,
            placements,
            compute_nodes,
            series: Mutex::default(),
            reporter,
        }
    }

    /// Carries out every write; returns how many succeeded. Those that fail are
    /// logged and decided again later.
    pub(crate) async fn run(&self, writes: Vec<Write>) -> usize {
        futures::stream::iter(writes)
            .map(|write| self.one(write))
            .buffer_unordered(CONCURRENCY)
            .filter(|done| std::future::ready(*done))
            .count()
            .await
    }

    async fn one(&self, write: Write) -> bool {
        let done = match tokio::time::timeout(WRITE_TIMEOUT, self.change(&write.change)).await {
            Ok(done) => done,
            Err(_) => Err(WriteError::Timeout),
        };
        if let Err(error) = done {
            tracing::warn!(what = describe(&write.change), error = %chain(&error), "write failed; deciding again");
            return false;
        }
        for notice in &write.events {
            self.publish(notice).await;
        }
        write.change != Change::Nothing
    }

    async fn change(&self, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::ComputeNode { name, owner, spec } => {
                let body = object::<ComputeNode>(None, name, None, Some(owner), "spec", spec);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.compute_nodes.observe(apply(&api, name, body).await?);
            }
            Change::ComputeNodeConditions { name, conditions } => {
                let status = json!({ "conditions": conditions });
                let body = object::<ComputeNode>(None, name, None, None, "status", &status);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.compute_nodes
                    .observe(apply_status(&api, name, body).await?);
            }
            Change::Placement {
                namespace,
                name,
                uid,
                owner,
                spec,
            } => {
                let body = object::<Placement>(
                    Some(namespace),
                    name,
                    uid.as_deref(),
                    Some(owner),
                    "spec",
                    spec,
                );
                let api = Api::<Placement>::namespaced(self.client.clone(), namespace);
                self.placements.observe(apply(&api, name, body).await?);
            }
            Change::PlacementStatus {
                namespace,
                name,
                uid,
                status,
            } => {
                let body =
                    object::<Placement>(Some(namespace), name, Some(uid), None, "status", status);
                let api = Api::<Placement>::namespaced(self.client.clone(), namespace);
                self.placements
                    .observe(apply_status(&api, name, body).await?);
            }
            Change::ModelStatus {
                namespace,
                name,
                uid,
                status,
            } => {
                let body =
                    object::<DnnModel>(Some(namespace), name, Some(uid), None, "status", status);
                let api = Api::<DnnModel>::namespaced(self.client.clone(), namespace);
                self.models.observe(apply_status(&api, name, body).await?);
            }
            Change::DeletePlacement {
                namespace,
                name,
                uid,
            } => {
                self.delete_placement(namespace, name, uid).await?;
            }
            Change::Nothing => {}
        }
        Ok(())
    }

    async fn delete_placement(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<(), WriteError> {
        let api = Api::<Placement>::namespaced(self.client.clone(), namespace);
        let only = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        match api.delete(name, &only).await {
            Ok(_) => {}
            // Somebody else, the garbage collector for one, was faster.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
        self.placements.remove(namespace, name, uid);
        Ok(())
    }

    /// Publishes one Event. One that is lost is logged: nothing depends on it.
    async fn publish(&self, notice: &Notice) {
        tracing::info!(
            kind = notice.regarding.kind,
            namespace = notice.regarding.namespace,
            name = notice.regarding.name,
            reason = notice.reason,
            "{}",
            notice.note
        );
        let mut series = self.series.lock().await;
        let event = series.event(notice, &self.reporter, Timestamp::now());
        let api =
            Api::<Event>::namespaced(self.client.clone(), events::namespace(&notice.regarding));
        let written = async {
            if event.series.is_some() {
                let name = event.metadata.name.clone().unwrap_or_default();
                let patch = Patch::Merge(json!({ "series": event.series }));
                api.patch(&name, &PatchParams::default(), &patch).await
            } else {
                api.create(&PostParams::default(), &event).await
            }
        };
        let error = match tokio::time::timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => WriteError::Timeout.to_string(),
        };
        series.forget(notice);
        tracing::warn!(
            reason = notice.reason,
            error,
            "event could not be published"
        );
    }
}

/// The object as server-side apply takes it: what we own and nothing else. With
/// `uid` it never makes a new object out of one that is gone.
fn object<K: Resource<DynamicType = ()>>(
    namespace: Option<&str>,
    name: &str,
    uid: Option<&str>,
    owner: Option<&OwnerReference>,
    part: &str,
    content: &impl Serialize,
) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    if let Some(owner) = owner {
        metadata["ownerReferences"] = json!([owner]);
        metadata["labels"] = json!({ "app.kubernetes.io/managed-by": OPERATOR_MANAGER });
    }
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": metadata,
        part: content,
    })
}

fn params() -> PatchParams {
    PatchParams::apply(OPERATOR_MANAGER).force()
}

async fn apply<K>(api: &Api<K>, name: &str, body: Value) -> Result<K, WriteError>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    Ok(api.patch(name, &params(), &Patch::Apply(body)).await?)
}

async fn apply_status<K>(api: &Api<K>, name: &str, body: Value) -> Result<K, WriteError>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    Ok(api
        .patch_status(name, &params(), &Patch::Apply(body))
        .await?)
}

fn describe(change: &Change) -> String {
    match change {
        Change::ComputeNode { name, .. } => format!("ComputeNode {name}"),
        Change::ComputeNodeConditions { name, .. } => format!("status of ComputeNode {name}"),
        Change::Placement {
            namespace, name, ..
        } => format!("Placement {namespace}/{name}"),
        Change::PlacementStatus {
            namespace, name, ..
        } => format!("status of Placement {namespace}/{name}"),
        Change::DeletePlacement {
            namespace, name, ..
        } => format!("removal of Placement {namespace}/{name}"),
        Change::ModelStatus {
            namespace, name, ..
        } => format!("status of DnnModel {namespace}/{name}"),
        Change::Nothing => "nothing".to_owned(),
    }
}
