//! Carries out decisions: server-side apply with our field manager.

use crate::kube::lenient::Lenient;
use crate::kube::objects::Objects;
use crate::kube::publish::Publisher;
use crate::kube::retry::{Owed, Retries, Target};
use crate::lease::Tenure;
use crate::state::decision::{Change, Haste, Holder, Write};
use crate::state::ids::ObjectId;
use crate::state::notice::Notice;
use crate::text::with_causes;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, Resource};
use lamina_crds::{ComputeNode, DnnModel, OPERATOR_MANAGER, Placement};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A write that takes longer is abandoned; the next look decides again. kube itself would try for
/// minutes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent writes.
const CONCURRENCY: usize = 16;
/// Most objects written per look: the next look decides the rest again, so that a burst of a
/// thousand does not delay writes that requests wait for.
const OBJECTS_A_LOOK: usize = 64;
/// Sustained writes per second, and the size of a burst.
const WRITES_A_SECOND: f64 = 100.0;
const BURST: f64 = 200.0;
/// Part of the burst that reports leave to plans and steps.
const RESERVE: f64 = 100.0;

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    // kube prints the whole answer, field by field.
    #[error("the API server refused ({code} {reason}): {message}")]
    Refused {
        code: u16,
        reason: String,
        message: String,
    },
    #[error("the API server could not be reached")]
    Api(#[source] kube::Error),
    #[error("the API server did not answer within {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the lease was not renewed: another process may be leader by now")]
    NotLeading,
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

/// Writes to the API server and updates the local copies.
pub(crate) struct Executor {
    client: Client,
    objects: Objects,
    publisher: Publisher,
    retries: Retries,
    owed: Owed,
    budget: Budget,
    /// Objects whose writes were deferred, and since when.
    left_out: BTreeMap<Target, Instant>,
    /// Until when this process may write.
    tenure: Tenure,
    /// A request of this look timed out: start no others, since each would take as long.
    is_away: AtomicBool,
}

/// The result of one look's writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Writes that succeeded.
    pub written: u64,
    /// Objects with a write that failed.
    pub failed: u64,
    /// Some were deferred, for the next look to decide again.
    pub is_cut: bool,
}

impl Executor {
    /// `reporter` names this process in Events, `tenure` says until when it may write.
    pub(crate) fn new(client: Client, objects: Objects, reporter: String, tenure: Tenure) -> Self {
        Self {
            tenure,
            publisher: Publisher::new(client.clone(), reporter),
            client,
            objects,
            retries: Retries::default(),
            owed: Owed::default(),
            budget: Budget::new(Instant::now()),
            left_out: BTreeMap::new(),
            is_away: AtomicBool::new(false),
        }
    }

    /// Carries out all writes, those of one object in order. Failures are logged; a later look
    /// decides them again, after a pause.
    pub(crate) async fn run(&mut self, writes: Vec<Write>) -> Outcome {
        let now = Instant::now();
        let due = self.due(writes, now);
        let (groups, is_cut) = self.affordable(due, now);
        self.is_away.store(false, Ordering::Relaxed);
        let this = &*self;
        let done: Vec<Done> = futures::stream::iter(groups)
            .map(|(target, writes)| this.group(target, writes))
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        let mut outcome = Outcome {
            is_cut,
            ..Outcome::default()
        };
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

    /// Publishes the remaining Events.
    pub(crate) async fn finish(self) {
        self.publisher.finish().await;
    }

    /// When deferred writes may be tried again.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        self.retries.next(Instant::now())
    }

