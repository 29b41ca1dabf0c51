//! What is to be done, as data. The executor has no choice left.

use crate::metrics::Solve;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use lamina_crds::{ComputeNodeSpec, DnnModelStatus, Hop, PlacementSpec, PlacementStatus};
use lamina_placement::{Parameters, Problem};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Everything that one look at the world led to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decisions {
    /// Writes, in the order in which they are to be started.
    pub writes: Vec<Write>,
    /// Hosts whose links matter, by host.
    pub peers: BTreeMap<String, Vec<Hop>>,
    /// Prepare jobs to start.
    pub prepares: Vec<StartPrepare>,
    /// Prepare jobs that nobody waits for.
    pub forget_prepares: Vec<String>,
    /// Strategies that were asked.
    pub solves: Vec<Solve>,
    /// Questions for plugins. One replaces another with the same key.
    pub asks: Vec<Ask>,
    /// Keys of questions whose answer was taken, or that nobody waits for.
    pub forget_asks: Vec<String>,
}

/// One write. Its Events are published once it has succeeded, so that each
/// decision is told once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    /// What is written.
    pub change: Change,
    /// What people are told then.
    pub events: Vec<Notice>,
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// Create or update a ComputeNode.
    ComputeNode {
        /// Its name.
        name: String,
        /// The Node.
        owner: OwnerReference,
        /// The wish.
        spec: ComputeNodeSpec,
    },
    /// The operator's conditions of a ComputeNode.
    ComputeNodeConditions {
        /// Its name.
        name: String,
        /// Ready.
        conditions: Vec<Condition>,
    },
    /// Create or update a Placement.
    Placement {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// UID of the one that is updated; `None` creates.
        uid: Option<String>,
        /// The DnnModel.
        owner: OwnerReference,
        /// The plan.
        spec: PlacementSpec,
    },
    /// A Placement's status.
    PlacementStatus {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Only the one with this UID.
        uid: String,
        /// The report.
        status: Box<PlacementStatus>,
    },
    /// Remove a Placement.
    DeletePlacement {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Only the one with this UID.
        uid: String,
    },
    /// A DnnModel's status.
    ModelStatus {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Only the one with this UID.
        uid: String,
        /// The report.
        status: Box<DnnModelStatus>,
    },
    /// Nothing; only the Events matter.
    Nothing,
}

/// An object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Regarding {
    /// `DnnModel`, `Placement` or `ComputeNode`.
    pub kind: &'static str,
    /// Its namespace; `None` for a ComputeNode.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// An Event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// It needs attention.
    pub warning: bool,
    /// A reason of [`lamina_crds::reasons`].
    pub reason: &'static str,
    /// What is done, in one word.
    pub action: &'static str,
    /// What happened, with numbers.
    pub note: String,
}

/// A prepare job for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartPrepare {
    /// The agent's node.
    pub node: String,
    /// Id of the job.
    pub job: String,
    /// Where the model's file is.
    pub uri: String,
    /// Its hash; empty where any file is taken.
    pub sha256: String,
    /// JSON list of lamina-model's `InputSpec`.
    pub inputs_json: String,
}

/// A question for a plugin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// What is placed, as [`super::memory::placement_key`] names it.
    pub key: String,
    /// The strategy's name, which selects the plugin.
    pub strategy: String,
    /// Generation of the DnnModel.
    pub generation: i64,
    /// The problem.
    pub problem: Arc<Problem>,
    /// Parameters of the strategy.
    pub parameters: Parameters,
}

impl Decisions {
    /// Adds a write with its Events.
    pub(crate) fn write(&mut self, change: Change, events: Vec<Notice>) {
        if change == Change::Nothing && events.is_empty() {
            return;
        }
        self.writes.push(Write { change, events });
    }
}
