//! [`ComputeNode`]: one host, between operator and agent.

use crate::dnn_model::{Batching, EarlyExits};
use crate::{Encoding, Hop, TensorSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One host. The operator writes `spec`, the host's agent `status`; users read.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[kube(
    group = "serving.lamina.dev",
    version = "v1alpha1",
    kind = "ComputeNode",
    plural = "computenodes",
    shortname = "cnode",
    category = "lamina",
    status = "ComputeNodeStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "A host that runs an agent: what it should serve, and what it reports. Made by the operator and named as its Node, or made by `kubectl lamina join` for a host that is no Node.",
    printcolumn = r#"{"name":"Tier","type":"string","jsonPath":".spec.tier"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Gflops","type":"string","jsonPath":".status.display.gflops"}"#,
    printcolumn = r#"{"name":"Mem-Free","type":"string","jsonPath":".status.display.memoryFree"}"#,
    printcolumn = r#"{"name":"Slices","type":"integer","jsonPath":".status.display.slices"}"#,
    printcolumn = r#"{"name":"Held","type":"string","jsonPath":".status.display.sliceBytes"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Standby","type":"string","priority":1,"jsonPath":".status.display.standby"}"#,
    printcolumn = r#"{"name":"Address","type":"string","priority":1,"jsonPath":".status.address"}"#,
    printcolumn = r#"{"name":"Agent","type":"string","priority":1,"jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ComputeNodeSpec {
    /// Tier of the host: device, edge or cloud, from its Node's label.
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub tier: String,
    /// The operator's address for this agent, `10.0.0.3:9000`.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub operator: String,
    /// Slices to fetch, merge, optimize, warm up and serve. During a redeploy, those of
    /// the serving and of the next revision are both listed.
    #[serde(default)]
    pub slices: Vec<Slice>,
    /// Routes of the Placements whose entry is this host.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Blocks to fetch to disk before a move needs them, by Placement. They are fetched
    /// while nothing else is, not loaded, and dropped when space is short.
    #[serde(default)]
    pub standby: Vec<Standby>,
    /// Lets a machine that is no Node be this host. Written by `kubectl lamina join`, never by
    /// the operator; where a Node has this name, it counts for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
}

/// How a machine that is no Node becomes a host: it shows a token once, and its certificate
/// from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    /// SHA-256 of the token, in hexadecimal: who reads it here cannot show it. Another one
    /// lets another machine, or the same one anew, be this host, and ends what the one before
    /// may do.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub token_sha256: String,
    /// Until when the token may be shown for the first time.
    pub expires_at: Time,
    /// Address at which other hosts reach this one, where that is not the one from which it
    /// reaches the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub address: Option<String>,
}

/// The machine that became a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// SHA-256 of the token that it showed.
    #[schemars(length(max = 64))]
    pub token_sha256: String,
    /// SHA-256 of its public key: the same machine may show the token again while that is
    /// good, and no other.
    #[schemars(length(max = 64))]
    pub key_sha256: String,
    /// When.
    pub at: Time,
}

/// Blocks of one Placement that a host would probably need after a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Standby {
    /// UID of the Placement.
    pub placement_uid: String,
    /// The block files.
    pub blocks: Vec<Blob>,
}

/// Consecutive blocks of one revision that this host serves as one graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slice {
    /// UID of the Placement; identifies the slice together with revision and segment.
    pub placement_uid: String,
    /// The model as `namespace/name`, for people and metrics.
    pub model: String,
    /// Revision of the plan.
    pub revision: i64,
    /// Position of this slice in the path, from 0.
    pub segment: u32,
    /// The block files in order.
    pub blocks: Vec<Blob>,
    /// Its inputs.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// Where its outputs go; absent on the last host, which replies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Hop>,
    /// Names of the hosts that may send requests to it: the previous host of the path, or
    /// the entry for the first slice. Absent in slices written by older operators; then any
    /// agent with a certificate may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callers: Option<Vec<String>>,
    /// Batching of requests; each is computed alone where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Encoding of its outputs for the next host; absent where all are unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// A content-addressed file in the operator's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// SHA-256 of the content.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
}

/// Where this host, as the entry, sends requests for one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// UID of the Placement.
    pub placement_uid: String,
    /// Namespace of the DnnModel.
    pub namespace: String,
    /// Name of the DnnModel, which clients use.
    pub name: String,
    /// Revision that new requests take; 0 where none serves yet.
    pub active_revision: i64,
    /// Revision that the entry must verify with the probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_revision: Option<i64>,
    /// Reason for refusing requests although a revision is active, if so: that revision
    /// breaks a limit that protects data, such as `keepOnEntry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse: Option<String>,
    /// The user's settings of early exits; where absent the model's file decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exits: Option<EarlyExits>,
    /// First host of each revision that may be called.
    pub revisions: Vec<RouteRevision>,
}

/// First host of a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteRevision {
    /// The revision.
    pub revision: i64,
    /// Host of segment 0.
    pub first: Hop,
    /// The whole path, `cam-1[0-4]→edge-2[5-14]`, which replies carry.
    #[serde(default)]
    pub path: String,
    /// Inputs of this revision; other revisions of the model may have other inputs.
    pub inputs: Vec<TensorSpec>,
    /// Outputs of this revision.
    pub outputs: Vec<TensorSpec>,
    /// Where requests may leave it early; absent where they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exits: Option<Exits>,
    /// Encoding of inputs for the first host; absent where all are unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Maximum error of an answer caused by all encodings on the path, as a share of its
    /// largest magnitude; absent where all values are sent unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// A request with its known answer, which verifies this revision.
    pub probe: Blob,
    /// Manifest of the blocks of this revision, which the entry keeps so that an
    /// operator that lost its store can plan again.
    pub manifest: Blob,
}

