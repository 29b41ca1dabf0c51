//! From this host's ComputeNode to actions: the ledger admits the wish, it is written to disk, and
//! followed.

use super::kept;
use super::ledger::{Ledger, LedgerError, LedgerFile, Wish};
use crate::blobs::Blobs;
use crate::causes::with_causes;
use crate::net::OperatorEndpoint;
use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use lamina_crds::ComputeNode;
use lamina_crds::compute_node::{Blob, Route};
use lamina_model::Digest;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// A wish that could not be applied is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// The ComputeNode as it was last seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// UID of the object; empty before it was seen.
    pub(crate) uid: String,
    /// Generation that was applied; -1 before the first.
    pub(crate) generation: i64,
    /// Conditions in the API server.
    pub(crate) conditions: Vec<Condition>,
    /// Why the wish is not fully followed.
    pub(crate) trouble: Option<String>,
}

/// Follows wishes.
pub(crate) struct Follower {
    ledger: Ledger,
    file: LedgerFile,
    slices: Slices,
    routes: Routes,
    endpoint: OperatorEndpoint,
    blobs: Arc<Blobs>,
    seen: watch::Sender<Seen>,
    /// The last wish could not be written to disk.
    is_unwritten: bool,
    /// Probes and manifests that are kept, and the task that fetches them.
    held: Vec<Blob>,
    fetching: Option<AbortOnDropHandle<()>>,
    /// Standby blobs, and the task that fetches them.
    ahead: BTreeMap<Digest, u64>,
    fetching_ahead: Option<AbortOnDropHandle<()>>,
}

impl Follower {
    /// Follows nothing yet; `ledger` is the content of `file`.
    pub(crate) fn new(
        ledger: Ledger,
        file: LedgerFile,
        serving: (Slices, Routes),
        endpoint: OperatorEndpoint,
        blobs: Arc<Blobs>,
        seen: watch::Sender<Seen>,
    ) -> Self {
        let (slices, routes) = serving;
        Self {
            ledger,
            file,
            slices,
            routes,
            endpoint,
            blobs,
            seen,
            is_unwritten: false,
            held: Vec::new(),
            fetching: None,
            ahead: BTreeMap::new(),
            fetching_ahead: None,
        }
    }

    /// Follows the ledger, as after a restart.
    pub(crate) fn resume(&mut self) {
        self.endpoint.set(&self.ledger.operator);
        // Routes first: nothing new starts on a revision whose slices are removed.
        if let Err(error) = self.routes.apply(&self.ledger.routes) {
            tracing::error!(%error, "a route cannot be followed");
        }
        self.slices.apply(&self.ledger.slices);
        self.hold();
    }

    /// Follows `objects`, which yields this host's ComputeNode on every change, for the rest of the
    /// process. Until something arrives, the last wish stays in force.
    pub(crate) async fn run(mut self, objects: impl Stream<Item = ComputeNode> + Send) {
        let mut objects = pin!(objects);
        let mut latest: Option<ComputeNode> = None;
        loop {
            let next = if self.is_unwritten {
                timeout(RETRY, objects.next()).await
            } else {
                Ok(objects.next().await)
            };
            match next {
                Ok(Some(object)) => latest = Some(object),
                Ok(None) => return,
                Err(_) => {}
            }
            if let Some(object) = &latest {
                self.take(object).await;
            }
        }
    }

    async fn take(&mut self, object: &ComputeNode) {
        let wish = wish(object);
        let is_known = wish.uid == self.ledger.uid && wish.generation == self.ledger.generation;
        let trouble = if is_known && !self.is_unwritten {
            self.seen.borrow().trouble.clone()
        } else {
            self.follow(&wish).await
        };
        self.seen.send_if_modified(|seen| {
            let new = Seen {
                uid: wish.uid,
                generation: self.ledger.generation,
                conditions: conditions(object),
                trouble,
            };
            let changed = *seen != new;
            *seen = new;
            changed
        });
    }

    /// Applies `wish`; returns why not, if it failed.
    async fn follow(&mut self, wish: &Wish) -> Option<String> {
        let (next, refusals) = self.ledger.admit(wish);
        for refusal in &refusals {
            tracing::warn!(%refusal, "not followed");
        }
        // Never do anything that a restart would not know about.
        let mut written = self.file.store(&next).await;
        if written.as_ref().is_err_and(LedgerError::is_full) {
            self.free_reserve(&next).await;
            written = self.file.store(&next).await;
        }
        self.is_unwritten = written.is_err();
        if let Err(error) = written {
            tracing::error!(error = with_causes(&error), "the wish is not followed");
            return Some(with_causes(&error));
        }
        self.ledger = next;
        self.resume();
        self.evict().await;
        (!refusals.is_empty()).then(|| {
            let all: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            all.join("; ")
        })
    }

    /// Evicts blobs that neither the present wish nor `next` names.
    async fn free_reserve(&self, next: &Ledger) {
        let mut kept = kept::digests(&self.ledger);
        kept.extend(kept::digests(next));
        self.blobs.keep(kept);
        match self.blobs.free_reserve().await {
            Ok(bytes) => tracing::warn!(bytes, "the disk is full: blobs were removed"),
            Err(error) => tracing::warn!(%error, "the disk is full, and blobs stay"),
        }
    }

