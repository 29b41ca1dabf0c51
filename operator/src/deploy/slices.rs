//! The slices that the hosts of a plan must hold, and the routes of requests.
//!
//! Once written, a slice never changes, except for its batching: agents refuse a revision that
//! differs from the one they know. So slices already in the ComputeNodes are kept while the
//! manifest is unavailable, as after a restart with an empty store.

use crate::state::snapshot::Snapshot;
use crate::state::wish::Wish;
use crate::state::{exits, plans};
use lamina_crds::compute_node::{Blob, Route, RouteRevision, Slice};
use lamina_crds::dnn_model::{Batching, EarlyExits};
use lamina_crds::placement::{Plan, Segment, format_path};
use lamina_crds::{Placement, SizeBounds, TensorSize, TensorSpec};
use lamina_model::{Bounds, FreeSize, Manifest, ValueSpec};

/// A slice on its host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostedSlice {
    /// The host's name.
    pub node: String,
    /// The slice.
    pub slice: Slice,
}

fn tensor(value: &ValueSpec) -> TensorSpec {
    TensorSpec {
        name: value.name.clone(),
        datatype: value.datatype.as_str().to_owned(),
        shape: value.shape.clone(),
        sizes: value.sizes.iter().map(size).collect(),
    }
}

fn size(size: &FreeSize) -> TensorSize {
    let bounds = |b: &Bounds| SizeBounds {
        name: b.name.clone(),
        min: b.min,
        max: b.max,
        step: b.step,
    };
    TensorSize {
        dimension: u32::try_from(size.dimension).unwrap_or(u32::MAX),
        typical: size.typical,
        bounds: size.bounds.as_ref().map(bounds),
        file_bytes: size.file_bytes,
    }
}

fn tensors<'a>(values: impl IntoIterator<Item = &'a ValueSpec>) -> Vec<TensorSpec> {
    values.into_iter().map(tensor).collect()
}

/// The blocks of `segment` as ordinals of the manifest; `None` if the plan names blocks that the
/// manifest lacks.
fn ordinals(manifest: &Manifest, segment: &Segment) -> Option<Vec<usize>> {
    segment
        .blocks
        .iter()
        .map(|b| {
            usize::try_from(*b)
                .ok()
                .filter(|b| *b < manifest.blocks.len())
        })
        .collect()
}

/// Slice `index` of `plan`.
fn build_slice(
    uid: &str,
    model: &str,
    plan: &Plan,
    manifest: &Manifest,
    entry: &str,
    index: usize,
) -> Option<Slice> {
    let segment = plan.segments.get(index)?;
    let blocks = ordinals(manifest, segment)?;
    let (first, last) = (*blocks.first()?, *blocks.last()?);
    Some(Slice {
        placement_uid: uid.to_owned(),
        model: model.to_owned(),
        revision: plan.revision,
        segment: u32::try_from(index).ok()?,
        blocks: blocks
            .iter()
            .map(|b| &manifest.blocks[*b])
            .map(|b| Blob {
                digest: b.digest.to_string(),
                bytes: b.file_bytes,
            })
            .collect(),
        inputs: tensors(manifest.live_at(first)),
        outputs: tensors(manifest.live_at(last + 1)),
        next: plan.segments.get(index + 1).map(|s| s.host.clone()),
        callers: Some(vec![caller(plan, entry, index)?]),
        batching: None,
        encoding: plans::crossing_into(plan, index + 1).and_then(|c| c.encoding.clone()),
    })
}

/// The one host that calls slice `index`: the previous one on the path, or the entry for the first
/// slice.
fn caller(plan: &Plan, entry: &str, index: usize) -> Option<String> {
    match index.checked_sub(1) {
        None => Some(entry.to_owned()),
        Some(before) => Some(plan.segments.get(before)?.host.node.clone()),
    }
}

/// The slice as it is in the host's ComputeNode now.
fn written_slice(
    snapshot: &Snapshot,
    uid: &str,
    revision: i64,
    index: usize,
    node: &str,
) -> Option<Slice> {
    let spec = &snapshot.compute_nodes.get(node)?.spec;
    spec.slices
        .iter()
        .find(|s| {
            s.placement_uid == uid
                && s.revision == revision
                && usize::try_from(s.segment).is_ok_and(|i| i == index)
        })
        .cloned()
}

/// Every slice of `plan`; `None` if one is neither written nor can be built without the manifest.
/// `wish` is the wish in force, if known.
pub(crate) fn slices_of(
    snapshot: &Snapshot,
    placement: &Placement,
    plan: &Plan,
    wish: Option<&Wish>,
) -> Option<Vec<HostedSlice>> {
    let uid = placement.metadata.uid.as_deref()?;
    let namespace = placement.metadata.namespace.as_deref().unwrap_or_default();
    let model = format!("{namespace}/{}", placement.spec.model);
    let manifest = snapshot.manifests.get(&plan.manifest);
    let entry = placement.spec.entry.as_str();
    plan.segments
        .iter()
        .enumerate()
        .map(|(index, segment)| {
            let node = &segment.host.node;
            let slice = written_slice(snapshot, uid, plan.revision, index, node)
                .or_else(|| build_slice(uid, &model, plan, manifest?, entry, index))?;
            let batching = match (wish, manifest) {
                (Some(wish), Some(manifest)) => batching(wish, manifest),
                _ => slice.batching,
            };
            Some(HostedSlice {
                node: node.clone(),
                slice: Slice { batching, ..slice },
            })
        })
        .collect()
}

