//! Writes this host's report into its ComputeNode's status.

use super::follow::Seen;
use super::report::{self, Facts};
use crate::blobs::Blobs;
use crate::measure::memory_free_bytes;
use crate::net::Trust;
use crate::serve::access::AuthMode;
use crate::serve::engine::Engine;
use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use crate::uplink::Uplink;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use lamina_crds::compute_node::Capacity;
use lamina_crds::{AGENT_MANAGER, ComputeNode, ComputeNodeStatus};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(50);
/// Free memory by itself is written this often.
const MEMORY_EVERY: Duration = Duration::from_secs(30);
/// A write that takes longer has failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// The destination of reports.
pub(crate) enum Reports {
    /// To the API server.
    Api(Box<Api<ComputeNode>>),
    /// To the operator, which writes them.
    Session(Uplink),
}

/// Reports for the rest of the process.
pub(crate) struct Publisher {
    pub(crate) to: Reports,
    pub(crate) node: String,
    pub(crate) address: String,
    pub(crate) slices: Slices,
    pub(crate) routes: Routes,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) capacity: Capacity,
    pub(crate) trust: Trust,
    pub(crate) auth: AuthMode,
    pub(crate) seen: watch::Receiver<Seen>,
    /// Notified when slices or routes change, or a worker crashed.
    pub(crate) changed: Arc<Notify>,
}

/// The last written status, and its object.
#[derive(Default)]
struct Written {
    uid: String,
    status: Option<ComputeNodeStatus>,
    at: Option<Instant>,
}

impl Publisher {
    /// Reports whenever something changes.
    pub(crate) async fn run(mut self) {
        let mut written = Written::default();
        loop {
            let is_there = !self.seen.borrow().uid.is_empty();
            let wrote = if is_there {
                self.write(&mut written).await
            } else {
                true
            };
            if !wrote {
                sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                alive = self.seen.changed() => if alive.is_err() { return },
                () = sleep(MEMORY_EVERY) => {}
            }
            sleep(GATHER).await;
        }
    }

    /// Writes changes; false if it must be tried again.
    async fn write(&mut self, written: &mut Written) -> bool {
        let seen = self.seen.borrow_and_update().clone();
        if written.uid != seen.uid {
            *written = Written {
                uid: seen.uid.clone(),
                ..Written::default()
            };
        }
        let status = report::status(self.facts(&seen), &seen.conditions);
        let is_fresh = written.at.is_some_and(|at| at.elapsed() < MEMORY_EVERY);
        let is_known = written.status.as_ref().is_some_and(|old| {
            *old == status || (is_fresh && report::is_only_memory(old, &status))
        });
        if is_known {
            return true;
        }
        match self.patch(&status).await {
            Ok(()) => {
                written.status = Some(status);
                written.at = Some(Instant::now());
                true
            }
            Err(error) => {
                tracing::warn!(error, "the status could not be written; trying again");
                false
            }
        }
    }

    fn facts(&self, seen: &Seen) -> Facts {
        // Kubernetes keeps whole seconds.
        let now = Timestamp::now();
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Facts {
            generation: seen.generation,
            address: self.address.clone(),
            capacity: self.capacity,
            memory_free_bytes: memory_free_bytes(),
            slices: self.slices.statuses(),
            routes: self.routes.statuses(),
            totals: self.slices.totals(),
            standby_bytes: self.blobs.standby_bytes(),
            crashes: self.engine.crashes(),
            auth: self.auth,
            identity_trouble: self.trust.trouble(),
            trouble: seen.trouble.clone().or_else(|| self.slices.trouble()),
            now: Time(now),
        }
    }

    async fn patch(&self, status: &ComputeNodeStatus) -> Result<(), String> {
        let api = match &self.to {
            Reports::Api(api) => api,
            Reports::Session(uplink) => return uplink.report(status).map_err(|e| e.to_string()),
        };
        let body = json!({
            "apiVersion": format!("{}/v1alpha1", lamina_crds::GROUP),
            "kind": "ComputeNode",
            "metadata": { "name": self.node },
            "status": status,
        });
        let params = PatchParams::apply(AGENT_MANAGER).force();
        let patch = Patch::Apply(body);
        let write = api.patch_status(&self.node, &params, &patch);
        match timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {WRITE_TIMEOUT:?}")),
        }
    }
}
