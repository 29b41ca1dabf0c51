//! Which plans of a Placement serve, are being deployed or failed, and the state of the newest.

use super::links::Pair;
use lamina_crds::compute_node::Verification;
use lamina_crds::placement::{Crossing, Plan};
use lamina_crds::{GROUP, Placement, PlacementStatus};

/// Reason of a plan that waits for measurements.
pub(crate) const WAITING: &str = "WaitingForMeasurements";

/// The state of the newest plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// There is no plan yet.
    Unplanned,
    /// The newest plan that could be deployed serves.
    Serving,
    /// The newest plan failed and none serves.
    Nothing,
    /// Hosts fetch and load.
    Loading {
        /// Slices that are ready.
        ready: usize,
        /// Slices in all.
        total: usize,
        /// Every host has its blocks.
        fetched: bool,
        /// The message of the first slow host.
        waiting_for: String,
    },
    /// The entry sends the probe.
    Verifying,
    /// The probe passed; the entry is flipping, or older requests are in flight.
    Flipping(Option<Verification>),
    /// The newest plan serves alone.
    Flipped {
        /// Requests that were in flight at the flip.
        in_flight_at_flip: u32,
    },
    /// The newest plan cannot be deployed.
    Failed(DeployFailure),
}

impl Phase {
    /// Whether the newest plan is on its way.
    pub(crate) const fn is_moving(&self) -> bool {
        matches!(
            self,
            Self::Loading { .. } | Self::Verifying | Self::Flipping(_)
        )
    }
}

/// Why a plan cannot be deployed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DeployFailure {
    /// `SegmentLoadFailed` or `VerifyFailed`.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
    /// The host at fault, if one is.
    pub node: Option<String>,
}

/// UID of the DnnModel that owns `placement`, by what the object says. The model may lie in
/// another namespace, and then it is not the owner: Kubernetes knows no such owners.
pub(crate) fn owner_uid(placement: &Placement) -> Option<&str> {
    let owners = placement.metadata.owner_references.as_deref();
    let mut owners = owners.unwrap_or_default().iter();
    // Of whichever version.
    let is_ours = |api_version: &str| {
        let group = api_version.split_once('/').map(|(group, _)| group);
        group == Some(GROUP)
    };
    let owner = owners.find(|o| o.kind == "DnnModel" && is_ours(&o.api_version))?;
    Some(owner.uid.as_str())
}

/// The plan that serves.
pub(crate) fn active(placement: &Placement) -> Option<&Plan> {
    placement.status.as_ref()?.active.as_ref()
}

/// The newest plan, if it neither serves nor failed.
pub(crate) fn target(placement: &Placement) -> Option<&Plan> {
    let plan = placement.spec.plan.as_ref()?;
    let (active, failed) = placement
        .status
        .as_ref()
        .map_or((0, 0), |s| (s.active_revision, s.failed_revision));
    (plan.revision > active && plan.revision > failed).then_some(plan)
}

/// Whether writing `status` changes which plan of `placement` serves or is being deployed.
pub(crate) fn moves_on(placement: &Placement, status: &PlacementStatus) -> bool {
    let before = placement.status.as_ref();
    let before = before.map_or((0, 0), |s| (s.active_revision, s.failed_revision));
    before != (status.active_revision, status.failed_revision)
}

/// The hosts of `plan` in order of its path.
pub(crate) fn hosts(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.segments.iter().map(|s| s.host.node.as_str())
}

/// The crossing into segment `index`, if the plan has one.
pub(crate) fn crossing_into(plan: &Plan, index: usize) -> Option<&Crossing> {
    let mut crossings = plan.crossings.iter();
    crossings.find(|c| usize::try_from(c.segment).is_ok_and(|s| s == index))
}

/// The links that requests of `plan` take, in order.
pub(crate) fn links(entry: &str, plan: &Plan) -> Vec<Pair> {
    let hosts: Vec<&str> = std::iter::once(entry).chain(hosts(plan)).collect();
    hosts
        .windows(2)
        .filter(|w| w[0] != w[1])
        .map(|w| (w[0].to_owned(), w[1].to_owned()))
        .collect()
}

/// Whether raw input leaves `entry` although the first `keep` blocks should stay on it.
pub(crate) fn leaks(entry: &str, plan: &Plan, keep: usize) -> bool {
    let elsewhere = plan.segments.iter().filter(|s| s.host.node != entry);
    elsewhere
        .flat_map(|s| &s.blocks)
        .any(|b| usize::try_from(*b).is_ok_and(|b| b < keep))
}