/// Which requests are computed together. The serving manifest may be older than the one that the
/// wish was checked against.
fn batching(wish: &Wish, manifest: &Manifest) -> Option<Batching> {
    wish.batching
        .filter(|_| manifest.rows_are_independent == Some(true))
}

/// Where requests of a Placement go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RoutePlan<'a> {
    /// Revision for new requests; 0 if none serves.
    pub active_revision: i64,
    /// Plans that may be called, oldest first.
    pub plans: Vec<&'a Plan>,
}

/// The route of `placement`, for its entry; `None` if it cannot be built yet. `keep` is the number
/// of blocks that must not leave the entry, `early` the spec's settings for exits.
pub(crate) fn route_of(
    snapshot: &Snapshot,
    placement: &Placement,
    wanted: &RoutePlan<'_>,
    keep: usize,
    early: Option<&EarlyExits>,
) -> Option<Route> {
    let uid = placement.metadata.uid.as_deref()?;
    let entry = placement.spec.entry.as_str();
    let written = snapshot.route_on(entry, uid);
    let revisions: Option<Vec<RouteRevision>> = wanted
        .plans
        .iter()
        .map(|plan| revision(snapshot, written, plan))
        .collect();
    Some(Route {
        placement_uid: uid.to_owned(),
        namespace: placement.metadata.namespace.clone().unwrap_or_default(),
        name: placement.spec.model.clone(),
        active_revision: wanted.active_revision,
        verify_revision: None,
        refuse: refusal(entry, wanted, keep),
        // Each revision has the thresholds that the strategy chose.
        exits: early.map(|early| EarlyExits {
            min_accuracy: None,
            ..early.clone()
        }),
        revisions: revisions?,
    })
}

/// One revision of a route: as written, or built from the manifest.
fn revision(snapshot: &Snapshot, written: Option<&Route>, plan: &Plan) -> Option<RouteRevision> {
    let known = written.and_then(|r| r.revisions.iter().find(|x| x.revision == plan.revision));
    if let Some(known) = known {
        return Some(known.clone());
    }
    let manifest = snapshot.manifests.get(&plan.manifest)?;
    Some(RouteRevision {
        revision: plan.revision,
        first: plan.segments.first()?.host.clone(),
        path: format_path(&plan.segments),
        inputs: tensors(&manifest.inputs),
        outputs: tensors(&manifest.outputs),
        exits: exits::of(manifest).map(|of| exits::with(of, &plan.thresholds)),
        encoding: plans::crossing_into(plan, 0).and_then(|c| c.encoding.clone()),
        error: error(plan),
        probe: Blob {
            digest: manifest.probe.to_string(),
            bytes: manifest.probe_bytes,
        },
        manifest: Blob {
            digest: plan.manifest.clone(),
            bytes: snapshot.manifest_bytes.get(&plan.manifest).copied()?,
        },
    })
}

/// The sum of the errors that the encodings of `plan` cause, if it has any.
fn error(plan: &Plan) -> Option<f64> {
    let encoded = plan.crossings.iter().filter(|c| c.encoding.is_some());
    let errors: Vec<f64> = encoded.filter_map(|c| c.error).collect();
    (!errors.is_empty()).then(|| lamina_profile::short(errors.iter().sum()))
}

/// Why requests are refused, if they are: raw input would leave the entry against the spec.
fn refusal(entry: &str, wanted: &RoutePlan<'_>, keep: usize) -> Option<String> {
    let mut plans = wanted.plans.iter();
    let serving = plans.find(|p| p.revision == wanted.active_revision)?;
    plans::leaks(entry, serving, keep).then(|| {
        format!(
            "spec.constraints.keepOnEntry is {keep}, and revision {} ({}) would send what must stay on {entry}; requests are refused until a placement keeps it there",
            serving.revision,
            format_path(&serving.segments)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_slice_names_the_host_before_it_or_the_entry() {
        let plan = testing::plan(1, &[("edge-1", 0..2), ("cloud-1", 2..3), ("edge-2", 3..4)]);
        let callers: Vec<_> = (0..4).map(|at| caller(&plan, "cam-1", at)).collect();
        let expected = [
            Some("cam-1"),
            Some("edge-1"),
            Some("cloud-1"),
            Some("edge-2"),
        ];
        assert_eq!(callers, expected.map(|node| node.map(str::to_owned)));
    }

    #[test]
    fn what_is_computed_together_follows_the_spec_while_the_rows_allow_it() {
        let mut spec = testing::model_spec();
        spec.batching = Some(Batching {
            max_rows: 8,
            max_delay_ms: 0,
        });
        let wish = crate::prepare::spec::wish(&spec, &std::collections::BTreeSet::new()).unwrap();
        let mut manifest = testing::manifest(4);
        assert_eq!(batching(&wish, &manifest), spec.batching);
        manifest.rows_are_independent = None;
        assert_eq!(batching(&wish, &manifest), None);
    }
}
