//! Local copies of every kind that decisions depend on.

use crate::kube::watch::{Copies, keep};
use crate::state::listed::Listed;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use lamina_crds::{ComputeNode, DnnModel, Placement};
use std::sync::Arc;
use tokio::sync::Notify;

/// Labels of agents' pods, as the chart sets them.
const AGENTS: &str = "app.kubernetes.io/name=lamina,app.kubernetes.io/component=agent";
/// A watch is renewed after this time, which finds connections that died unnoticed.
const WATCH_SECONDS: u32 = 60;

/// The copies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Objects {
    /// Every DnnModel.
    pub models: Arc<Copies<DnnModel>>,
    /// Every Placement.
    pub placements: Arc<Copies<Placement>>,
    /// Every ComputeNode.
    pub compute_nodes: Arc<Copies<ComputeNode>>,
    /// Every Node.
    pub nodes: Arc<Copies<Node>>,
    /// The agents' pods.
    pub agents: Arc<Copies<Pod>>,
}

impl Objects {
    /// The tasks that keep the copies up to date. None of them ends by itself; `changed` is
    /// notified of each change.
    pub(crate) fn watches(
        &self,
        client: &Client,
        namespace: &str,
        changed: &Arc<Notify>,
    ) -> Vec<BoxFuture<'static, ()>> {
        let all = Config::default().timeout(WATCH_SECONDS);
        let agents = all.clone().labels(AGENTS);
        vec![
            Box::pin(keep(
                Api::all(client.clone()),
                all.clone(),
                Arc::clone(&self.models),
                Arc::clone(changed),
            )),
            Box::pin(keep(
                Api::all(client.clone()),
                all.clone(),
                Arc::clone(&self.placements),
                Arc::clone(changed),
            )),
            Box::pin(keep(
                Api::all(client.clone()),
                all.clone(),
                Arc::clone(&self.compute_nodes),
                Arc::clone(changed),
            )),
            Box::pin(keep(
                Api::all(client.clone()),
                all,
                Arc::clone(&self.nodes),
                Arc::clone(changed),
            )),
            Box::pin(keep(
                Api::namespaced(client.clone(), namespace),
                agents,
                Arc::clone(&self.agents),
                Arc::clone(changed),
            )),
        ]
    }

    /// The objects, or the kinds whose first list is not complete, with their watch's last error.
    pub(crate) fn list(&self) -> Result<Listed, String> {
        let lists = (
            self.models.all(),
            self.placements.all(),
            self.compute_nodes.all(),
            self.nodes.all(),
            self.agents.all(),
        );
        if let (Some(models), Some(placements), Some(compute_nodes), Some(nodes), Some(agents)) =
            lists
        {
            return Ok(Listed {
                models,
                unreadable: self.models.unreadable(),
                placements,
                compute_nodes,
                nodes,
                agents,
            });
        }
        let missing = [
            self.models.missing("DnnModels"),
            self.placements.missing("Placements"),
            self.compute_nodes.missing("ComputeNodes"),
            self.nodes.missing("Nodes"),
            self.agents.missing("agents' Pods"),
        ];
        let missing: Vec<String> = missing.into_iter().flatten().collect();
        Err(format!("waiting for the list of {}", missing.join(", ")))
    }
}
