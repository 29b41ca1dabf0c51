//! The objects of the API server at one moment.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use lamina_crds::{ComputeNode, DnnModel, DnnModelStatus, Placement};
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object that exists but cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unreadable {
    /// Its UID.
    pub uid: String,
    /// The field, and what is wrong with it.
    pub error: String,
    /// Its status, if that can be read.
    pub status: Option<Box<DnnModelStatus>>,
}

/// The objects at one moment.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Every DnnModel.
    pub models: Vec<Arc<DnnModel>>,
    /// DnnModels that cannot be read, by namespace and name, with the error.
    pub unreadable: BTreeMap<(String, String), Unreadable>,
    /// Every Placement.
    pub placements: Vec<Arc<Placement>>,
    /// Every ComputeNode.
    pub compute_nodes: Vec<Arc<ComputeNode>>,
    /// Every Node.
    pub nodes: Vec<Arc<Node>>,
    /// The agents' pods.
    pub agents: Vec<Arc<Pod>>,
}

impl Listed {
    /// Names of the hosts.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = String> {
        self.compute_nodes.iter().map(|n| n.name_any())
    }

    /// Entries of the Placements by their UIDs.
    pub(crate) fn entries(&self) -> BTreeMap<String, String> {
        let all = self.placements.iter();
        all.filter_map(|p| Some((p.uid()?, p.spec.entry.clone())))
            .collect()
    }
}
