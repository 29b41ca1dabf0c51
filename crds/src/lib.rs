//! Kubernetes types of Lamina, group `serving.lamina.dev/v1alpha1`.
//!
//! - [`DnnModel`]: what a user wants served, and how well.
//! - [`Placement`]: one model as seen from one entry host: which blocks run where.
//! - [`ComputeNode`]: one host; `spec` is what the operator wants loaded there,
//!   `status` what the agent reports.
//!
//! Types only: no client, no I/O, so that everything that speaks about these
//! objects can afford this crate. The YAML in `crds/*.yaml` and in the chart is
//! generated from here by `lamina-crdgen` and checked by a test.

// The derives of kube emit items that this lint cannot see from outside.
#![allow(unreachable_pub)]

pub mod compute_node;
pub mod conditions;
pub mod dnn_model;
pub mod generate;
pub mod images;
pub mod placement;
pub mod quantity;
pub mod reasons;
mod shared;

pub use compute_node::{ComputeNode, ComputeNodeSpec, ComputeNodeStatus};
pub use dnn_model::{DnnModel, DnnModelSpec, DnnModelStatus};
pub use placement::{Placement, PlacementSpec, PlacementStatus};
pub use shared::{Encoding, Hop, SizeBounds, TensorSize, TensorSpec, WireType};

/// API group of every kind.
pub const GROUP: &str = "serving.lamina.dev";
/// Node label that names a host's tier: `device`, `edge` or `cloud`.
pub const TIER_LABEL: &str = "serving.lamina.dev/tier";
/// Label, `"true"`, of Secrets that models may name as their source's credentials: who may
/// write models cannot have other Secrets sent anywhere.
pub const SOURCE_CREDENTIALS_LABEL: &str = "serving.lamina.dev/source-credentials";
/// Field manager of everything that the operator writes.
pub const OPERATOR_MANAGER: &str = "lamina-operator";
/// Field manager of everything that an agent writes.
pub const AGENT_MANAGER: &str = "lamina-agent";
