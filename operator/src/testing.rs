//! A small world for tests: a camera, an edge host and a cloud host that are all
//! connected, benchmarked and measured, and a model of four blocks.

mod bench;
mod fleet;

pub(crate) use bench::Bench;
pub(crate) use fleet::Fleet;

use crate::state::cluster::Cluster;
use crate::state::decision::Question;
use crate::state::links::{LinkView, Links};
use crate::state::memory::Memory;
use crate::state::reserved::Reserved;
use crate::state::snapshot::{Held, LiveNode, NodeView, Snapshot};
use crate::state::time::Moment;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource as _;
use lamina_crds::compute_node::{Capacity, Slice};
use lamina_crds::conditions::{BENCHMARKED, READY, condition};
use lamina_crds::dnn_model::{
    Dimension, Entry, InputDataType, ModelInput, ModelSource, ProfileSummary,
};
use lamina_crds::placement::{Cause, Plan, Segment};
use lamina_crds::{
    ComputeNode, ComputeNodeSpec, ComputeNodeStatus, DnnModel, DnnModelSpec, DnnModelStatus, Hop,
    Placement, PlacementSpec, PlacementStatus, TIER_LABEL,
};
use lamina_model::{
    Block, BlockKind, BoundaryCheck, DataType, Digest, MANIFEST_VERSION, Manifest, Rung, Seconds,
    ValueSpec,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const MODEL_UID: &str = "model-uid";
pub(crate) const PLACEMENT_UID: &str = "placement-uid";
pub(crate) const NODES: [(&str, &str, f64); 3] = [
    ("cam-1", "device", 4.0),
    ("cloud-1", "cloud", 40.0),
    ("edge-1", "edge", 16.0),
];

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

pub(crate) fn model_spec() -> DnnModelSpec {
    DnnModelSpec {
        source: ModelSource {
            uri: "http://files/model.pt".into(),
            sha256: Some(Digest::of(b"source").to_string()),
            secret_ref: None,
            refresh: None,
        },
        inputs: vec![ModelInput {
            name: "x".into(),
            datatype: InputDataType::Fp32,
            shape: Dimension::sizes(&[-1, 1000]),
            range: None,
            image: None,
        }],
        arguments: BTreeMap::new(),
        samples: None,
        entry: Entry {
            node_selector: BTreeMap::from([("kubernetes.io/hostname".into(), "cam-1".into())]),
        },
        strategy: lamina_crds::dnn_model::StrategySpec::default(),
        objective: lamina_crds::dnn_model::Objective::default(),
        constraints: lamina_crds::dnn_model::Constraints::default(),
        // Tests enable questions ahead where needed.
        adaptation: lamina_crds::dnn_model::Adaptation {
            standby: false,
            ..lamina_crds::dnn_model::Adaptation::default()
        },
        exits: None,
        batching: None,
        activations: None,
    }
}

/// Two blocks in sequence with a side exit after the first, taken by half of all requests.
pub(crate) fn manifest_with_exits() -> Manifest {
    let value = |name: &str, size: i64| ValueSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, size],
        sizes: Vec::new(),
    };
    let mut manifest = manifest(2);
    let (side, scores) = (value("side", 10), value("scores", 10));
    manifest.blocks[0].outputs = vec![value("v1", 500), side.clone()];
    manifest.blocks[1].inputs = vec!["v1".to_owned(), "side".to_owned()];
    manifest.blocks[1].outputs = vec![side.clone(), scores.clone()];
    manifest.outputs = vec![side, scores];
    let exit = |name: &str, block, output: &str, threshold| lamina_model::Exit {
        name: name.to_owned(),
        block,
        output: output.to_owned(),
        within: None,
        criterion: lamina_model::ExitCriterion::Confidence,
        classes: 10,
        temperature: 1.0,
        threshold,
        table: Vec::new(),
        expected: Some(lamina_model::ExitExpectation {
            exit_rate: 0.5,
            accuracy: Some(0.9),
            accuracy_alone: 0.8,
        }),
    };
    manifest.exits = vec![
        exit("early", 0, "side", Some(0.9)),
        exit("final", 1, "scores", None),
    ];
    manifest
}

