//! Hosts that are not Nodes: machines without a kubelet, which join by a one-time token and cannot
//! reach the API server. Their specs and reports go over their session.

mod judge;
pub(crate) mod report;

pub use judge::HostRefusal;

use crate::kube::objects::Objects;
use judge::{Known, Use};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use lamina_crds::compute_node::Joined;
use lamina_crds::{ComputeNode, ComputeNodeSpec, ComputeNodeStatus, OPERATOR_MANAGER};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// A write that takes longer has failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often recording the use of a token is retried if the object changed meanwhile, and the pause
/// for its copy to arrive.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(200);

/// The known hosts that are not Nodes. Clones share it.
#[derive(Clone)]
pub struct Hosts(Arc<Shared>);

struct Shared {
    objects: Objects,
    client: Client,
    /// Notifies sessions that their host's object may have changed.
    changed: watch::Sender<()>,
    reports: Mutex<BTreeMap<String, ComputeNodeStatus>>,
    reported: Notify,
}

impl Hosts {
    /// Those among `objects`; uses of tokens are recorded with `client`.
    pub(crate) fn new(objects: Objects, client: Client) -> Self {
        Self(Arc::new(Shared {
            objects,
            client,
            changed: watch::Sender::new(()),
            reports: Mutex::default(),
            reported: Notify::new(),
        }))
    }

    /// Whether the holder of the token with this SHA-256 may become the host `name`, as far as
    /// that can be decided before its message is read.
    ///
    /// # Errors
    /// See [`HostRefusal`].
    pub(crate) fn by_token(&self, name: &str, token: &str) -> Result<(), HostRefusal> {
        let judge = |known: Known<'_>| known.by_token(token, None, Timestamp::now());
        self.judged(name, judge).map(drop)
    }

    /// Whether the holder of a certificate for this join is the host `name`. Returns the
    /// SHA-256 of the join's token.
    ///
    /// # Errors
    /// See [`HostRefusal`].
    pub(crate) fn by_certificate(&self, name: &str, join: &str) -> Result<String, HostRefusal> {
        self.judged(name, |known| known.by_certificate(join))
    }

    /// Whether a machine has joined as `name`.
    pub(crate) fn is_joined(&self, name: &str) -> bool {
        let object = self.0.objects.compute_nodes.get("", name);
        object.is_some_and(|object| object.is_joined())
    }

