//! [`DnnModel`]: what a user wants served, and how well.

use crate::images::InputImage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// A network to serve: its file, its inputs, the entries where requests arrive, the
/// objective and the constraints. Lamina measures everything else.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "serving.lamina.dev",
    version = "v1alpha1",
    kind = "DnnModel",
    plural = "dnnmodels",
    shortname = "dnn",
    category = "lamina",
    namespaced,
    status = "DnnModelStatus",
    derive = "PartialEq",
    doc = "A neural network that Lamina splits over hosts and serves.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Stage","type":"string","jsonPath":".status.stage"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.progress.text"}"#,
    printcolumn = r#"{"name":"Blocks","type":"integer","jsonPath":".status.profile.blocks"}"#,
    printcolumn = r#"{"name":"Size","type":"string","jsonPath":".status.profile.size"}"#,
    printcolumn = r#"{"name":"Strategy","type":"string","jsonPath":".spec.strategy.name"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Prepared-By","type":"string","priority":1,"jsonPath":".status.profile.node"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Ready\")].message"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DnnModelSpec {
    /// Location of the model's file.
    pub source: ModelSource,
    /// What the model takes, in the order of its `forward`: tensors, a number as one of shape
    /// `[]`, a tuple of tensors as one input for each of them.
    #[schemars(length(min = 1, max = 32))]
    pub inputs: Vec<ModelInput>,
    /// Arguments of `forward` that are the same for every request, by their names there: a
    /// number, `true` or `false`, `none`, or a text. What they decide is decided when the
    /// model is prepared.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_short_texts")]
    pub arguments: BTreeMap<String, String>,
    /// A few real requests. Checks, the probe and warm-ups use them in addition to random
    /// ones. For models whose inputs cannot be described by a `range`, such as several
    /// vocabularies in one tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// Where requests arrive. Every matching node is an entry with its own Placement.
    pub entry: Entry,
    /// The algorithm that finds placements.
    #[serde(default)]
    pub strategy: StrategySpec,
    /// What placements are optimized for.
    #[serde(default)]
    pub objective: Objective,
    /// Limits that a placement must respect.
    #[serde(default)]
    pub constraints: Constraints,
    /// When blocks may move while the model serves.
    #[serde(default)]
    pub adaptation: Adaptation,
    /// Early exits, for models that have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exits: Option<EarlyExits>,
    /// Batching of requests that wait for a host; off where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Encoding of values sent between hosts; unchanged where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Activations>,
}

/// Location of a model's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A TorchScript file (`torch.jit.save`): `https://` or `http://`, an object
    /// (`s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/BLOB`), an artifact of one
    /// layer in a registry (`oci://REGISTRY/NAME:TAG` or `@sha256:…`), a file of a hub
    /// (`hf://ORG/NAME/PATH@REVISION`), or one that agents have mounted
    /// (`pvc://CLAIM/PATH`, `file:///PATH`).
    #[x_kube(validation = ("self.matches('^(https?|s3|gs|az|oci|hf|pvc|file)://.+$')", "the uri must start with https://, http://, s3://, gs://, az://, oci://, hf://, pvc:// or file://"))]
    #[schemars(length(max = 2048))]
    pub uri: String,
    /// SHA-256 of the file, 64 hexadecimal digits. A file with another hash is
    /// refused. Where absent, `status.profile.source` has the hash of the fetched file.
    #[x_kube(validation = ("self.matches('^[0-9a-f]{64}$')", "sha256 must be 64 lower-case hexadecimal digits, as sha256sum prints them"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub sha256: Option<String>,
    /// A Secret in the model's namespace with credentials for the source. It must have the
    /// label `serving.lamina.dev/source-credentials: "true"`, and the operator must be
    /// allowed to read it (`operator.sourceSecrets` of the chart).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Any text. Changing it fetches the file again; otherwise an accepted model stays
    /// unchanged until the source changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub refresh: Option<String>,
}

/// A Secret in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Location of a file with requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Samples {
    /// A safetensors file of at most 64 MiB with 2 to 16 requests, as written by
    /// `lamina.samples`: a tensor `0.NAME`, `1.NAME`, … for each input, with one row where
    /// the batch is free.
    #[x_kube(validation = ("self.startsWith('http://') || self.startsWith('https://')", "the uri must start with http:// or https://"))]
    #[schemars(length(max = 2048))]
    pub uri: String,
    /// SHA-256 of the file, 64 hexadecimal digits. A file with another hash is refused, so
    /// that each host prepares the model with the same requests.
    #[x_kube(validation = ("self.matches('^[0-9a-f]{64}$')", "sha256 must be 64 lower-case hexadecimal digits, as sha256sum prints them"))]
    #[schemars(length(max = 64))]
    pub sha256: String,
}

