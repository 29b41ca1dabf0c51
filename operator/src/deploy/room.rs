//! How much one ComputeNode can hold. The API server's datastore limits an object to 1.5 MiB,
//! including the agent's report. So a wish beyond 1 MiB is left out: existing slices stay, and
//! those that do not fit are placed elsewhere. A namespace has the same share of it as of the
//! host's memory.

use super::slices::{self, RoutePlan};
use crate::state::ids;
use crate::state::plans::DeployFailure;
use crate::state::snapshot::Snapshot;
use lamina_crds::compute_node::{Route, Slice};
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

/// Bytes that the models of one namespace may take.
fn most_of_one(share: f64) -> usize {
    if share >= 1.0 {
        return MOST_BYTES;
    }
    (MOST_BYTES as f64 * share) as usize
}

/// The namespace of a slice's model.
fn namespace(slice: &Slice) -> &str {
    let named = slice.model.split_once('/');
    named.map_or("", |(namespace, _)| namespace)
}

/// What is left of one ComputeNode while it is filled.
struct Room {
    taken: usize,
    of_namespaces: BTreeMap<String, usize>,
    most_of_one: usize,
}

impl Room {
    fn new(share: f64) -> Self {
        Self {
            taken: 0,
            of_namespaces: BTreeMap::new(),
            most_of_one: most_of_one(share),
        }
    }

    /// What is there already takes its part, whether it fits or not.
    fn has(&mut self, namespace: &str, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
        let of_namespace = self.of_namespaces.entry(namespace.to_owned()).or_default();
        *of_namespace = of_namespace.saturating_add(bytes);
    }

    /// Whether `bytes` more fit; then they are taken.
    fn takes(&mut self, namespace: &str, bytes: usize) -> bool {
        let of_namespace = self.of_namespaces.get(namespace).copied().unwrap_or(0);
        let fits = self.taken.saturating_add(bytes) <= MOST_BYTES
            && of_namespace.saturating_add(bytes) <= self.most_of_one;
        if fits {
            self.has(namespace, bytes);
        }
        fits
    }
}

/// `wished` without new entries that do not fit beside those that `present` has, in the whole or in
/// the `share` of their namespace; standby blocks give way to the rest.
pub(crate) fn fitting(
    present: Option<&ComputeNodeSpec>,
    mut wished: ComputeNodeSpec,
    share: f64,
) -> ComputeNodeSpec {
    let needed = [
        sum(&wished.slices),
        sum(&wished.routes),
        sum(&wished.standby),
    ];
    if needed.into_iter().fold(0, usize::saturating_add) <= most_of_one(share) {
        return wished;
    }
    let slices = present.iter().flat_map(|spec| &spec.slices);
    let slices: BTreeSet<_> = slices.map(key).collect();
    let routes = present.iter().flat_map(|spec| &spec.routes);
    let routes: BTreeSet<&str> = routes.map(|r| r.placement_uid.as_str()).collect();
    let is_said = |slice: &Slice| slices.contains(&key(slice));
    let is_route_said = |route: &Route| routes.contains(route.placement_uid.as_str());
    let mut room = Room::new(share);
    for slice in wished.slices.iter().filter(|slice| is_said(slice)) {
        room.has(namespace(slice), bytes(slice));
    }
    for route in wished.routes.iter().filter(|route| is_route_said(route)) {
        room.has(&route.namespace, bytes(route));
    }
    wished
        .routes
        .retain(|route| is_route_said(route) || room.takes(&route.namespace, bytes(route)));
    wished
        .slices
        .retain(|slice| is_said(slice) || room.takes(namespace(slice), bytes(slice)));
    // Nothing says whose they are; they are the first to go.
    let mut left = MOST_BYTES.saturating_sub(room.taken);
    wished.standby.retain(|standby| {
        let rest = left.checked_sub(bytes(standby));
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    wished
}

/// The host whose ComputeNode is full, for all or for the namespace of `placement`, if `plan` has
/// something for it that is not there yet.
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
    let own = placement.metadata.namespace.as_deref().unwrap_or_default();
    let share = snapshot.memory_share;
    let full = |node: &str, more: usize| {
        let spec = &snapshot.compute_nodes.get(node)?.spec;
        let told = sum(&spec.slices).saturating_add(sum(&spec.routes));
        let needed = told.saturating_add(more);
        if needed > MOST_BYTES {
            return Some(Full {
                needed,
                most: MOST_BYTES,
                of: None,
            });
        }
        let slices = spec.slices.iter().filter(|slice| namespace(slice) == own);
        let routes = spec.routes.iter().filter(|route| route.namespace == own);
        let told = slices.map(bytes).chain(routes.map(bytes));
        let needed = told.fold(more, usize::saturating_add);
        let most = most_of_one(share);
        (needed > most).then_some(Full {
            needed,
            most,
            of: Some(own),
        })
    };
    more.into_iter().find_map(|(node, more)| {
        let full = full(node, more)?;
        Some(failure(node, plan, &full))
    })
}

/// What does not fit, in bytes.
struct Full<'a> {
    needed: usize,
    most: usize,
    /// The namespace whose share it is; else all of it.
    of: Option<&'a str>,
}

