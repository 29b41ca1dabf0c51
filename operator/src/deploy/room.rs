//! How much one ComputeNode can hold. The API server's datastore limits an object to 1.5 MiB,
//! including the agent's report. So a wish beyond 1 MiB is left out: existing slices stay, and
//! those that do not fit are placed elsewhere.

use super::slices::{self, RoutePlan};
use crate::state::ids;
use crate::state::plans::DeployFailure;
use crate::state::snapshot::Snapshot;
use lamina_crds::compute_node::Slice;
use lamina_crds::placement::{Plan, format_blocks};
use lamina_crds::quantity::format_bytes;
use lamina_crds::{ComputeNodeSpec, Placement, reasons};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// Bytes of slices, routes and standby blocks in one ComputeNode at most, about ten thousand
/// blocks.
pub(crate) const MOST_BYTES: usize = 1 << 20;

/// Counts what is written to it.
struct Counter(usize);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that `part` takes in its list.
fn bytes(part: &impl Serialize) -> usize {
    let mut counted = Counter(0);
    // Neither counting nor these types fail.
    let written = serde_json::to_writer(&mut counted, part);
    written.map_or(usize::MAX, |()| counted.0 + 1)
}

fn sum<T: Serialize>(parts: &[T]) -> usize {
    parts.iter().map(bytes).fold(0, usize::saturating_add)
}

fn key(slice: &Slice) -> (&str, i64, u32) {
    (&slice.placement_uid, slice.revision, slice.segment)
}

