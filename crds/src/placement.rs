//! [`Placement`]: one model as seen from one entry.

use crate::{Encoding, Hop};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which blocks run where. The operator writes it; `spec` is the newest plan,
/// `status.active` the one that serves.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "serving.lamina.dev",
    version = "v1alpha1",
    kind = "Placement",
    plural = "placements",
    shortname = "pl",
    category = "lamina",
    namespaced,
    status = "PlacementStatus",
    derive = "PartialEq",
    selectable = ".spec.model",
    doc = "Where each block of one model runs, as seen from one entry host. Written by the operator.",
    printcolumn = r#"{"name":"Model","type":"string","jsonPath":".spec.model"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Path","type":"string","jsonPath":".status.path"}"#,
    printcolumn = r#"{"name":"Est","type":"string","jsonPath":".status.estimated"}"#,
    printcolumn = r#"{"name":"P50","type":"string","jsonPath":".status.measured"}"#,
    printcolumn = r#"{"name":"Rev","type":"integer","jsonPath":".status.activeRevision"}"#,
    printcolumn = r#"{"name":"Redeploys","type":"integer","jsonPath":".status.redeploys"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Target","type":"string","priority":1,"jsonPath":".status.targetPath"}"#,
    printcolumn = r#"{"name":"Strategy","type":"string","priority":1,"jsonPath":".spec.plan.strategy"}"#,
    printcolumn = r#"{"name":"Proof","type":"string","priority":1,"jsonPath":".spec.plan.certificate"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// The DnnModel, in the same namespace.
    #[x_kube(validation = ("self == oldSelf", "model cannot change; delete the Placement, the operator makes a new one"))]
    #[schemars(length(max = 253))]
    pub model: String,
    /// The node where requests arrive.
    #[x_kube(validation = ("self == oldSelf", "entry cannot change; delete the Placement, the operator makes a new one"))]
    #[schemars(length(max = 253))]
    pub entry: String,
    /// The newest plan; absent until one is found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// A plan: an immutable answer of a strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Increases with every plan of this Placement; a higher one replaces a lower.
    pub revision: i64,
    /// Generation of the DnnModel that the plan was made for; 0 where unknown.
    #[serde(default)]
    pub generation: i64,
    /// SHA-256 of the manifest whose blocks are placed.
    pub manifest: String,
    /// The segments in order of execution.
    pub segments: Vec<Segment>,
    /// Encoding of values sent between hosts, where `spec.activations` of the DnnModel asks
    /// for fewer bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crossings: Vec<Crossing>,
    /// Thresholds by the exit's name that the strategy chose, where `spec.exits.minAccuracy`
    /// of the DnnModel lets it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<String, f64>,
    /// Strategy that found it.
    pub strategy: String,
    /// Proof status: `Optimal`, or `Feasible, gap 2.9%`.
    pub certificate: String,
    /// Expected latency in milliseconds.
    pub estimated_latency_ms: f64,
    /// Expected latency of the plan that it replaces, at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_latency_ms: Option<f64>,
    /// What caused it, for people.
    pub trigger: String,
    /// Kind of that cause.
    #[serde(default)]
    pub cause: Cause,
    /// When it was made.
    pub time: Time,
}

/// Why a plan was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Cause {
    /// Nothing served, or the active plan could no longer serve or broke the spec.
    #[default]
    Required,
    /// It is expected to be faster. Only such moves count as flapping.
    Gain,
    /// A rollback: the plan that it replaces measured worse than the one before.
    Rollback,
}

/// Blocks that run together on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Segment {
    /// The host.
    pub host: Hop,
    /// Block ids in order of execution. A list rather than a range, to allow graphs with
    /// branches.
    pub blocks: Vec<u32>,
}