/// One input of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelInput {
    /// Its name in requests.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Element type as in the Open Inference Protocol.
    pub datatype: InputDataType,
    /// Shape; -1 in the first place takes any batch size. Another free dimension has a name
    /// with bounds, `seq:1..512`: `NAME:MIN..MAX`, behind it `/STEP` where sizes are multiples
    /// of a number, and `@TYPICAL`, the size for which times are told and a placement is
    /// planned (default: the geometric middle), as in `h:32..1024/32@224`. Equal names are
    /// equal sizes in each request.
    #[x_kube(validation = ("self.all(d, type(d) == string || d == -1 || d >= 1)", "each dimension must be at least 1, -1 (any batch, first) or NAME:MIN..MAX"))]
    #[schemars(length(max = 8))]
    pub shape: Vec<Dimension>,
    /// Range of its values, from which checks and probes are drawn. Token ids
    /// must be within the vocabulary. Default: standard normal for floating
    /// point, 0 and 1 for other types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// For clients that send images: how an image becomes the FP32 tensor `[batch, 3, height,
    /// width]` that the model takes. With datatype BYTES and shape `[-1]` each element is a JPEG
    /// or PNG file, with UINT8 and `[-1, HEIGHT, WIDTH, 3]` its pixels. The steps are block 0
    /// of the model, which is placed as any block is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<InputImage>,
}

/// One dimension of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// Of this size; -1 takes any batch.
    Size(i64),
    /// Free between bounds, `NAME:MIN..MAX[/STEP][@TYPICAL]`.
    Free(String),
}

impl Dimension {
    /// A shape of sizes alone.
    pub fn sizes(shape: &[i64]) -> Vec<Self> {
        shape.iter().copied().map(Self::Size).collect()
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "{size}"),
            Self::Free(text) => f.write_str(text),
        }
    }
}

impl JsonSchema for Dimension {
    fn schema_name() -> Cow<'static, str> {
        "Dimension".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": -1,
            "maximum": 2_147_483_647_i64,
            "maxLength": 80,
            "pattern": DIMENSION,
        })
    }
}

/// `NAME:MIN..MAX[/STEP][@TYPICAL]`.
const DIMENSION: &str = r"^[A-Za-z][A-Za-z0-9_]*:[0-9]+\.\.[0-9]+(/[0-9]+)?(@[0-9]+)?$";

/// Element types that a request can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum InputDataType {
    Bool,
    Uint8,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Files of images; see `image`.
    Bytes,
}

/// A closed range.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.min <= self.max", "range.min must not be above range.max"))]
pub struct Range {
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

/// Where requests arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Labels of the nodes where requests arrive.
    #[x_kube(validation = ("size(self) >= 1", "name at least one label, such as kubernetes.io/hostname: cam-1"))]
    #[schemars(extend("maxProperties" = 16))]
    pub node_selector: BTreeMap<String, String>,
}

/// A strategy by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StrategySpec {
    /// `optimal` (default) or a published method: `milp`, `genetic`, `first-fit`,
    /// `cloud-only`, `device-only`, `neurosurgeon`, `dads`, `throughput`, `fair`, …
    /// `plugin/NAME` is your own strategy, listed in the chart's `operator.plugins`.
    /// An unknown name is reported with the list of known ones; a strategy that does not
    /// apply to the model or the hosts is reported with the reason.
    #[serde(default = "default_strategy")]
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Parameters of the strategy: at most 32, of at most 1024 characters each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_short_texts")]
    pub parameters: BTreeMap<String, String>,
}

fn few_short_texts(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": MOST_PARAMETERS,
        "additionalProperties": {"type": "string", "maxLength": LONGEST_PARAMETER},
    })
}

/// Parameters of a strategy at most.
pub const MOST_PARAMETERS: usize = 32;
/// Length of each at most, in characters.
pub const LONGEST_PARAMETER: usize = 1024;

fn default_strategy() -> String {
    "optimal".to_owned()
}

impl Default for StrategySpec {
    fn default() -> Self {
        Self {
            name: default_strategy(),
            parameters: BTreeMap::new(),
        }
    }
}

/// What is minimised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Goal {
    /// Expected time from request to reply.
    #[default]
    Latency,
    /// Time of the slowest host or link; its inverse is the rate that the whole path
    /// sustains.
    Throughput,
}

/// What placements are optimized for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// What is minimised.
    #[serde(default)]
    pub goal: Goal,
    /// Requests per second expected at each entry. No host or link is planned beyond
    /// its share at this rate.
    #[serde(default = "default_rate")]
    #[x_kube(validation = ("self > 0.0 && self <= 100000.0", "requestsPerSecond must be above 0 and at most 100000"))]
    #[schemars(range(min = 0, max = 100_000))]
    pub requests_per_second: f64,
}

