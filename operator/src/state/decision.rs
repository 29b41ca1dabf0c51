//! The decisions of a look, as data. The executor has no choices left.

use super::cluster::{Cluster, LARGEST_SHARE};
use super::ids::{JobId, ObjectId, PlacementKey, SecretId};
use super::links::{LinkView, Pair};
use super::memory::Learned;
use super::notice::Notice;
use super::reserved::Reserved;
use super::snapshot::{About, Held, Need};
use super::wish::Wish;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use lamina_crds::dnn_model::Samples;
use lamina_crds::placement::{Plan, RedeployPhases};
use lamina_crds::{ComputeNodeSpec, DnnModelStatus, PlacementSpec, PlacementStatus};
use lamina_model::Manifest;
use lamina_placement::Tier;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A link that became slower. Links of one host often share a bottleneck: until its other links are
/// measured again, they are assumed to be slower as well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Doubt {
    /// The link.
    pub link: Pair,
    /// Its rate now relative to before; below 1.
    pub ratio: f64,
    /// Seconds since the change was noticed.
    pub since_seconds: f64,
}

impl Doubt {
    /// Whether it is about the link from `from` to `to`, as `view` has it: one that shares
    /// a host with the slower one, and that nobody has measured since.
    pub(crate) fn is_about(&self, from: &str, to: &str, view: Option<&LinkView>) -> bool {
        let (a, b) = &self.link;
        let shares_host = [from, to].iter().any(|host| host == a || host == b);
        let is_itself = from == a && to == b;
        // What was measured while the change was being noticed may be of before.
        let is_stale = |v: &LinkView| v.bandwidth_age_seconds > self.since_seconds;
        shares_host && !is_itself && view.is_none_or(is_stale)
    }
}

/// What is supposed of the world in a question ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Supposed {
    /// The links of a host are slower.
    Slow {
        /// The host.
        host: String,
        /// By this factor.
        times: u32,
    },
    /// This host is away.
    Lost(String),
}

/// The decisions of one look.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    /// Writes, in the order in which to start them.
    pub writes: Vec<Write>,
    /// Which links matter.
    pub interest: Interest,
    /// Entries of each model, by namespace and name.
    pub directory: BTreeMap<(String, String), Entries>,
    /// Prepare jobs to start.
    pub prepares: Vec<StartPrepare>,
    /// Models that wait for a host to prepare them.
    pub waiting: Vec<WaitingPrepare>,
    /// Prepare jobs whose result is no longer needed.
    pub forget_prepares: Vec<JobId>,
    /// Answers of strategies, for the metrics.
    pub solves: Vec<Solve>,
    /// Redeploys that ended, with their phases.
    pub redeployed: Vec<RedeployPhases>,
    /// Questions. One replaces another with the same key.
    pub asks: Vec<Ask>,
    /// Keys of questions whose answer was used or is no longer needed.
    pub forget_asks: Vec<PlacementKey>,
    /// Seconds until another look is needed even if nothing happens.
    pub again_seconds: Option<f64>,
}

/// Which links matter, and how much.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Interest {
    /// Hosts with their tiers.
    pub hosts: BTreeMap<String, Tier>,
    /// Links of paths that serve or are being deployed: both ends watch them closely.
    pub paths: BTreeSet<Pair>,
    /// Links of a better path that were not measured recently.
    pub wanted: BTreeSet<Pair>,
    /// Hosts where requests arise.
    pub entries: BTreeSet<String>,
}

/// One answer of a strategy, for the metrics.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Solve {
    /// The strategy's name.
    pub strategy: String,
    /// Time that it took.
    pub seconds: f64,
    /// `(objective - lower bound) / objective`; `None` if nothing was proved or found.
    pub gap: Option<f64>,
    /// A plugin gave no good answer, and a built-in strategy replaced it.
    pub fell_back: bool,
}

/// The entries of one model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// The entries.
    pub entries: Vec<EntryAt>,
    /// Why none of them serves; empty if one does.
    pub reason: String,
    /// It is being deployed, so a request may wait for it.
    pub coming: bool,
}