/// The exits of a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exits {
    /// How the confidence of an answer is measured.
    pub criterion: ExitCriterion,
    /// In the order in which a request reaches them; the last one is the network's end.
    #[schemars(length(max = 64))]
    pub exits: Vec<Exit>,
}

/// How the confidence of an answer is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitCriterion {
    /// The largest probability of the softmax is at least the threshold.
    Confidence,
    /// The entropy of the softmax, divided by that of a uniform one, is at most the
    /// threshold.
    Entropy,
}

/// One exit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Its label.
    pub name: String,
    /// The output with its logits.
    pub output: String,
    /// Divides the logits before the softmax.
    pub temperature: f64,
    /// Threshold in the model's file; absent where no request leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// What a host reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComputeNodeStatus {
    /// Generation of the spec that the agent has adopted; -1 before the first.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,
    /// Registered, Benchmarked, ClientsKnown, Quarantined (by the agent), Ready (by the operator).
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Address of the agent, `10.0.0.7:8001`.
    #[serde(default)]
    pub address: String,
    /// Version of the agent.
    #[serde(default)]
    pub agent_version: String,
    /// Encodings that the agent can send and receive, such as `int8`; empty where it
    /// supports none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16)))]
    pub encodings: Vec<String>,
    /// Measured capacity of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
    /// Figures for the columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<Display>,
    /// The slices that it holds or tries to hold.
    #[serde(default)]
    pub slices: Vec<SliceStatus>,
    /// The routes that it uses.
    #[serde(default)]
    pub routes: Vec<RouteStatus>,
    /// Models whose worker process crashed, the most recent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crashes: Vec<EngineCrash>,
    /// The machine that joined as this host, where it is no Node. Written by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
}

impl ComputeNode {
    /// Whether a machine that is no Node is this host: it showed the token that stands there
    /// now.
    pub fn is_joined(&self) -> bool {
        let wanted = self.spec.join.as_ref().map(|join| &join.token_sha256);
        let joined = self.status.as_ref().and_then(|s| s.joined.as_ref());
        wanted.is_some() && joined.map(|joined| &joined.token_sha256) == wanted
    }
}

const fn unobserved() -> i64 {
    -1
}

impl Default for ComputeNodeStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            conditions: Vec::new(),
            address: String::new(),
            agent_version: String::new(),
            encodings: Vec::new(),
            capacity: None,
            display: None,
            slices: Vec::new(),
            routes: Vec::new(),
            crashes: Vec::new(),
            joined: None,
        }
    }
}

/// Capacity of a host, as measured by its agent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// GFLOP/s of one forward of the reference benchmark on the agent's CPU share, with
    /// nothing beside it.
    #[schemars(range(min = 0, max = 1e6))]
    pub gflops: f64,
    /// Forwards that each worker computes at the same time; 0 where the agent does not say,
    /// which computes one.
    #[serde(default)]
    #[schemars(range(max = 1024))]
    pub lanes: u32,
    /// Threads inside each of them; 0 where the agent does not say.
    #[serde(default)]
    #[schemars(range(max = 1024))]
    pub threads: u32,
    /// Forwards at the same time that would compute as much without slowing each other; 0
    /// where the agent does not say, which counts as one.
    #[serde(default)]
    #[schemars(range(max = 1024))]
    pub concurrency: u32,
    /// Thousandths of a CPU that the agent may use.
    pub cpu_millis: u64,
    /// Memory that the agent may use, in bytes.
    pub memory_bytes: u64,
}

/// Figures for `kubectl get`, rounded for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Display {
    /// Benchmarked speed.
    pub gflops: String,
    /// Free memory.
    pub memory_free: String,
    /// Slices that are loaded.
    pub slices: u32,
    /// Weights that they hold.
    pub slice_bytes: String,
    /// Block files fetched to disk for a possible move, not counting those of slices.
    #[serde(default)]
    pub standby: String,
}

/// Progress of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SliceState {
    /// Blocks are being fetched.
    Fetching,
    /// Blocks are being merged, optimized and warmed up.
    Loading,
    /// It serves.
    Ready,
    /// It cannot be loaded; the message says why.
    Failed,
}

/// A slice on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceStatus {
    /// UID of the Placement.
    pub placement_uid: String,
    /// Revision of the plan.
    pub revision: i64,
    /// Position in the path.
    pub segment: u32,
    /// Its progress.
    pub state: SliceState,
    /// Why it failed, how far fetching is, or how many rows it computes at once.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Median time of a run in milliseconds after warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<f64>,
}

/// Crashes that a model caused in worker processes on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineCrash {
    /// The model as `namespace/name`.
    pub model: String,
    /// Crashes since the agent started.
    pub count: u32,
    /// How the last one ended, `SIGSEGV`.
    pub cause: String,
    /// When.
    pub time: Time,
    /// End of the pause in which the model is not tried again here, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined_until: Option<Time>,
}

/// A route on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// UID of the Placement.
    pub placement_uid: String,
    /// Revision that new requests take.
    pub active_revision: i64,
    /// Oldest revision with a request still in flight; the active one if none has.
    pub oldest_in_flight: i64,
    /// Requests in flight when the active revision last changed.
    #[serde(default)]
    pub in_flight_at_flip: u32,
    /// Outcome of the last verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verification>,
}

/// Outcome of a probe through the whole path of a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// The revision.
    pub revision: i64,
    /// Whether an answer arrived and was correct.
    pub passed: bool,
    /// What was wrong, or how close it was.
    pub message: String,
    /// Time of the probe in milliseconds.
    pub latency_ms: f64,
    /// When.
    pub time: Time,
}