    /// Keeps the ledger's blobs in the cache, and fetches those that no slice fetches.
    fn hold(&mut self) {
        let of_routes = kept::of_routes(&self.ledger.routes);
        self.blobs.keep(kept::digests(&self.ledger));
        if self.held != of_routes {
            self.held.clone_from(&of_routes);
            let fetching = kept::fetch(self.blobs.clone(), of_routes);
            self.fetching = Some(AbortOnDropHandle::new(tokio::spawn(fetching)));
        }
        let ahead = kept::ahead(&self.ledger);
        if self.ahead != ahead {
            self.ahead.clone_from(&ahead);
            self.blobs.stand_by(&ahead);
            // A blob that a slice needs now is left to it midway.
            self.fetching_ahead = None;
            if !ahead.is_empty() {
                let blobs = Arc::clone(&self.blobs);
                let fetching = async move { blobs.fetch_ahead(&ahead).await };
                self.fetching_ahead = Some(AbortOnDropHandle::new(tokio::spawn(fetching)));
            }
        }
    }

    async fn evict(&self) {
        match self.blobs.evict().await {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "blobs that nothing uses were removed"),
            Err(error) => tracing::warn!(%error, "old blobs stay"),
        }
    }
}

/// The ComputeNode `name`, from a watch of the API server.
pub(crate) fn watched(
    api: Api<ComputeNode>,
    name: &str,
) -> impl Stream<Item = ComputeNode> + Send + use<> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let objects = watcher(api, config).default_backoff().applied_objects();
    objects.filter_map(async |object| match object {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(%error, "cannot watch this host's ComputeNode; trying again");
            None
        }
    })
}

fn conditions(object: &ComputeNode) -> Vec<Condition> {
    let status = object.status.as_ref();
    status.map(|s| s.conditions.clone()).unwrap_or_default()
}

fn wish(object: &ComputeNode) -> Wish {
    Wish {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        operator: object.spec.operator.clone(),
        slices: object.spec.slices.clone(),
        routes: object
            .spec
            .routes
            .iter()
            .filter(|r| is_entry(r))
            .cloned()
            .collect(),
        standby: object.spec.standby.clone(),
    }
}

/// An operator before directories gave every host a route to each model; without revisions if the
/// host was not the entry.
fn is_entry(route: &Route) -> bool {
    route.active_revision == 0 || !route.revisions.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::BlobOptions;
    use crate::serve::engine::fake::FakeEngine;
    use crate::telemetry::Telemetry;
    use crate::testing::{route, slice};
    use lamina_crds::ComputeNodeSpec;

    fn follower(dir: &std::path::Path) -> Follower {
        let endpoint = OperatorEndpoint::default();
        let options = BlobOptions {
            dir: dir.join("blobs"),
            limit_bytes: 0,
            token_file: None,
        };
        let blobs = Blobs::open(options, endpoint.clone(), Telemetry::default());
        let blobs = Arc::new(blobs.unwrap());
        let file = LedgerFile::in_dir(dir);
        let slices = Slices::new(
            Arc::new(FakeEngine::default()),
            blobs.clone(),
            Arc::default(),
        );
        Follower::new(
            file.read().unwrap(),
            file,
            (slices, Routes::new(Arc::default())),
            endpoint,
            blobs,
            watch::Sender::default(),
        )
    }

    fn object(generation: i64, revisions: &[i64]) -> ComputeNode {
        let mut object = ComputeNode::new(
            "cam-1",
            ComputeNodeSpec {
                operator: "10.0.0.3:9000".into(),
                slices: revisions.iter().map(|r| slice("u", *r, 0)).collect(),
                routes: vec![route("u", "m", 1)],
                ..ComputeNodeSpec::default()
            },
        );
        object.metadata.uid = Some("node-uid".into());
        object.metadata.generation = Some(generation);
        object
    }

    #[tokio::test]
    async fn a_wish_is_followed_and_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut follower = follower(dir.path());
        follower.take(&object(4, &[1])).await;
        assert_eq!(follower.seen.borrow().generation, 4);
        assert_eq!(follower.slices.statuses().len(), 1);
        assert_eq!(follower.routes.find("default/m").len(), 1);
        let mut again = self::follower(dir.path());
        again.resume();
        assert_eq!(again.slices.statuses().len(), 1);
        assert!(again.routes.find("default/m")[0].active.is_some());
        assert_eq!(*again.endpoint.subscribe().borrow(), "10.0.0.3:9000");
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_the_rest_followed() {
        let dir = tempfile::tempdir().unwrap();
        let mut follower = follower(dir.path());
        follower.take(&object(4, &[2])).await;
        follower.take(&object(5, &[1, 3])).await;
        let seen = follower.seen.borrow().clone();
        assert_eq!(seen.generation, 5);
        assert!(seen.trouble.unwrap().contains("is older than 2"));
        let held: Vec<i64> = follower
            .slices
            .statuses()
            .iter()
            .map(|s| s.revision)
            .collect();
        assert_eq!(held, [3]);
        // Once the operator has seen it and asks for what is possible, all is well.
        follower.take(&object(6, &[3])).await;
        assert_eq!(follower.seen.borrow().trouble, None);
    }

    #[tokio::test]
    async fn on_a_disk_that_takes_nothing_the_last_wish_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut follower = follower(dir.path());
        follower.take(&object(4, &[1])).await;
        let good = std::mem::replace(
            &mut follower.file,
            LedgerFile::in_dir(&dir.path().join("nowhere")),
        );
        follower.take(&object(5, &[1, 2])).await;
        let seen = follower.seen.borrow().clone();
        assert_eq!(seen.generation, 4);
        assert!(seen.trouble.unwrap().contains("cannot write the ledger"));
        assert_eq!(follower.slices.statuses().len(), 1);
        follower.file = good;
        follower.take(&object(5, &[1, 2])).await;
        assert_eq!(follower.seen.borrow().generation, 5);
        assert_eq!(follower.slices.statuses().len(), 2);
    }
}