fn failure(node: &str, plan: &Plan, full: &Full<'_>) -> DeployFailure {
    let blocks = plan.segments.iter().filter(|s| s.host.node == node);
    let blocks: Vec<String> = blocks.map(|s| format_blocks(&s.blocks)).collect();
    let what = match blocks.is_empty() {
        true => "be told of one more model".to_owned(),
        false => format!("be told of blocks {}", blocks.join(",")),
    };
    let (needed, most) = (
        format_bytes(full.needed as u64),
        format_bytes(full.most as u64),
    );
    let why = match full.of {
        None => format!(
            "its ComputeNode would have {needed} of slices and routes, and {most} is the most that the API server keeps"
        ),
        Some(namespace) => format!(
            "namespace {namespace} would have {needed} of its ComputeNode, and {most} is its share"
        ),
    };
    DeployFailure {
        reason: reasons::SEGMENT_LOAD_FAILED,
        message: format!("{node} cannot {what}: {why}"),
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
        assert_eq!(fitting(None, wished, 1.0).slices, []);
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
        let fits = fitting(Some(&present), wished.clone(), 1.0);
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
        let fits = fitting(None, full, 1.0);
        assert_eq!((revisions(&fits), fits.standby.len()), (vec![1, 2], 0));
        // Existing slices stay even above the bound.
        let fits = fitting(Some(&wished), wished.clone(), 1.0);
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

    #[test]
    fn a_namespace_fills_no_more_than_its_share_of_a_computenode() {
        let (mut snapshot, placement) = of_blocks(4000);
        let [own] = &slices(&snapshot, &placement)[..] else {
            panic!()
        };
        assert_eq!(own.model, "default/net");
        let of = |namespace: &str, revision| Slice {
            model: format!("{namespace}/net"),
            revision,
            ..own.clone()
        };
        // Each takes some 0.4 MiB: with half of it, a namespace has room for one.
        let wished = ComputeNodeSpec {
            slices: vec![of("a", 1), of("a", 2), of("b", 3)],
            ..ComputeNodeSpec::default()
        };
        let kept = |present: Option<&ComputeNodeSpec>, share| -> Vec<i64> {
            let fits = fitting(present, wished.clone(), share);
            fits.slices.iter().map(|s| s.revision).collect()
        };
        assert_eq!(kept(None, 1.0), [1, 2]);
        assert_eq!(kept(None, 0.5), [1, 3]);
        // What is there stays.
        let present = ComputeNodeSpec {
            slices: vec![of("a", 1), of("a", 2)],
            ..ComputeNodeSpec::default()
        };
        assert_eq!(kept(Some(&present), 0.5), [1, 2]);

        let mut clock = Clock::default();
        snapshot.memory_share = 0.5;
        edge(&mut snapshot).spec.slices = vec![of("a", 7)];
        let loading = phase(&snapshot, &placement, &mut clock);
        assert!(matches!(loading, Phase::Loading { .. }), "{loading:?}");
        edge(&mut snapshot).spec.slices = vec![of("default", 7)];
        let failure = failed(phase(&snapshot, &placement, &mut clock));
        assert_eq!(failure.node.as_deref(), Some("edge-1"));
        let expected = "edge-1 cannot be told of blocks 0-3999: namespace default would have ";
        assert!(failure.message.starts_with(expected), "{}", failure.message);
    }
}