const fn default_rate() -> f64 {
    1.0
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            goal: Goal::default(),
            requests_per_second: default_rate(),
        }
    }
}

/// Limits that a placement must respect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Constraints {
    /// Number of leading blocks that must run on the entry itself, so that raw input
    /// never leaves it.
    #[serde(default)]
    #[schemars(range(max = 65_535))]
    pub keep_on_entry: u32,
    /// Tiers that may compute (`device`, `edge`, `cloud`); empty allows all. The
    /// entry may always run the blocks of `keepOnEntry`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub tiers: Vec<String>,
    /// Bytes of this model's slices that one host of a tier may hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub slice_memory: Vec<SliceMemory>,
    /// Blocks that must run on a given node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub pins: Vec<Pin>,
    /// Highest expected time from request to reply, in milliseconds. Where no placement is
    /// expected to keep it, none is made, and what serves stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub latency_limit_ms: Option<u32>,
}

/// A memory limit for hosts of one tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceMemory {
    /// Tier of the hosts.
    #[schemars(length(min = 1, max = 63))]
    pub tier: String,
    /// Weights that one host may hold, as a quantity: `8M`, `64Mi`.
    #[x_kube(validation = ("self.matches('^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$')", "limit must be a quantity of bytes such as 8M or 64Mi"))]
    #[schemars(length(max = 32))]
    pub limit: String,
}

/// Blocks on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.first <= self.last", "first must not be above last"))]
pub struct Pin {
    /// First block, counted from 0.
    #[schemars(range(max = 65_535))]
    pub first: u32,
    /// Last block, included.
    #[schemars(range(max = 65_535))]
    pub last: u32,
    /// Name of the node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
}

/// Whether requests leave early.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitMode {
    /// A request leaves at the first exit that is confident enough.
    #[default]
    Early,
    /// Every request runs to the end, and all exits answer.
    All,
}

/// What happens to a request that no exit is confident about while the next host is
/// unreachable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenCutOff {
    /// It waits, until its deadline, for the path to recover or for another path.
    #[default]
    Wait,
    /// The last exit that it reached answers, and the answer is marked as such.
    Answer,
}

/// How requests leave a model with early exits. By default the model's file decides.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlyExits {
    /// Whether requests leave early.
    #[serde(default)]
    pub mode: ExitMode,
    /// Thresholds by exit name, 0 to 1, instead of those in the model's file: the minimum
    /// for the largest probability, or the maximum for the normalised entropy.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "few_thresholds")]
    pub thresholds: BTreeMap<String, f64>,
    /// Has the strategy choose the thresholds that are not given above, such that the
    /// expected share of right answers stays at or above this, 0 to 1, by what was measured
    /// when the model was exported. With 0 any choice will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub min_accuracy: Option<f64>,
    /// What happens to a request that no exit is confident about while the next host is
    /// unreachable.
    #[serde(default)]
    pub when_cut_off: WhenCutOff,
}

fn few_thresholds(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": MOST_EXITS,
        "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1},
    })
}

/// Exits of a model at most.
pub const MOST_EXITS: usize = 64;

/// Batching of requests from several clients, for models whose rows are independent.
/// Answers may differ in their last digits from those of a request that is computed alone,
/// because libtorch chooses kernels by size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Batching {
    /// Maximum number of rows in a batch. A request with more rows is computed alone.
    #[schemars(range(min = 2, max = 128))]
    pub max_rows: u32,
    /// Milliseconds that an idle host waits for further requests. With 0, the default, only
    /// requests that had to wait anyway are batched.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub max_delay_ms: u32,
}

/// Number format in which values are sent between hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ActivationType {
    /// Unchanged, bit for bit.
    #[default]
    Fp32,
    /// 16 bits with a smaller range and more precision.
    Fp16,
    /// 16 bits with the range of FP32 and less precision.
    Bf16,
    /// 8 bits: 256 even steps from a tensor's smallest value to its largest.
    Int8,
    /// At each cut, the fewest bits whose measured error is within `maxError`.
    Auto,
}

/// Encoding of FP32 values of 1 KiB and more that are sent between hosts. Other values, and
/// the model's outputs, are always sent unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Activations {
    /// The number format.
    #[serde(default)]
    pub dtype: ActivationType,
    /// Maximum error that the encoding at one cut may cause: the largest difference of the
    /// model's answers on the inputs with which it was prepared, as a share of their
    /// largest magnitude. Above it, values are sent unchanged. Default: 0.01 for `auto`, no
    /// limit for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("self > 0.0 && self <= 1.0", "maxError must be above 0 and at most 1"))]
    #[schemars(range(min = 0, max = 1))]
    pub max_error: Option<f64>,
}