/// `x → v1 → …`: each block takes 40 ms on a host of 4 GFLOP/s, holds 1 MiB, and its output is half
/// of its input.
pub(crate) fn manifest(blocks: usize) -> Manifest {
    let value = |i: usize| ValueSpec {
        name: if i == 0 { "x".into() } else { format!("v{i}") },
        datatype: DataType::Fp32,
        shape: vec![-1, (1000_i64 >> i.min(63)).max(1)],
        sizes: Vec::new(),
    };
    Manifest {
        version: MANIFEST_VERSION,
        source: Digest::of(b"source"),
        runtime: "libtorch 2.13.0".into(),
        rung: Rung::Direct,
        rung_reason: None,
        inputs: vec![value(0)],
        outputs: vec![value(blocks)],
        arguments: Vec::new(),
        output_structure: None,
        exits: Vec::new(),
        blocks: (0..blocks)
            .map(|i| Block {
                kind: BlockKind::TorchScript,
                digest: Digest::of(format!("block {i}").as_bytes()),
                file_bytes: 1 << 20,
                weight_bytes: 1 << 20,
                peak_activation_bytes: 4096,
                flops: 1_000_000,
                time: Seconds {
                    p50: 0.04,
                    p10: 0.04,
                    p90: 0.05,
                },
                cut_penalty_seconds: 0.0,
                inputs: vec![value(i).name],
                outputs: vec![value(i + 1)],
            })
            .collect(),
        probe: Digest::of(b"probe"),
        probe_bytes: 77,
        check: BoundaryCheck {
            compared: 5,
            max_abs_diff: 0.0,
            telling_diff: 1.0,
            sizes: std::collections::BTreeMap::new(),
        },
        prepared_gflops: 4.0,
        weight_bytes: None,
        lopsided_share: None,
        rows_are_independent: Some(true),
        encoding_errors: Vec::new(),
    }
}

pub(crate) fn digest() -> String {
    Digest::of(b"manifest").to_string()
}

pub(crate) fn profile() -> ProfileSummary {
    ProfileSummary {
        source: Digest::of(b"source").to_string(),
        manifest: digest(),
        wish: crate::prepare::spec::wish(&model_spec(), &BTreeSet::new())
            .unwrap()
            .source_hash,
        generation: 1,
        blocks: 4,
        rung: "direct".into(),
        rung_reason: None,
        size: "4.0Mi".into(),
        weight_bytes: 4 << 20,
        flops: 4_000_000,
        node: "cloud-1".into(),
        max_abs_diff: 0.0,
    }
}

