//! The problem: blocks, nodes, links and the requirements on a placement.
//!
//! Nodes have names here; strategies compile the problem into dense ordinals.
//! A link or a time that was never measured is absent, and absent means
//! unreachable or unable, never zero.

use crate::objective::Objective;
use crate::solution::Segment;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The place of a node between the sensor and the data centre. [`Constraints::monotone_tiers`]
/// refers to this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Tier {
    /// A sensor, camera or handset.
    Device,
    /// A gateway or a small server nearby.
    Edge,
    /// A data centre.
    Cloud,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Edge => "edge",
            Self::Cloud => "cloud",
        })
    }
}

/// A host that can run blocks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Name, unique in the problem.
    pub name: String,
    /// Tier.
    pub tier: Tier,
    /// Memory for slices in bytes: what the workloads of this problem may use, without other users'
    /// share.
    pub memory_bytes: u64,
    /// Bytes that stay loaded during the switch and that are in no [`Workload::previous`], such as
    /// an older model version.
    #[serde(default)]
    pub resident_bytes: u64,
    /// Share of its compute that others use, in `0..1`: a block takes
    /// `seconds / (1 - load_share)`.
    #[serde(default)]
    pub load_share: f64,
    /// Highest allowed utilisation, including the load of others, above 0 and at most 1. Below 1 it
    /// keeps queues short.
    #[serde(default = "default_cap")]
    pub utilisation_cap: f64,
    /// Requests that it computes at the same time without slowing each other.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// Watts that computing one request adds to the node's idle draw; 0 if not measured.
    #[serde(default)]
    pub active_watts: f64,
    /// Money per second of computing one request, in the currency of the whole problem.
    #[serde(default)]
    pub price_per_second: f64,
    /// Why it must not host blocks now (`not ready`, `cordoned`), if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<String>,
}

impl Node {
    /// An idle node with the default cap (0.8) and one request at a time.
    pub fn new(name: impl Into<String>, tier: Tier, memory_bytes: u64) -> Self {
        Self {
            name: name.into(),
            tier,
            memory_bytes,
            resident_bytes: 0,
            load_share: 0.0,
            utilisation_cap: default_cap(),
            concurrency: 1,
            active_watts: 0.0,
            price_per_second: 0.0,
            excluded: None,
        }
    }
}

/// One direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// One-way latency in seconds. A crossing pays both directions, because
    /// the reply travels the chain back.
    pub latency_seconds: f64,
    /// Bandwidth in bytes per second.
    pub bytes_per_second: f64,
    /// Share of the bandwidth that the workloads may use together, above 0 and
    /// at most 1.
    #[serde(default = "default_cap")]
    pub share: f64,
    /// Joules per byte, of both ends and everything in between.
    #[serde(default)]
    pub joules_per_byte: f64,
    /// Money per byte.
    #[serde(default)]
    pub price_per_byte: f64,
}

impl Link {
    /// A link with the default share (0.8).
    pub fn new(latency_seconds: f64, bytes_per_second: f64) -> Self {
        Self {
            latency_seconds,
            bytes_per_second,
            share: default_cap(),
            joules_per_byte: 0.0,
            price_per_byte: 0.0,
        }
    }
}

/// A value that travels between blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Value {
    /// Name, unique in the workload.
    pub name: String,
    /// Bytes on the wire, after its encoding (also for inputs).
    pub bytes: u64,
}

/// What one block costs on one node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BlockCost {
    /// Compute time in seconds on the node when nothing else runs there.
    pub seconds: f64,
    /// Additional seconds on the node if the model is cut after this block (what merging across the
    /// cut would have saved).
    #[serde(default)]
    pub cut_penalty_seconds: f64,
}

impl BlockCost {
    /// A block without cut penalty.
    pub const fn new(seconds: f64) -> Self {
        Self {
            seconds,
            cut_penalty_seconds: 0.0,
        }
    }
}

/// The smallest unit of placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Block {
    /// Names of the values it consumes.
    pub inputs: Vec<String>,
    /// Names of the values it produces.
    pub outputs: Vec<String>,
    /// Bytes it occupies in a node's memory once loaded.
    pub memory_bytes: u64,
    /// Bytes of its slice, which the slice limits count.
    pub slice_bytes: u64,
    /// Cost by node name; it cannot run on absent nodes.
    pub costs: BTreeMap<String, BlockCost>,
}

