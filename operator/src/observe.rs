//! Builds the snapshot: the state of the cluster as plain data.

use crate::prepare::manifests::Loaded;
use crate::state::ids::{JobId, PlacementKey};
use crate::state::links::{LinkChange, LinkView, Links, Source};
use crate::state::listed::Listed;
use crate::state::plans;
use crate::state::snapshot::{
    Held, LiveNode, NodeView, PrepareView, QuestionView, RequestView, RunTimes, Snapshot,
};
use crate::state::time::Moment;
use crate::world::{LinkTable, NodeState, PrepareState, World};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::core::ObjectMeta;
use lamina_crds::ComputeNode;
use lamina_crds::placement::Plan;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Constants while the process leads.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Since when it leads.
    pub started: Moment,
    /// Where agents reach it.
    pub endpoint: String,
    /// Its node.
    pub node: String,
    /// Names that select a plugin.
    pub plugins: BTreeSet<String>,
    /// Highest share of a host's memory for the models of one namespace.
    pub memory_share: f64,
}

/// The input of a snapshot, besides the world.
pub(crate) struct Seen {
    /// The time for decisions.
    pub now: Moment,
    /// The time to display.
    pub wall: Timestamp,
    /// Objects of the API server.
    pub listed: Listed,
    /// Prepare jobs.
    pub prepares: BTreeMap<JobId, PrepareView>,
    /// Manifests from the store.
    pub loaded: Loaded,
    /// Questions to strategies.
    pub questions: BTreeMap<PlacementKey, QuestionView>,
    /// Links that changed since the last look.
    pub changed_links: Vec<LinkChange>,
}

/// Builds the snapshot.
pub(crate) fn snapshot(place: &Place, seen: Seen, world: &World) -> Snapshot {
    let Seen { now, wall, .. } = seen;
    let listed = seen.listed;
    let timings = timings(&listed, world);
    let hosts = listed.compute_nodes.len();
    let (requests, exit_rows) = requests(world);
    let Machines {
        nodes,
        joins,
        agents,
        agent_ips,
    } = machines(listed.nodes, &listed.agents, &listed.compute_nodes);
    Snapshot {
        now,
        wall,
        started: place.started,
        operator_node: place.node.clone(),
        endpoint: place.endpoint.clone(),
        models: listed.models,
        unreadable: listed.unreadable,
        placements: listed.placements,
        compute_nodes: listed
            .compute_nodes
            .into_iter()
            .map(|n| (n.name_any(), n))
            .collect(),
        nodes,
        joins,
        agent_ips,
        agents,
        live: world
            .nodes()
            .into_iter()
            .map(|(name, state)| (name, live(&state, wall)))
            .collect(),
        links: links(world, hosts),
        changed_links: seen.changed_links,
        timings,
        requests,
        exit_rows,
        manifests: seen.loaded.manifests,
        manifest_bytes: seen.loaded.bytes,
        recovering: seen.loaded.recovering,
        prepares: seen.prepares,
        plugins: place.plugins.clone(),
        memory_share: place.memory_share,
        held: Held(world.inventories()),
        questions: seen.questions,
    }
}

/// The node of an agent's pod that runs or will.
fn agent(pod: &Pod) -> Option<String> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let is_over = matches!(phase, Some("Succeeded" | "Failed"));
    let node = pod.spec.as_ref()?.node_name.clone()?;
    (!is_over).then_some(node)
}

/// The machines that hosts run on.
struct Machines {
    nodes: BTreeMap<String, NodeView>,
    joins: BTreeSet<String>,
    agents: BTreeSet<String>,
    agent_ips: BTreeMap<String, BTreeSet<IpAddr>>,
}

/// Nodes with their agents, and hosts that join without a Node.
fn machines(nodes: Vec<Arc<Node>>, pods: &[Arc<Pod>], hosts: &[Arc<ComputeNode>]) -> Machines {
    let nodes = nodes.into_iter().map(|n| (n.name_any(), NodeView(n)));
    let mut all = Machines {
        nodes: nodes.collect(),
        joins: BTreeSet::new(),
        agents: pods.iter().filter_map(|p| agent(p)).collect(),
        agent_ips: agent_ips(pods),
    };
    for host in hosts.iter().filter(|host| host.spec.join.is_some()) {
        let name = host.name_any();
        // A Node of that name has priority.
        if all.nodes.contains_key(&name) {
            continue;
        }
        let view = NodeView(Arc::new(in_place_of_a_node(host)));
        all.nodes.insert(name.clone(), view);
        all.joins.insert(name.clone());
        if host.is_joined() {
            let ips = all.agent_ips.entry(name.clone()).or_default();
            ips.extend(told_ip(host));
            all.agents.insert(name);
        }
    }
    all
}