/// When blocks may move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdaptationPolicy {
    /// Move when the gain over the horizon exceeds the cost of moving.
    #[default]
    CostAware,
    /// Move only when the current placement can no longer serve.
    Never,
    /// Move by the work function, which compares what each placement would have cost so
    /// far and needs no horizon.
    WorkFunction,
}

/// When blocks may move while the model serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Adaptation {
    /// Whether blocks move for a gain.
    #[serde(default)]
    pub policy: AdaptationPolicy,
    /// Seconds over which a gain is counted against the cost of moving.
    #[serde(default = "default_horizon")]
    #[schemars(range(min = 1, max = 86400))]
    pub horizon_seconds: u32,
    /// Seconds after a move during which no further move is made for a gain.
    #[serde(default = "default_cool_down")]
    #[schemars(range(min = 0, max = 86400))]
    pub cool_down_seconds: u32,
    /// Keeps all blocks where they are, for maintenance.
    #[serde(default)]
    pub paused: bool,
    /// Lets hosts fetch, in advance, the blocks they would need if a link of the path became
    /// slow or one of its hosts were lost, so that such a move need not wait for them.
    #[serde(default = "default_standby")]
    pub standby: bool,
}

const fn default_standby() -> bool {
    true
}

const fn default_horizon() -> u32 {
    300
}

const fn default_cool_down() -> u32 {
    10
}

impl Default for Adaptation {
    fn default() -> Self {
        Self {
            policy: AdaptationPolicy::default(),
            horizon_seconds: default_horizon(),
            cool_down_seconds: default_cool_down(),
            paused: false,
            standby: default_standby(),
        }
    }
}

/// Observed state of a DnnModel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DnnModelStatus {
    /// Generation of the spec that this status describes; -1 before the
    /// operator has seen the object.
    #[serde(default = "unobserved")]
    pub observed_generation: i64,
    /// Fetched, Sliced, Profiled, Ready, and for kstatus Reconciling and Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The current step in one word, for people: Fetching, Slicing, Profiling,
    /// Solving, Deploying, Verifying, Serving, Failed.
    #[serde(default)]
    pub stage: String,
    /// Progress of that step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Result of preparing the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileSummary>,
    /// The last spec that was met at every entry. The model is served by it while the
    /// current spec is invalid or cannot be met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<AcceptedSpec>,
    /// Names of the Placements, one for each entry.
    #[serde(default)]
    pub placements: Vec<String>,
    /// The last ten moves of all entries, newest first.
    #[serde(default)]
    pub history: Vec<Move>,
    /// The last failure, kept after recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
}

const fn unobserved() -> i64 {
    -1
}

impl Default for DnnModelStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            conditions: Vec::new(),
            stage: String::new(),
            progress: None,
            profile: None,
            accepted: None,
            placements: Vec::new(),
            history: Vec::new(),
            last_failure: None,
        }
    }
}

/// Progress of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Parts done.
    pub done: u64,
    /// Total number of parts; 0 where unknown.
    pub total: u64,
    /// The same for people: `9/13`, `4.2Mi/14Mi`.
    pub text: String,
}

/// Result of preparing a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProfileSummary {
    /// SHA-256 of the source file.
    pub source: String,
    /// SHA-256 of the manifest in the operator's store.
    pub manifest: String,
    /// Identifies the source and the inputs that were prepared; the result is kept until
    /// one of them changes.
    #[serde(default)]
    pub wish: String,
    /// Generation of the spec that was prepared.
    pub generation: i64,
    /// Number of blocks.
    pub blocks: u32,
    /// How the model was cut: direct, typed, retraced or whole.
    pub rung: String,
    /// Why no better rung was possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung_reason: Option<String>,
    /// Weights, for people.
    pub size: String,
    /// Weights in bytes.
    pub weight_bytes: u64,
    /// Floating-point operations for one request.
    pub flops: u64,
    /// Node that prepared it, as the operator knows it by its session.
    pub node: String,
    /// Largest difference between the chain of blocks and the whole model.
    pub max_abs_diff: f64,
}

/// A move of one Placement; the Placement has the details.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// When the new revision began to serve.
    pub time: Time,
    /// The Placement.
    pub placement: String,
    /// Revision that serves since.
    pub revision: i64,
    /// Cause and effect: `cam-1→edge-1 48→4.8 Mbit/s: 142ms → 122ms`.
    pub summary: String,
}

/// A spec that was met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedSpec {
    /// Its generation.
    pub generation: i64,
    /// The spec as it was.
    #[schemars(schema_with = "any_object")]
    pub spec: Box<DnnModelSpec>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When.
    pub time: Time,
    /// Reason, as in the Event.
    pub reason: String,
    /// What happened and what to do.
    pub message: String,
}