/// One entry of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryAt {
    /// The host.
    pub node: String,
    /// Where its agent listens.
    pub address: String,
    /// UID of the Placement.
    pub placement_uid: String,
    /// A verified revision serves there.
    pub serves: bool,
}

/// The urgency of a write, the highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Haste {
    /// A plan, or its input: everything else waits for it.
    Plan,
    /// A step of a deployment: requests wait for it, or will.
    Step,
    /// A report for people.
    Report,
}

/// One write. Its Events are published once it succeeds, so that each decision is reported once.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    /// Its urgency.
    pub haste: Haste,
    /// The change.
    pub change: Change,
    /// Events to publish afterwards.
    pub events: Vec<Notice>,
}

/// The owner of a ComputeNode.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Holder {
    /// Its Node.
    Node(OwnerReference),
    /// The object with this UID, by which its host joined: once it is deleted, it is not recreated.
    Join(String),
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// Create or update a ComputeNode.
    ComputeNode {
        /// Its name.
        name: String,
        /// Its owner.
        of: Holder,
        /// The wish.
        spec: ComputeNodeSpec,
    },
    /// The operator's conditions of a ComputeNode.
    ComputeNodeConditions {
        /// Its name.
        name: String,
        /// The conditions.
        conditions: Vec<Condition>,
    },
    /// Create or update a Placement.
    Placement {
        /// Which one; one without UID is created.
        id: ObjectId,
        /// The DnnModel.
        owner: OwnerReference,
        /// The plan.
        spec: PlacementSpec,
    },
    /// A Placement's status.
    PlacementStatus {
        /// Which one.
        id: ObjectId,
        /// The report.
        status: Box<PlacementStatus>,
    },
    /// Delete a Placement.
    DeletePlacement {
        /// Which one.
        id: ObjectId,
    },
    /// A DnnModel's status.
    ModelStatus {
        /// Which one.
        id: ObjectId,
        /// The report.
        status: Box<DnnModelStatus>,
    },
    /// Nothing; only publish the Events.
    Nothing,
}

/// A prepare job for an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartPrepare {
    /// The agent's node.
    pub node: String,
    /// The job.
    pub job: JobId,
    /// Where the model's file is.
    pub uri: String,
    /// Its hash; empty if any file is accepted.
    pub sha256: String,
    /// JSON list of lamina-model's `Declared`.
    pub inputs_json: String,
    /// The credentials for the source.
    pub secret: Option<SecretId>,
    /// Where the user's own requests are.
    pub samples: Option<Samples>,
}

/// Why a model is prepared, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PrepareNeed {
    /// It serves, but its blocks are lost: it cannot move until they are recovered.
    Lost,
    /// Nothing of it serves.
    First,
    /// Another version of it serves.
    Update,
}

/// A prepare job that needs a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WaitingPrepare {
    /// How urgent it is.
    pub need: PrepareNeed,
    /// Namespace of the model.
    pub namespace: String,
    /// Hosts that have tried.
    pub tried: BTreeSet<String>,
    /// The job, without a host.
    pub job: StartPrepare,
}

/// A question for a strategy, with everything that its problem is built from.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// What is placed.
    pub key: PlacementKey,
    /// What it is about.
    pub about: About,
    /// Its urgency.
    pub need: Need,
    /// The question.
    pub question: Arc<Question>,
}