/// Values sent from one host of a path to the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Crossing {
    /// The receiving segment; 0 is what the entry sends to the first host.
    pub segment: u32,
    /// Encoding of the values; absent where all are unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Error that the encoding causes: the largest difference of the model's answers on the
    /// inputs with which it was prepared, as a share of their largest magnitude.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Bytes of one request.
    pub bytes: u64,
    /// Bytes of one request without encoding.
    pub raw_bytes: u64,
    /// Why values are sent unchanged although fewer bytes were asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Observed state of a Placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// Generation of the spec that this status describes; -1 before the
    /// operator has seen the object.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,
    /// Solved, Deployed, Verified, Ready, and for kstatus Reconciling and Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The plan that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Plan>,
    /// Revision of the plan that serves; 0 before the first.
    #[serde(default)]
    pub active_revision: i64,
    /// Generation of the DnnModel that the active plan meets; 0 before the first.
    #[serde(default)]
    pub model_generation: i64,
    /// Revision being deployed; 0 if none.
    #[serde(default)]
    pub target_revision: i64,
    /// The highest revision that could not be deployed; it is not tried again.
    #[serde(default)]
    pub failed_revision: i64,
    /// Path that serves, `cam-1[0-4]→edge-2[5-14]→cloud-0[15-21]`.
    #[serde(default)]
    pub path: String,
    /// Path being deployed.
    #[serde(default)]
    pub target_path: String,
    /// Expected latency of the active plan, for people: `46ms`.
    #[serde(default)]
    pub estimated: String,
    /// Median latency measured over the last minute, for people.
    #[serde(default)]
    pub measured: String,
    /// Number of times that blocks moved while serving.
    #[serde(default)]
    pub redeploys: i64,
    /// When the active revision began to serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_since: Option<Time>,
    /// The last ten redeploys, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Redeploy>,
}

/// One redeploy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redeploy {
    /// When the new revision began to serve.
    pub time: Time,
    /// Revision that serves since.
    pub revision: i64,
    /// What caused it, for people.
    pub trigger: String,
    /// Kind of that cause.
    #[serde(default)]
    pub cause: Cause,
    /// Path before.
    pub from: String,
    /// Path after.
    pub to: String,
    /// Latency of the old path under the new conditions, estimated.
    pub estimated_before_ms: f64,
    /// Latency of the new path, estimated.
    pub estimated_after_ms: f64,
    /// Median latency measured on the old path before the move, if there were requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_before_ms: Option<f64>,
    /// Median latency measured on the new path, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_after_ms: Option<f64>,
    /// Whether the measured latency was judged: the move was kept or rolled back.
    #[serde(default)]
    pub judged: bool,
    /// Time by phase; absent if the operator restarted during the redeploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took: Option<RedeployPhases>,
}

/// Seconds of each phase of a redeploy, in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedeployPhases {
    /// From the first sign of the change to the decision to move.
    pub decide_seconds: f64,
    /// Until every host had its blocks.
    pub fetch_seconds: f64,
    /// Until every slice was merged, optimized and warmed up.
    pub load_seconds: f64,
    /// Until the probe had passed.
    pub verify_seconds: f64,
    /// Until new requests took the path and those on the old one had finished.
    pub flip_seconds: f64,
}

const fn unobserved() -> i64 {
    -1
}

impl Default for PlacementStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            conditions: Vec::new(),
            active: None,
            active_revision: 0,
            model_generation: 0,
            target_revision: 0,
            failed_revision: 0,
            path: String::new(),
            target_path: String::new(),
            estimated: String::new(),
            measured: String::new(),
            redeploys: 0,
            active_since: None,
            history: Vec::new(),
        }
    }
}

/// `cam-1[0-4]→edge-2[5-14]`, as the columns and Events print a path.
pub fn format_path(segments: &[Segment]) -> String {
    let parts: Vec<String> = segments
        .iter()
        .map(|s| format!("{}[{}]", s.host.node, format_blocks(&s.blocks)))
        .collect();
    parts.join("→")
}

/// `0-4,7` for blocks 0, 1, 2, 3, 4 and 7.
pub fn format_blocks(blocks: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == block => *last = block,
            _ => runs.push((block, block)),
        }
    }
    let parts: Vec<String> = runs
        .iter()
        .map(|(a, b)| {
            if a == b {
                a.to_string()
            } else {
                format!("{a}-{b}")
            }
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_the_documentation_shows_it() {
        let segment = |node: &str, blocks: &[u32]| Segment {
            host: Hop {
                node: node.into(),
                address: String::new(),
            },
            blocks: blocks.to_vec(),
        };
        let path = [
            segment("cam-1", &[0, 1, 2]),
            segment("edge-2", &[3]),
            segment("cloud-0", &[4, 5, 7]),
        ];
        assert_eq!(format_path(&path), "cam-1[0-2]→edge-2[3]→cloud-0[4-5,7]");
        assert_eq!(format_path(&[]), "");
    }
}