/// `wished` without new entries that do not fit beside those that `present` has; standby blocks
/// give way to the rest.
pub(crate) fn fitting(
    present: Option<&ComputeNodeSpec>,
    mut wished: ComputeNodeSpec,
) -> ComputeNodeSpec {
    let needed = [
        sum(&wished.slices),
        sum(&wished.routes),
        sum(&wished.standby),
    ];
    if needed.into_iter().fold(0, usize::saturating_add) <= MOST_BYTES {
        return wished;
    }
    let slices = present.iter().flat_map(|spec| &spec.slices);
    let slices: BTreeSet<_> = slices.map(key).collect();
    let routes = present.iter().flat_map(|spec| &spec.routes);
    let routes: BTreeSet<&str> = routes.map(|r| r.placement_uid.as_str()).collect();
    let is_said = |slice: &Slice| slices.contains(&key(slice));
    let said = wished.slices.iter().filter(|s| is_said(s)).map(bytes);
    let also_said = wished.routes.iter();
    let also_said = also_said.filter(|r| routes.contains(r.placement_uid.as_str()));
    let taken = said.chain(also_said.map(bytes));
    let mut left = MOST_BYTES.saturating_sub(taken.fold(0, usize::saturating_add));
    let mut takes = |bytes: usize| {
        let rest = left.checked_sub(bytes);
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    let known = |uid: &str| routes.contains(uid);
    wished
        .routes
        .retain(|route| known(&route.placement_uid) || takes(bytes(route)));
    wished
        .slices
        .retain(|slice| is_said(slice) || takes(bytes(slice)));
    wished.standby.retain(|standby| takes(bytes(standby)));
    wished
}

/// The host whose ComputeNode is full, if `plan` has something for it that is not there yet.
pub(crate) fn crowded(
    snapshot: &Snapshot,
    placement: &Placement,
    plan: &Plan,
) -> Option<DeployFailure> {
    let uid = ids::uid(&placement.metadata);
    let entry = placement.spec.entry.as_str();
    let mut more: BTreeMap<&str, usize> = BTreeMap::new();
    let wanted = slices::slices_of(snapshot, placement, plan, None)?;
    for hosted in &wanted {
        let node = snapshot.compute_nodes.get(&hosted.node)?;
        let mut told = node.spec.slices.iter();
        if !told.any(|slice| key(slice) == key(&hosted.slice)) {
            *more.entry(&hosted.node).or_default() += bytes(&hosted.slice);
        }
    }
    if snapshot.route_on(entry, uid).is_none() {
        let wanted = RoutePlan {
            active_revision: 0,
            plans: vec![plan],
        };
        let route = slices::route_of(snapshot, placement, &wanted, 0, None)?;
        *more.entry(entry).or_default() += bytes(&route);
    }
    let needed = |node: &str, more: usize| {
        let spec = &snapshot.compute_nodes.get(node)?.spec;
        let told = sum(&spec.slices).saturating_add(sum(&spec.routes));
        Some(told.saturating_add(more))
    };
    more.into_iter().find_map(|(node, more)| {
        let needed = needed(node, more).filter(|bytes| *bytes > MOST_BYTES)?;
        Some(failure(node, plan, needed))
    })
}

fn failure(node: &str, plan: &Plan, needed: usize) -> DeployFailure {
    let blocks = plan.segments.iter().filter(|s| s.host.node == node);
    let blocks: Vec<String> = blocks.map(|s| format_blocks(&s.blocks)).collect();
    let what = match blocks.is_empty() {
        true => "be told of one more model".to_owned(),
        false => format!("be told of blocks {}", blocks.join(",")),
    };
    let (needed, most) = (format_bytes(needed as u64), format_bytes(MOST_BYTES as u64));
    DeployFailure {
        reason: reasons::SEGMENT_LOAD_FAILED,
        message: format!(
            "{node} cannot {what}: its ComputeNode would have {needed} of slices and routes, and {most} is the most that the API server keeps"
        ),
        node: (!blocks.is_empty()).then(|| node.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::phases::phase;
    use crate::state::memory::Clock;
    use crate::state::plans::Phase;
    use crate::testing::{digest, manifest, placement, plan, world};
    use lamina_crds::ComputeNode;
    use std::sync::Arc;

    /// A snapshot with a prepared model of that many blocks, and a plan for all of them.
    fn of_blocks(blocks: usize) -> (Snapshot, Placement) {
        let mut snapshot = world();
        let prepared = Arc::new(manifest(blocks));
        snapshot.manifests.insert(digest(), prepared);
        let all = plan(1, &[("edge-1", 0..u32::try_from(blocks).unwrap())]);
        (snapshot, placement(Some(all), None))
    }

    fn slices(snapshot: &Snapshot, placement: &Placement) -> Vec<Slice> {
        let plan = placement.spec.plan.as_ref().unwrap();
        let all = slices::slices_of(snapshot, placement, plan, None).unwrap();
        all.into_iter().map(|hosted| hosted.slice).collect()
    }

    fn edge(snapshot: &mut Snapshot) -> &mut ComputeNode {
        Arc::make_mut(snapshot.compute_nodes.get_mut("edge-1").unwrap())
    }

    /// The size as the API server receives it.
    fn whole(spec: &ComputeNodeSpec) -> usize {
        serde_json::to_vec(spec).unwrap().len()
    }

    fn failed(phase: Phase) -> DeployFailure {
        match phase {
            Phase::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn more_blocks_than_a_computenode_can_name_fail_at_once_and_are_not_written() {
        let (snapshot, placement) = of_blocks(12_000);
        let slices = slices(&snapshot, &placement);
        let wished = ComputeNodeSpec {
            slices: slices.clone(),
            ..ComputeNodeSpec::default()
        };
        assert!(whole(&wished) > MOST_BYTES);
        assert_eq!(fitting(None, wished).slices, []);
        let failure = failed(phase(&snapshot, &placement, &mut Clock::default()));
        assert_eq!(failure.reason, reasons::SEGMENT_LOAD_FAILED);
        assert_eq!(failure.node.as_deref(), Some("edge-1"));
        let expected = "edge-1 cannot be told of blocks 0-11999: its ComputeNode would have 1.";
        assert!(failure.message.starts_with(expected), "{}", failure.message);

        // Below the bound everything proceeds.
        let (snapshot, placement) = of_blocks(8000);
        let phase = phase(&snapshot, &placement, &mut Clock::default());
        assert!(matches!(phase, Phase::Loading { .. }), "{phase:?}");
    }

    #[test]
    fn what_is_there_stays_and_what_is_new_takes_what_is_left() {
        let (mut snapshot, placement) = of_blocks(4000);
        let [old] = &slices(&snapshot, &placement)[..] else {
            panic!()
        };
        let revision = |revision| Slice {
            revision,
            ..old.clone()
        };
        let blocks = old.blocks.clone();
        let standby = lamina_crds::compute_node::Standby {
            placement_uid: "other".into(),
            blocks: blocks[..100].to_vec(),
        };
        let wished = ComputeNodeSpec {
            slices: vec![revision(1), revision(2), revision(3)],
            standby: vec![standby.clone()],
            ..ComputeNodeSpec::default()
        };
        let present = ComputeNodeSpec {
            slices: vec![revision(3)],
            ..ComputeNodeSpec::default()
        };
        let revisions =
            |spec: &ComputeNodeSpec| -> Vec<_> { spec.slices.iter().map(|s| s.revision).collect() };
        let fits = fitting(Some(&present), wished.clone());
        assert_eq!(revisions(&fits), [1, 3]);
        assert_eq!(fits.standby, [standby]);
        assert!(whole(&fits) <= MOST_BYTES + 1024, "{}", whole(&fits));
        // Standby blocks give way first.
        let full = ComputeNodeSpec {
            slices: vec![revision(1), revision(2)],
            standby: vec![lamina_crds::compute_node::Standby {
                placement_uid: "other".into(),
                blocks,
            }],
            ..ComputeNodeSpec::default()
        };
        let fits = fitting(None, full);
        assert_eq!((revisions(&fits), fits.standby.len()), (vec![1, 2], 0));
        // Existing slices stay even above the bound.
        let fits = fitting(Some(&wished), wished.clone());
        assert_eq!(revisions(&fits), [1, 2, 3]);

        // The slice that does not fit is reported as soon as the others are there.
        let mut clock = Clock::default();
        let loading = phase(&snapshot, &placement, &mut clock);
        assert!(matches!(loading, Phase::Loading { .. }));
        edge(&mut snapshot).spec.slices = vec![revision(7), revision(8)];
        let failure = failed(phase(&snapshot, &placement, &mut clock));
        assert_eq!(failure.node.as_deref(), Some("edge-1"));
        // Its own slice counts once it is there.
        edge(&mut snapshot).spec.slices = vec![revision(7), revision(1)];
        let loading = phase(&snapshot, &placement, &mut clock);
        assert!(matches!(loading, Phase::Loading { .. }));
    }

    #[test]
    fn an_entry_that_can_be_told_of_no_more_models_says_so() {
        let (mut snapshot, placement) = of_blocks(4);
        let plan = placement.spec.plan.as_ref().unwrap();
        let wanted = RoutePlan {
            active_revision: 0,
            plans: vec![plan],
        };
        let route = slices::route_of(&snapshot, &placement, &wanted, 0, None).unwrap();
        let many = 2 * MOST_BYTES / bytes(&route);
        let routes = (0..many).map(|n| lamina_crds::compute_node::Route {
            placement_uid: format!("{}-{n}", route.placement_uid),
            ..route.clone()
        });
        let entry = snapshot.compute_nodes.get_mut("cam-1").unwrap();
        Arc::make_mut(entry).spec.routes = routes.collect();
        let failure = failed(phase(&snapshot, &placement, &mut Clock::default()));
        assert_eq!(failure.node, None);
        let expected = "cam-1 cannot be told of one more model: ";
        assert!(failure.message.starts_with(expected), "{}", failure.message);
    }
}