/// A stand-in for the Node of a host that joined without one, with the labels of its ComputeNode.
fn in_place_of_a_node(host: &ComputeNode) -> Node {
    Node {
        metadata: ObjectMeta {
            name: host.metadata.name.clone(),
            uid: host.metadata.uid.clone(),
            labels: host.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        ..Node::default()
    }
}

/// The address that a joined host reported; the operator checked it at that time.
fn told_ip(host: &ComputeNode) -> Option<IpAddr> {
    let address = host.status.as_ref()?.address.parse::<SocketAddr>().ok()?;
    Some(address.ip())
}

/// Addresses of agents' pods by node.
fn agent_ips(pods: &[Arc<Pod>]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut all: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for pod in pods {
        let (Some(node), Some(status)) = (agent(pod), pod.status.as_ref()) else {
            continue;
        };
        let ips = status.pod_ips.iter().flatten();
        let ips = ips.filter_map(|ip| ip.ip.parse::<IpAddr>().ok());
        all.entry(node).or_default().extend(ips);
    }
    all
}

fn live(state: &NodeState, wall: Timestamp) -> LiveNode {
    let ago = SignedDuration::try_from(state.last_seen).ok();
    LiveNode {
        address: state.address.clone(),
        alive: state.alive,
        memory_free_bytes: state.memory_free_bytes.unwrap_or(0),
        leaving: state.leaving,
        last_seen: ago.and_then(|ago| wall.checked_sub(ago).ok()),
    }
}

/// With this few hosts every link is measured soon.
const FEW_HOSTS: usize = 12;

/// The links of `world` at this moment, between this many hosts.
pub(crate) fn links(world: &World, hosts: usize) -> Links {
    Links::new(Measured {
        table: world.links(),
        is_large: hosts > FEW_HOSTS,
    })
}

/// The measured links.
#[derive(Debug)]
struct Measured {
    table: LinkTable,
    is_large: bool,
}

impl Source for Measured {
    fn get(&self, from: &str, to: &str) -> Option<LinkView> {
        self.table.get(from, to).map(LinkView::from)
    }

    fn or_estimated(&self, from: &str, to: &str) -> Option<LinkView> {
        if !self.is_large {
            return self.get(from, to);
        }
        self.table.estimated(from, to).map(LinkView::from)
    }

    fn each(&self, see: &mut dyn FnMut(&str, &str, LinkView)) {
        for (from, to, estimate) in self.table.iter() {
            see(from, to, estimate.into());
        }
    }
}

/// Live times of fewer runs are worth less than the warm-up: an idle host has some spare processor
/// time, which it lacks under load.
const TELLING_RUNS: u64 = 10;

/// Live times of every revision that serves or is about to, of each segment as the host says
/// that runs it: whoever else speaks of it knows nothing, or lies.
fn timings(listed: &Listed, world: &World) -> BTreeMap<(String, i64, u32), RunTimes> {
    let mut timings = BTreeMap::new();
    for placement in &listed.placements {
        let uid = placement.uid().unwrap_or_default();
        let mut all: Vec<&Plan> = plans::active(placement).into_iter().collect();
        all.extend(&placement.spec.plan);
        all.dedup_by_key(|plan| plan.revision);
        for plan in all {
            for t in world.segment_timings(&uid, plan.revision) {
                let index = usize::try_from(t.segment).ok();
                let segment = index.and_then(|index| plan.segments.get(index));
                let runs_it = segment.is_some_and(|segment| segment.host.node == t.node);
                if !runs_it || t.count < TELLING_RUNS {
                    continue;
                }
                let key = (uid.clone(), plan.revision, t.segment);
                let times = RunTimes {
                    request_seconds: t.compute_p50_seconds,
                    row_seconds: t.row_p50_seconds,
                };
                timings.insert(key, times);
            }
        }
    }
    timings
}

/// Requests reported by entries, and the number of rows that left at each exit, by Placement.
fn requests(world: &World) -> (BTreeMap<String, RequestView>, BTreeMap<String, Vec<u64>>) {
    let (mut requests, mut exit_rows) = (BTreeMap::new(), BTreeMap::new());
    for (uid, (_, estimate)) in world.requests() {
        let Some(e) = estimate else {
            continue;
        };
        let view = RequestView {
            revision: e.revision,
            answered: e.answered,
            answered_per_second: e.answered_per_second,
            latency_p50_seconds: e.p50_seconds,
            latency_p95_seconds: e.p95_seconds,
            rows: e.rows,
        };
        if !e.rows_by_exit.is_empty() {
            exit_rows.insert(uid.clone(), e.rows_by_exit);
        }
        requests.insert(uid, view);
    }
    (requests, exit_rows)
}

/// The prepare jobs.
pub(crate) fn prepares(world: &World) -> BTreeMap<JobId, PrepareView> {
    let view = |state: PrepareState| match state {
        PrepareState::Running {
            node,
            step,
            done,
            total,
            bytes,
        } => PrepareView::Running {
            node,
            step,
            done,
            total,
            bytes,
        },
        PrepareState::Done {
            node,
            manifest_digest,
        } => PrepareView::Done {
            node,
            manifest: manifest_digest,
        },
        PrepareState::Failed {
            node,
            reason,
            message,
            retryable,
        } => PrepareView::Failed {
            node,
            reason,
            message,
            retryable,
        },
        PrepareState::Lost { node } => PrepareView::Lost { node },
    };
    let jobs = world.prepares().into_iter();
    // All our jobs have such names.
    jobs.filter_map(|(job, state)| Some((job.parse().ok()?, view(state))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Identity;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use lamina_proto::control::agent_message::Message;
    use lamina_proto::control::{LinkSample, LinkSamples, SegmentTiming, SegmentTimings};

    fn pod(node: Option<&str>, phase: &str) -> Pod {
        Pod {
            spec: Some(PodSpec {
                node_name: node.map(str::to_owned),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.into()),
                ..PodStatus::default()
            }),
            ..Pod::default()
        }
    }

    /// A world in which `host` reported these links: peer, round trip and rate.
    fn told(world: &World, host: &str, links: &[(&str, f64, f64)]) {
        let (session, _outbox) = world.open_session(Identity {
            node: host.to_owned(),
            version: "1".into(),
            address: format!("{host}:8001"),
            started_unix_ms: 0,
        });
        let samples = links.iter().map(|(peer, rtt_seconds, rate)| LinkSample {
            peer: (*peer).to_owned(),
            rtt_seconds: *rtt_seconds,
            bytes_per_second: *rate,
            bytes: 1 << 17,
            ..LinkSample::default()
        });
        let samples = samples.collect();
        session.heard(Message::Links(LinkSamples { samples }));
    }

    #[test]
    fn a_link_that_was_measured_in_part_is_as_good_as_one_that_was_not() {
        let world = World::new();
        world.set_known(["a", "b", "c", "d"].map(str::to_owned));
        told(&world, "a", &[("b", 0.01, 0.0), ("c", 0.02, 7e6)]);
        told(&world, "d", &[("b", 0.03, 5e6)]);
        let large = links(&world, FEW_HOSTS + 1);
        let pinged = large.or_estimated("a", "b").unwrap();
        let near = |view: LinkView, rtt: f64, rate: f64| {
            let figures = view.figures();
            figures.is_some_and(|f| (f.0 - rtt).abs() < 1e-9 && (f.1 / rate - 1.0).abs() < 1e-9)
        };
        assert!(near(pinged, 0.01, 5e6), "{pinged:?}");
        assert!(pinged.estimated && !pinged.is_measured());
        // Nothing was sent in that direction, and only the round trip is the same.
        let back = large.or_estimated("b", "d").unwrap();
        assert_eq!(back.rtt_seconds, Some(0.03));
        assert!(back.figures().is_some() && back.estimated);
        let whole = large.or_estimated("d", "b").unwrap();
        assert!(near(whole, 0.03, 5e6), "{whole:?}");
        assert!(whole.is_measured());
        // With few hosts every link is measured soon.
        let small = links(&world, FEW_HOSTS).or_estimated("a", "b").unwrap();
        assert_eq!(small.figures(), None);
        for _ in 0..3 {
            let failed = LinkSample {
                peer: "b".into(),
                failed: true,
                ..LinkSample::default()
            };
            let samples = vec![failed];
            let (session, _outbox) = world.open_session(Identity {
                node: "a".into(),
                version: "1".into(),
                address: "a:8001".into(),
                started_unix_ms: 0,
            });
            session.heard(Message::Links(LinkSamples { samples }));
        }
        let dead = links(&world, FEW_HOSTS + 1).or_estimated("a", "b").unwrap();
        assert_eq!(dead.figures(), None, "it is no better than it was found");
    }

    #[test]
    fn of_a_segment_the_host_that_runs_it_alone_is_heard() {
        let plan = crate::testing::plan(1, &[("cam-1", 0..2), ("edge-1", 2..4)]);
        let placement = crate::testing::placement(Some(plan.clone()), Some(plan));
        let uid = placement.uid().unwrap();
        let listed = Listed {
            placements: vec![Arc::new(placement)],
            ..Listed::default()
        };
        let world = World::new();
        world.retain_placements(&listed.entries());
        let says = |host: &str, segment: u32, seconds: f64| {
            let (session, _outbox) = world.open_session(Identity {
                node: host.to_owned(),
                version: "1".into(),
                address: format!("{host}:8001"),
                started_unix_ms: 0,
            });
            let timing = SegmentTiming {
                placement_uid: uid.clone(),
                revision: 1,
                segment,
                count: TELLING_RUNS,
                compute_p50_seconds: seconds,
                queue_p50_seconds: 0.0,
                row_p50_seconds: seconds,
            };
            let timings = vec![timing];
            session.heard(Message::Segments(SegmentTimings { timings }));
        };
        says("cam-1", 0, 0.1);
        says("edge-1", 1, 0.2);
        // Before and behind them by name, and one of the path of the other's segment.
        for (host, segment) in [("a", 0), ("z", 0), ("z", 1), ("edge-1", 0), ("z", 7)] {
            says(host, segment, 3600.0);
        }
        let told = timings(&listed, &world);
        let seconds = |segment: u32| told[&(uid.clone(), 1_i64, segment)].request_seconds;
        assert_eq!((seconds(0), seconds(1), told.len()), (0.1, 0.2, 2));
    }

    fn joining(name: &str, joined: bool) -> Arc<ComputeNode> {
        let token = "01".repeat(32);
        let host = serde_json::json!({
            "apiVersion": "serving.lamina.dev/v1alpha1",
            "kind": "ComputeNode",
            "metadata": {"name": name, "uid": "u", "labels": {"site": "roof"}},
            "spec": {"join": {"tokenSha256": token, "expiresAt": "2026-01-01T00:00:00Z"}},
            "status": {
                "address": "10.0.0.9:8001",
                "joined": joined.then(|| serde_json::json!({
                    "tokenSha256": token, "keySha256": "k", "at": "2026-01-01T00:00:00Z"})),
            },
        });
        Arc::new(serde_json::from_value(host).unwrap())
    }

    #[test]
    fn a_host_that_joined_is_one_with_the_labels_of_its_object() {
        let node = Node {
            metadata: ObjectMeta {
                name: Some("edge-1".into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        let hosts = [
            joining("cam-9", true),
            joining("cam-10", false),
            joining("edge-1", true),
        ];
        let all = machines(vec![Arc::new(node)], &[], &hosts);
        assert_eq!(all.nodes["cam-9"].label("site"), Some("roof"));
        assert_eq!(all.nodes["cam-9"].uid(), "u");
        let ip: IpAddr = [10, 0, 0, 9].into();
        assert!(all.agent_ips["cam-9"].contains(&ip));
        // One that may still join is listed, but nobody waits for it.
        assert!(all.joins.contains("cam-10") && !all.agents.contains("cam-10"));
        assert!(all.agents.contains("cam-9"));
        // A Node of that name stays as it is.
        assert_eq!(all.nodes["edge-1"].label("site"), None);
        assert!(!all.joins.contains("edge-1") && !all.agents.contains("edge-1"));
        assert!(!all.agent_ips.contains_key("edge-1"));
    }

    #[test]
    fn an_agent_counts_from_when_it_is_bound_until_it_is_over() {
        assert_eq!(agent(&pod(None, "Pending")), None);
        assert_eq!(agent(&pod(Some("a"), "Pending")).as_deref(), Some("a"));
        assert_eq!(agent(&pod(Some("a"), "Running")).as_deref(), Some("a"));
        assert_eq!(agent(&pod(Some("a"), "Failed")), None);
    }
}
