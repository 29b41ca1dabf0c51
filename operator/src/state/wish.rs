//! A DnnModel's validated spec, which everything after validation uses.

use super::ids::ObjectId;
use lamina_crds::dnn_model::{Adaptation, Batching, EarlyExits, ExitMode, Goal, Samples};
use lamina_model::Declared;
use lamina_placement::{Parameters, Tier};
use lamina_profile::Activations;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A DnnModel whose spec is valid. Made only by `prepare::spec::validate`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ValidModel {
    /// The object.
    pub id: ObjectId,
    /// Generation of the spec.
    pub generation: i64,
    /// What it asks for.
    pub wish: Arc<Wish>,
}

/// What a valid spec asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wish {
    /// Where the model's file is.
    pub uri: String,
    /// The required hash, if the spec has one.
    pub sha256: Option<String>,
    /// Name of the Secret with the credentials for the source.
    pub secret: Option<String>,
    /// Where the user's own requests are.
    pub samples: Option<Samples>,
    /// Identifies source, inputs, arguments and samples: it changes with any of them.
    pub source_hash: String,
    /// The declared inputs and fixed arguments as preparing takes them.
    pub inputs: Vec<Declared>,
    /// The strategy.
    pub strategy: Choice,
    /// The objective.
    pub goal: Goal,
    /// Requests per second expected at each entry.
    pub rate_per_second: f64,
    /// Blocks that stay on the entry.
    pub keep_on_entry: usize,
    /// Tiers that may compute; `None` allows all.
    pub tiers: Option<BTreeSet<Tier>>,
    /// Largest slices that one host of a tier may hold, in bytes.
    pub slice_limits: BTreeMap<Tier, u64>,
    /// Blocks on nodes.
    pub pins: Vec<Pin>,
    /// Highest expected latency.
    pub latency_limit_seconds: Option<f64>,
    /// When blocks may move.
    pub adaptation: Adaptation,
    /// Early exits, if the spec configures them.
    pub exits: Option<EarlyExits>,
    /// Which requests are computed together, if the spec wants that.
    pub batching: Option<Batching>,
    /// The encoding of values between hosts, if they are not sent unchanged.
    pub activations: Option<Activations>,
}

impl Wish {
    /// The accuracy that the strategy must keep if it chooses thresholds of exits.
    pub(crate) fn min_accuracy(&self) -> Option<f64> {
        let exits = self.exits.as_ref()?;
        exits.min_accuracy.filter(|_| exits.mode == ExitMode::Early)
    }
}

/// Blocks that must run on one node. The range may exceed the model's blocks: it is clipped where
/// it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pin {
    /// First block.
    pub first: usize,
    /// Last block, included.
    pub last: usize,
    /// Name of the node.
    pub node: String,
}

/// The strategy of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// Name of the strategy.
    pub name: String,
    /// Its parameters.
    pub parameters: Parameters,
    /// It runs in a process of its own.
    pub is_plugin: bool,
}