/// One row of an exit's table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExitPoint {
    /// Confidence at which a request leaves.
    pub threshold: f64,
    /// Probability, in `0..=1`, that a request which reaches the exit leaves.
    pub rate: f64,
    /// Accuracy, in `0..=1`, of those that leave.
    pub accuracy: f64,
}

/// A side exit, computed with the block it branches from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exit {
    /// The block after which requests leave.
    pub after_block: usize,
    /// Bytes of its reply on the wire.
    pub reply_bytes: u64,
    /// Thresholds to choose from. One row is a fixed threshold; several need
    /// [`Constraints::min_accuracy`], or the fastest would always win.
    pub table: Vec<ExitPoint>,
}

/// A block that must run on a node, or must not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BlockOnNode {
    /// The block's ordinal.
    pub block: usize,
    /// The node's name.
    pub node: String,
}

/// Constraints on the placement of one workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Constraints {
    /// Blocks that must run on a given node.
    pub pins: Vec<BlockOnNode>,
    /// Blocks that must not run on a given node.
    pub forbidden: Vec<BlockOnNode>,
    /// This many first blocks stay on the entry (privacy).
    pub keep_first_on_entry: usize,
    /// Tiers that may host blocks; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tiers: Option<BTreeSet<Tier>>,
    /// From block to block the tier never goes down again.
    pub monotone_tiers: bool,
    /// Most slice bytes of this workload on each node of a tier.
    pub tier_slice_limit_bytes: BTreeMap<Tier, u64>,
    /// Most slice bytes of this workload on a node, by name.
    pub node_slice_limit_bytes: BTreeMap<String, u64>,
    /// Lowest expected accuracy, in `0..=1`, if exits have a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_accuracy: Option<f64>,
    /// Highest expected latency in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_limit_seconds: Option<f64>,
}

/// Where the workload runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Previous {
    /// Its segments in order.
    pub segments: Vec<Segment>,
    /// Further blocks whose files nodes have on disk: they are not loaded, but moving there fetches
    /// nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_disk: Vec<Segment>,
    /// Objective seconds charged per slice byte of a block that moves to a node without it, loaded
    /// or on disk.
    #[serde(default)]
    pub move_seconds_per_byte: f64,
}

/// One model as seen from one entry. A model with several entries is several
/// workloads that share the nodes, as several models do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Name, unique in the problem.
    pub name: String,
    /// Node where requests arrive and replies go.
    pub entry: String,
    /// Expected requests per second; 0 if unknown.
    pub rate_per_second: f64,
    /// Weight in the objective.
    #[serde(default = "unit")]
    pub weight: f64,
    /// Every value: the inputs (produced by no block), those between blocks, the outputs.
    pub values: Vec<Value>,
    /// The blocks in execution order. A DAG is given in a topological order; every value that is
    /// still needed after a cut crosses it.
    pub blocks: Vec<Block>,
    /// Names of the values that the reply carries.
    pub outputs: Vec<String>,
    /// Accuracy, in `0..=1`, of requests that run to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_accuracy: Option<f64>,
    /// Side exits in order of their blocks.
    #[serde(default)]
    pub exits: Vec<Exit>,
    /// Constraints.
    #[serde(default)]
    pub constraints: Constraints,
    /// The placement it has now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// How memory is counted while two revisions are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transition {
    /// Only the new placement counts: the old one is drained first.
    Drain,
    /// A node holds the old and the new blocks at once; a block that stays on its node is held
    /// once.
    #[default]
    Shared,
    /// As `Shared`, but a block that stays is loaded twice. A workload whose placement does not
    /// change at all loads nothing.
    Separate,
}

/// The whole problem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Problem {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Directed links by the names of sender, then receiver. An absent one is
    /// unreachable.
    pub links: BTreeMap<String, BTreeMap<String, Link>>,
    /// What is placed; usually one.
    pub workloads: Vec<Workload>,
    /// What is minimized.
    #[serde(default)]
    pub objective: Objective,
    /// How memory is counted during the switch.
    #[serde(default)]
    pub transition: Transition,
}

impl Problem {
    /// The directed link, if it was measured.
    pub fn link(&self, from: &str, to: &str) -> Option<&Link> {
        self.links.get(from)?.get(to)
    }

    /// Sets one direction.
    pub fn set_link(&mut self, from: impl Into<String>, to: impl Into<String>, link: Link) {
        self.links
            .entry(from.into())
            .or_default()
            .insert(to.into(), link);
    }
}

const fn default_cap() -> f64 {
    0.8
}

const fn unit() -> f64 {
    1.0
}

const fn one() -> u32 {
    1
}
