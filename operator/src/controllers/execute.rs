//! Doing what was decided: server-side apply with our field manager.

use super::decision::{Change, Notice, Write};
use super::events::{self, Series};
use super::objects::Objects;
use super::retry::{Owed, Retries, Target};
use crate::text::with_causes;
use futures::StreamExt;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, Resource};
use lamina_crds::{ComputeNode, DnnModel, OPERATOR_MANAGER, Placement};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A write that takes longer is given up; the next look decides again. kube
/// itself would try for minutes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes that go on at once.
const CONCURRENCY: usize = 8;

/// Why a write did not come about.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    // kube prints the whole answer, field by field.
    #[error("the API server refused ({code} {reason}): {message}")]
    Refused {
        code: u16,
        reason: String,
        message: String,
    },
    #[error("the API server could not be asked")]
    Api(#[source] kube::Error),
    #[error("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused {
                code: status.code,
                reason: status.reason.clone(),
                message: status.message.clone(),
            },
            other => Self::Api(other),
        }
    }
}

/// Writes to the API server and keeps the copies in step.
pub(crate) struct Executor {
    client: Client,
    objects: Objects,
    series: Mutex<Series>,
    retries: Retries,
    owed: Owed,
    reporter: String,
    /// A request of this look timed out: none of the others is begun, for each
    /// would take as long.
    is_away: AtomicBool,
}

/// What became of the writes of one look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Writes that succeeded.
    pub written: u64,
    /// Objects with a write that failed.
    pub failed: u64,
}

impl Executor {
    /// `reporter` names this process in Events.
    pub(crate) fn new(client: Client, objects: Objects, reporter: String) -> Self {
        Self {
            client,
            objects,
            series: Mutex::default(),
            retries: Retries::default(),
            owed: Owed::default(),
            reporter,
            is_away: AtomicBool::new(false),
        }
    }

    /// Carries out every write, those of one object in their order. What fails is
    /// logged, decided again by a later look, and put off for a while then.
    pub(crate) async fn run(&mut self, writes: Vec<Write>) -> Outcome {
        let now = Instant::now();
        let groups = self.due(writes, now);
        self.is_away.store(false, Ordering::Relaxed);
        let this = &*self;
        let done: Vec<Done> = futures::stream::iter(groups)
            .map(|(target, writes)| this.group(target, writes))
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let mut outcome = Outcome::default();
        for one in done {
            outcome.written += one.written;
            let Some(target) = one.target else { continue };
            if one.failed {
                outcome.failed += 1;
                self.owed.keep(target.clone(), one.untold, now);
                self.retries.failed(target, Instant::now());
            } else {
                self.retries.succeeded(&target);
            }
        }
        outcome
    }

    /// When what was put off may be tried again.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.retries.next(Instant::now())
    }

    /// The writes that may be tried now, by object, with the Events owed to each.
    fn due(&mut self, writes: Vec<Write>, now: Instant) -> Vec<(Option<Target>, Vec<Write>)> {
        let mut groups: Vec<(Option<Target>, Vec<Write>)> = Vec::new();
        for mut write in writes {
            let target = Target::of(&write.change);
            let Some(known) = &target else {
                groups.push((None, vec![write]));
                continue;
            };
            if !self.retries.may(known, now) {
                self.owed.keep(known.clone(), write.events, now);
                continue;
            }
            write.events = self.owed.with(known, write.events);
            match groups.iter_mut().find(|(t, _)| *t == target) {
                Some((_, of_it)) => of_it.push(write),
                None => groups.push((target, vec![write])),
            }
        }
        groups
    }

    async fn group(&self, target: Option<Target>, writes: Vec<Write>) -> Done {
        let mut done = Done {
            target,
            written: 0,
            failed: false,
            untold: Vec::new(),
        };
        for write in writes {
            if !done.failed {
                done.failed = !self.one(&write).await;
            }
            if done.failed {
                done.untold.extend(write.events);
                continue;
            }
            for notice in &write.events {
                self.publish(notice).await;
            }
            done.written += u64::from(write.change != Change::Nothing);
        }
        done
    }

    async fn one(&self, write: &Write) -> bool {
        let done = self.in_time(self.change(&write.change)).await;
        if let Err(error) = &done {
            tracing::warn!(
                what = describe(&write.change),
                error = with_causes(error),
                "write failed; deciding again"
            );
        }
        done.is_ok()
    }

    async fn in_time<T>(
        &self,
        request: impl Future<Output = Result<T, WriteError>>,
    ) -> Result<T, WriteError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(WriteError::Timeout);
        }
        tokio::time::timeout(WRITE_TIMEOUT, request)
            .await
            .unwrap_or_else(|_| {
                self.is_away.store(true, Ordering::Relaxed);
                Err(WriteError::Timeout)
            })
    }

    async fn change(&self, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::ComputeNode { name, owner, spec } => {
                let body = object::<ComputeNode>(None, name, None, Some(owner), "spec", spec);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.objects
                    .compute_nodes
                    .observe(apply(&api, name, body).await?);
            }
            Change::ComputeNodeConditions { name, conditions } => {
                let status = json!({ "conditions": conditions });
                let body = object::<ComputeNode>(None, name, None, None, "status", &status);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.objects
                    .compute_nodes
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
                self.objects
                    .placements
                    .observe(apply(&api, name, body).await?);
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
                self.objects
                    .placements
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
                self.objects
                    .models
                    .observe(apply_status(&api, name, body).await?);
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
        self.objects.placements.remove(namespace, name, uid);
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
                api.patch(&name, &PatchParams::default(), &patch).await?;
            } else {
                api.create(&PostParams::default(), &event).await?;
            }
            Ok(())
        };
        let Err(error) = self.in_time(written).await else {
            return;
        };
        let error = with_causes(&error);
        series.forget(notice);
        tracing::warn!(
            reason = notice.reason,
            error,
            "event could not be published"
        );
    }
}

/// What became of the writes of one object.
struct Done {
    target: Option<Target>,
    written: u64,
    failed: bool,
    untold: Vec<Notice>,
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

#[cfg(test)]
mod tests;