    fn judged<T>(
        &self,
        name: &str,
        judge: impl FnOnce(Known<'_>) -> Result<T, HostRefusal>,
    ) -> Result<T, HostRefusal> {
        let objects = &self.0.objects;
        // While the lists are incomplete, absence proves nothing.
        if !objects.compute_nodes.is_complete() || !objects.nodes.is_complete() {
            return Err(HostRefusal::NotYet);
        }
        let object = objects.compute_nodes.get("", name);
        judge(Known {
            name,
            object: object.as_deref(),
            is_node: objects.nodes.get("", name).is_some(),
        })
    }

    /// Records that the machine whose public key has the SHA-256 `key` used the token with
    /// the SHA-256 `token`: if two show it, one succeeds.
    ///
    /// # Errors
    /// See [`HostRefusal`].
    pub(crate) async fn use_token(
        &self,
        name: &str,
        token: &str,
        key: &str,
    ) -> Result<(), HostRefusal> {
        let now = Timestamp::now();
        let mut last: Box<dyn std::error::Error + Send + Sync> = "it changes all the time".into();
        for _ in 0..TRIES {
            let found = self.judged(name, |known| {
                let used = known.by_token(token, Some(key), now)?;
                let object = known.object.map(|object| &object.metadata);
                Ok((used, object.cloned().unwrap_or_default()))
            });
            let (used, object) = found?;
            if used == Use::Again {
                return Ok(());
            }
            let joined = Joined {
                token_sha256: token.to_owned(),
                key_sha256: key.to_owned(),
                at: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            };
            match self.write_down(name, &object, &joined).await {
                Ok(written) => {
                    self.0.objects.compute_nodes.observe(written);
                    tracing::info!(host = name, "a machine that is no Node joins");
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.is_conflict() => {
                    last = Box::new(kube::Error::Api(status));
                }
                Err(error) => return Err(HostRefusal::Unavailable(Box::new(error))),
            }
            // There was another write; the copy will show it in a moment.
            tokio::time::sleep(PAUSE).await;
        }
        Err(HostRefusal::Unavailable(last))
    }

    /// Fails if the object has changed since it was `seen`.
    async fn write_down(
        &self,
        name: &str,
        seen: &ObjectMeta,
        joined: &Joined,
    ) -> Result<ComputeNode, kube::Error> {
        let api = Api::<ComputeNode>::all(self.0.client.clone());
        let patch = json!({
            "metadata": { "uid": seen.uid, "resourceVersion": seen.resource_version },
            "status": { "joined": joined },
        });
        let params = PatchParams {
            field_manager: Some(OPERATOR_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let writing = api.patch_status(name, &params, &patch);
        match tokio::time::timeout(WRITE_TIMEOUT, writing).await {
            Ok(written) => written,
            Err(late) => Err(kube::Error::Service(Box::new(late))),
        }
    }

    /// The address at which other hosts reach `name`, if its join gives one.
    pub(crate) fn address(&self, name: &str) -> Option<IpAddr> {
        let object = self.0.objects.compute_nodes.get("", name)?;
        let address = object.spec.join.as_ref()?.address.as_ref()?;
        address.parse().ok()
    }

    /// The object for the host `name`, in JSON, without fields that are not for it.
    pub(crate) fn wish(&self, name: &str) -> Option<Vec<u8>> {
        let object = self.0.objects.compute_nodes.get("", name)?;
        serde_json::to_vec(&told(&object)).ok()
    }

    /// Tells sessions to check their host's object.
    pub(crate) fn touch(&self) {
        self.0.changed.send_replace(());
    }

    /// Subscribes to [`Hosts::touch`].
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Handles a report of the host `name` at `address`.
    pub(crate) fn report(&self, name: &str, address: &str, json: &[u8]) {
        let Some(status) = report::taken(json, address) else {
            tracing::warn!(
                host = name,
                bytes = json.len(),
                "what it reports is no report"
            );
            return;
        };
        self.reports().insert(name.to_owned(), status);
        self.0.reported.notify_one();
    }

    async fn reported(&self) {
        self.0.reported.notified().await;
    }

    fn take_reports(&self) -> BTreeMap<String, ComputeNodeStatus> {
        std::mem::take(&mut *self.reports())
    }

    /// Whether there are reports to write.
    #[cfg(test)]
    pub(crate) fn has_reports(&self) -> bool {
        !self.reports().is_empty()
    }

    /// Writes it later, unless there is a newer one.
    fn put_back(&self, name: String, status: ComputeNodeStatus) {
        self.reports().entry(name).or_insert(status);
        self.0.reported.notify_one();
    }

    fn reports(&self) -> MutexGuard<'_, BTreeMap<String, ComputeNodeStatus>> {
        // Every change is a single step, so it is intact even after a panic elsewhere.
        self.0
            .reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of `object` that its host receives.
fn told(object: &ComputeNode) -> ComputeNode {
    let meta = &object.metadata;
    let conditions = object.status.as_ref().map(|s| s.conditions.clone());
    ComputeNode {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            generation: meta.generation,
            ..ObjectMeta::default()
        },
        spec: ComputeNodeSpec {
            join: None,
            ..object.spec.clone()
        },
        status: Some(ComputeNodeStatus {
            conditions: report::of_agent(conditions.unwrap_or_default()),
            ..ComputeNodeStatus::default()
        }),
    }
}

impl std::fmt::Debug for Hosts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hosts(…)")
    }
}