    /// The writes that may be tried now, by object, with the Events owed to each.
    fn due(&mut self, writes: Vec<Write>, now: Instant) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut places: BTreeMap<Target, usize> = BTreeMap::new();
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
            match places.get(known) {
                Some(&place) => groups[place].1.push(write),
                None => {
                    places.insert(known.clone(), groups.len());
                    groups.push((target, vec![write]));
                }
            }
        }
        groups
    }

    /// The groups within the budget, and whether any was deferred: the most urgent first, then
    /// those that have waited longest. The Events of deferred writes are published later.
    fn affordable(&mut self, mut groups: Vec<Group>, now: Instant) -> (Vec<Group>, bool) {
        let before = std::mem::take(&mut self.left_out);
        let since = |target: &Target| before.get(target).copied().unwrap_or(now);
        groups.sort_by_cached_key(|(target, writes)| {
            let waits_since = target.as_ref().map_or(now, since);
            (haste(writes), waits_since)
        });
        let mut let_through = Vec::new();
        let mut is_cut = false;
        for (target, writes) in groups {
            let count = writes
                .iter()
                .filter(|w| w.change != Change::Nothing)
                .count();
            let is_free = count == 0;
            let has_room = let_through.len() < OBJECTS_A_LOOK;
            if is_free || has_room && self.budget.take(count, haste(&writes), now) {
                let_through.push((target, writes));
                continue;
            }
            is_cut = true;
            if let Some(target) = target {
                let events = writes.into_iter().flat_map(|w| w.events).collect();
                self.left_out.insert(target.clone(), since(&target));
                self.owed.keep(target, events, now);
            }
        }
        (let_through, is_cut)
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
            done.written += u64::from(write.change != Change::Nothing);
            for notice in write.events {
                self.publisher.tell(notice);
            }
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
        // A forced write must never overwrite a new leader's.
        let left = self
            .tenure
            .until()
            .map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.filter(|left| !left.is_zero());
        let left = left.ok_or(WriteError::NotLeading)?;
        tokio::time::timeout(WRITE_TIMEOUT.min(left), request)
            .await
            .unwrap_or_else(|_| {
                self.is_away.store(true, Ordering::Relaxed);
                Err(WriteError::Timeout)
            })
    }

    async fn change(&self, change: &Change) -> Result<(), WriteError> {
        match change {
            Change::ComputeNode { name, of, spec } => {
                let (id, owner) = held(name, of);
                let body = object::<ComputeNode>(&id, owner, "spec", spec);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.objects
                    .compute_nodes
                    .observe(apply(&api, name, body).await?);
            }
            Change::ComputeNodeConditions { name, conditions } => {
                let status = json!({ "conditions": conditions });
                let body = object::<ComputeNode>(&unnamed(name), None, "status", &status);
                let api = Api::<ComputeNode>::all(self.client.clone());
                self.objects
                    .compute_nodes
                    .observe(apply_status(&api, name, body).await?);
            }
            Change::Placement { id, owner, spec } => {
                let body = object::<Placement>(id, Some(owner), "spec", spec);
                let api = Api::<Placement>::namespaced(self.client.clone(), &id.namespace);
                self.objects
                    .placements
                    .observe(apply(&api, &id.name, body).await?);
            }
            Change::PlacementStatus { id, status } => {
                let body = object::<Placement>(id, None, "status", status);
                let api = Api::<Placement>::namespaced(self.client.clone(), &id.namespace);
                self.objects
                    .placements
                    .observe(apply_status(&api, &id.name, body).await?);
            }
            Change::ModelStatus { id, status } => {
                let body = object::<DnnModel>(id, None, "status", status);
                // Also for a model that cannot be read: people need to see why.
                let api = Api::<Lenient<DnnModel>>::namespaced(self.client.clone(), &id.namespace);
                self.objects
                    .models
                    .observe_any(apply_status(&api, &id.name, body).await?);
            }
            Change::DeletePlacement { id } => self.delete_placement(id).await?,
            Change::Nothing => {}
        }
        Ok(())
    }

    async fn delete_placement(&self, id: &ObjectId) -> Result<(), WriteError> {
        let api = Api::<Placement>::namespaced(self.client.clone(), &id.namespace);
        let only = DeleteParams::background().preconditions(Preconditions {
            uid: Some(id.uid.clone()),
            resource_version: None,
        });
        match api.delete(&id.name, &only).await {
            Ok(_) => {}
            // Another writer, such as the garbage collector, was faster.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
        self.objects
            .placements
            .remove(&id.namespace, &id.name, &id.uid);
        Ok(())
    }
}

/// The writes of one object, in order; those that only publish Events have no object.
type Group = (Option<Target>, Vec<Write>);

/// The urgency of these writes.
fn haste(writes: &[Write]) -> Haste {
    let all = writes.iter().map(|w| w.haste);
    all.min().unwrap_or(Haste::Report)
}

/// Budget of writes: a rate per second, and a burst.
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    const fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            at: now,
        }
    }

    /// Takes `count` writes, if available; reports leave a reserve.
    fn take(&mut self, count: usize, haste: Haste, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * WRITES_A_SECOND).min(BURST);
        self.at = now;
        let least = match haste {
            Haste::Plan | Haste::Step => 0.0,
            Haste::Report => RESERVE,
        };
        let left = self.tokens - count as f64;
        if left < least {
            return false;
        }
        self.tokens = left;
        true
    }
}

/// The result of the writes of one object.
struct Done {
    target: Option<Target>,
    written: u64,
    failed: bool,
    untold: Vec<Notice>,
}

/// A host's object, and its owner.
fn held<'a>(name: &str, of: &'a Holder) -> (ObjectId, Option<&'a OwnerReference>) {
    match of {
        Holder::Node(owner) => (unnamed(name), Some(owner)),
        Holder::Join(uid) => {
            let uid = uid.clone();
            (
                ObjectId {
                    uid,
                    ..unnamed(name)
                },
                None,
            )
        }
    }
}

/// A host's object: it has no namespace, and any UID will do.
fn unnamed(name: &str) -> ObjectId {
    ObjectId {
        name: name.to_owned(),
        ..ObjectId::default()
    }
}

/// The object for server-side apply: only the fields we own. With a UID it never recreates a
/// deleted object.
fn object<K: Resource<DynamicType = ()>>(
    id: &ObjectId,
    owner: Option<&OwnerReference>,
    part: &str,
    content: &impl Serialize,
) -> Value {
    let mut metadata = json!({ "name": id.name });
    if !id.namespace.is_empty() {
        metadata["namespace"] = json!(id.namespace);
    }
    if !id.uid.is_empty() {
        metadata["uid"] = json!(id.uid);
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
    let named = |id: &ObjectId| format!("{}/{}", id.namespace, id.name);
    match change {
        Change::ComputeNode { name, .. } => format!("ComputeNode {name}"),
        Change::ComputeNodeConditions { name, .. } => format!("status of ComputeNode {name}"),
        Change::Placement { id, .. } => format!("Placement {}", named(id)),
        Change::PlacementStatus { id, .. } => format!("status of Placement {}", named(id)),
        Change::DeletePlacement { id } => format!("removal of Placement {}", named(id)),
        Change::ModelStatus { id, .. } => format!("status of DnnModel {}", named(id)),
        Change::Nothing => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests;