pub(crate) fn model() -> DnnModel {
    DnnModel {
        metadata: ObjectMeta {
            name: Some("net".into()),
            namespace: Some("default".into()),
            uid: Some(MODEL_UID.into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: model_spec(),
        status: None,
    }
}

/// The model with its profile in status.
pub(crate) fn prepared_model() -> DnnModel {
    DnnModel {
        status: Some(DnnModelStatus {
            profile: Some(profile()),
            ..DnnModelStatus::default()
        }),
        ..model()
    }
}

pub(crate) fn hop(node: &str) -> Hop {
    Hop {
        node: node.into(),
        address: format!("{node}:8001"),
    }
}

pub(crate) fn plan(revision: i64, path: &[(&str, Range<u32>)]) -> Plan {
    Plan {
        revision,
        generation: 1,
        manifest: digest(),
        segments: path
            .iter()
            .map(|(node, blocks)| Segment {
                host: hop(node),
                blocks: blocks.clone().collect(),
            })
            .collect(),
        crossings: Vec::new(),
        thresholds: BTreeMap::new(),
        strategy: "optimal".into(),
        certificate: "Optimal".into(),
        estimated_latency_ms: 50.0,
        replaced_latency_ms: None,
        trigger: "first placement".into(),
        cause: Cause::Required,
        time: Time(at(0)),
    }
}

pub(crate) fn placement(newest: Option<Plan>, active: Option<Plan>) -> Placement {
    Placement {
        metadata: ObjectMeta {
            name: Some("net-cam-1".into()),
            namespace: Some("default".into()),
            uid: Some(PLACEMENT_UID.into()),
            generation: Some(1),
            owner_references: Some(vec![OwnerReference {
                api_version: lamina_crds::DnnModel::api_version(&()).into_owned(),
                kind: "DnnModel".into(),
                name: "net".into(),
                uid: MODEL_UID.into(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PlacementSpec {
            model: "net".into(),
            entry: "cam-1".into(),
            plan: newest,
        },
        status: active.map(|active| PlacementStatus {
            active_revision: active.revision,
            model_generation: 1,
            active_since: Some(Time(at(0))),
            active: Some(active),
            ..PlacementStatus::default()
        }),
    }
}

fn compute_node(name: &str, tier: &str, gflops: f64) -> ComputeNode {
    let truth = |kind| condition(kind, true, "Test", "", None, Time(at(0)));
    ComputeNode {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("{name}-uid")),
            ..ObjectMeta::default()
        },
        spec: ComputeNodeSpec {
            tier: tier.into(),
            operator: "10.0.0.3:9000".into(),
            ..ComputeNodeSpec::default()
        },
        status: Some(ComputeNodeStatus {
            address: format!("{name}:8001"),
            conditions: vec![truth(BENCHMARKED), truth(READY)],
            capacity: Some(Capacity {
                gflops,
                lanes: 1,
                threads: 1,
                concurrency: 1,
                cpu_millis: 500,
                memory_bytes: 1 << 30,
            }),
            ..ComputeNodeStatus::default()
        }),
    }
}

/// 100 s after the operator's start, with fast links (10 ms, 12.5 MB/s).
pub(crate) fn world() -> Snapshot {
    let mut links: BTreeMap<(String, String), LinkView> = BTreeMap::new();
    for (a, ..) in NODES {
        for (b, ..) in NODES.into_iter().filter(|(b, ..)| *b != a) {
            let view = LinkView {
                rtt_seconds: Some(0.01),
                bytes_per_second: Some(12.5e6),
                noise: 0.05,
                bandwidth_age_seconds: 0.0,
                reachable: true,
                estimated: false,
            };
            links.insert((a.to_owned(), b.to_owned()), view);
        }
    }
    let by_name = |name: &str| name.to_owned();
    Snapshot {
        now: Moment::at(100.0),
        wall: at(100),
        started: Moment::at(0.0),
        endpoint: "10.0.0.3:9000".into(),
        operator_node: "cloud-1".into(),
        models: Vec::new(),
        unreadable: BTreeMap::new(),
        placements: Vec::new(),
        compute_nodes: NODES
            .iter()
            .map(|(n, tier, g)| (by_name(n), Arc::new(compute_node(n, tier, *g))))
            .collect(),
        nodes: NODES
            .iter()
            .map(|(n, tier, _)| (by_name(n), node(n, tier, false)))
            .collect(),
        agents: NODES
            .iter()
            .map(|(n, ..)| by_name(n))
            .collect::<BTreeSet<_>>(),
        joins: BTreeSet::new(),
        agent_ips: BTreeMap::new(),
        live: NODES
            .iter()
            .map(|(n, ..)| {
                let live = LiveNode {
                    address: format!("{n}:8001"),
                    alive: true,
                    memory_free_bytes: 1 << 30,
                    leaving: false,
                    last_seen: Some(at(100)),
                };
                (by_name(n), live)
            })
            .collect(),
        links: links.into_iter().collect::<Links>(),
        timings: BTreeMap::new(),
        requests: BTreeMap::new(),
        exit_rows: BTreeMap::new(),
        manifests: BTreeMap::from([(digest(), Arc::new(manifest(4)))]),
        manifest_bytes: BTreeMap::from([(digest(), 4096)]),
        recovering: BTreeSet::new(),
        prepares: BTreeMap::new(),
        plugins: BTreeSet::from(["plugin/mine".to_owned()]),
        memory_share: 1.0,
        held: Held::default(),
        questions: BTreeMap::new(),
        changed_links: Vec::new(),
    }
}

/// Changes links in place.
pub(crate) fn change_links(links: &mut Links, mut change: impl FnMut(&str, &str, &mut LinkView)) {
    let mut all = Vec::new();
    links.each(|from, to, mut view| {
        change(from, to, &mut view);
        all.push(((from.to_owned(), to.to_owned()), view));
    });
    *links = all.into_iter().collect();
}

/// A Node with the usual labels.
pub(crate) fn node(name: &str, tier: &str, is_cordoned: bool) -> NodeView {
    let labels = [("kubernetes.io/hostname", name), (TIER_LABEL, tier)];
    NodeView(Arc::new(Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("node-{name}")),
            labels: Some(labels.map(|(k, v)| (k.into(), v.into())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            unschedulable: Some(is_cordoned),
            ..NodeSpec::default()
        }),
        ..Node::default()
    }))
}

/// The model of [`manifest`] at the camera, placed by `strategy`.
pub(crate) fn question(strategy: &str) -> Question {
    let mut spec = model_spec();
    spec.strategy.name = strategy.into();
    let snapshot = world();
    let wish = crate::prepare::spec::wish(&spec, &snapshot.plugins).unwrap();
    Question {
        wish: Arc::new(wish),
        manifest: Arc::new(manifest(4)),
        digest: digest(),
        entry: "cam-1".into(),
        placement_uid: String::new(),
        namespace: "default".into(),
        current: None,
        serving: None,
        is_urgent: false,
        rate_per_second: 1.0,
        exit_shares: Vec::new(),
        doubt: None,
        supposed: Vec::new(),
        held: Held::default(),
        reserved: Reserved::default(),
        cluster: Arc::new(Cluster::of(&snapshot, &mut Memory::default())),
        learned: Arc::default(),
    }
}

pub(crate) fn slice(uid: &str, revision: i64, segment: u32) -> Slice {
    Slice {
        placement_uid: uid.into(),
        model: "default/net".into(),
        revision,
        segment,
        blocks: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        next: None,
        callers: None,
        batching: None,
        encoding: None,
    }
}