/// What is placed, on which hosts, and where it is now.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The wishes.
    pub wish: Arc<Wish>,
    /// The prepared model.
    pub manifest: Arc<Manifest>,
    /// Its digest.
    pub digest: String,
    /// The node where requests arise.
    pub entry: String,
    /// UID of the Placement; empty before there is one.
    pub placement_uid: String,
    /// Requests per second: the measured or the declared rate, whichever is higher.
    pub rate_per_second: f64,
    /// Namespace of the model.
    pub namespace: String,
    /// The plan that serves or is on its way.
    pub current: Option<Plan>,
    /// The plan that serves, whose memory its hosts count as taken.
    pub serving: Option<Plan>,
    /// The serving plan must be left: requests wait for the move.
    pub is_urgent: bool,
    /// Share of requests that leave at each exit of the model, including the last; empty if all run
    /// to the end.
    pub exit_shares: Vec<f64>,
    /// A link that became slower, which casts doubt on others.
    pub doubt: Option<Doubt>,
    /// Scenarios of a question ahead; empty if a plan is asked for.
    pub supposed: Vec<Supposed>,
    /// Blobs in the caches of hosts.
    pub held: Held,
    /// Resources reserved by answers that are not plans yet; known once it is this question's turn.
    pub reserved: Reserved,
    /// Hosts and links, shared by all questions of a look.
    pub cluster: Arc<Cluster>,
    /// What was learned about hosts.
    pub learned: Arc<Learned>,
}

impl Question {
    /// Share of `host` that others use, or will.
    pub(crate) fn host_share_of_others(&self, host: &str) -> f64 {
        let taken = self.cluster.share_of_others(host, &self.placement_uid);
        (taken + self.reserved.host(host)).clamp(0.0, LARGEST_SHARE)
    }

    /// Share of a link with this many bytes per second that others use, or will.
    pub(crate) fn link_share_of_others(&self, (from, to): (&str, &str), rate: f64) -> f64 {
        let uid = &self.placement_uid;
        let taken = self.cluster.link_share_of_others((from, to), rate, uid);
        (taken + self.reserved.link(from, to)).max(0.0)
    }
}

impl Decisions {
    /// Adds decisions that were made separately.
    pub(crate) fn append(&mut self, more: Self) {
        let Self {
            writes,
            interest,
            directory,
            prepares,
            waiting,
            forget_prepares,
            solves,
            redeployed,
            asks,
            forget_asks,
            again_seconds,
        } = more;
        self.look_again(again_seconds);
        self.writes.extend(writes);
        self.interest.hosts.extend(interest.hosts);
        self.interest.paths.extend(interest.paths);
        self.interest.wanted.extend(interest.wanted);
        self.interest.entries.extend(interest.entries);
        self.directory.extend(directory);
        self.prepares.extend(prepares);
        self.waiting.extend(waiting);
        self.forget_prepares.extend(forget_prepares);
        self.solves.extend(solves);
        self.redeployed.extend(redeployed);
        self.asks.extend(asks);
        self.forget_asks.extend(forget_asks);
    }

    /// Asks for another look after `seconds`, or sooner.
    pub(crate) fn look_again(&mut self, seconds: Option<f64>) {
        let both = self.again_seconds.into_iter().chain(seconds);
        self.again_seconds = both.reduce(f64::min);
    }

    /// Adds a write with its Events.
    pub(crate) fn write(&mut self, haste: Haste, change: Change, events: Vec<Notice>) {
        if change == Change::Nothing && events.is_empty() {
            return;
        }
        self.writes.push(Write {
            haste,
            change,
            events,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_is_about_links_of_the_same_hosts_that_nobody_has_measured_since() {
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let doubt = Doubt {
            link: pair("cam-1", "cloud-1"),
            ratio: 0.1,
            since_seconds: 20.0,
        };
        let measured = |bandwidth_age_seconds| LinkView {
            rtt_seconds: Some(0.01),
            bytes_per_second: Some(1e6),
            noise: 0.1,
            bandwidth_age_seconds,
            reachable: true,
            estimated: false,
        };
        let (before, since) = (measured(20.5), measured(19.5));
        assert!(doubt.is_about("cam-1", "edge-1", Some(&before)));
        assert!(doubt.is_about("edge-1", "cloud-1", Some(&before)));
        assert!(doubt.is_about("cam-1", "edge-1", None), "never measured");
        assert!(!doubt.is_about("cam-1", "edge-1", Some(&since)));
        assert!(!doubt.is_about("edge-1", "edge-2", Some(&before)));
        assert!(
            !doubt.is_about("cam-1", "cloud-1", Some(&before)),
            "its own figures are known"
        );
        assert!(doubt.is_about("cloud-1", "cam-1", Some(&before)));
    }
}
