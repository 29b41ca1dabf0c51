//! A cluster of many hosts in sites, around the pure decisions: its agents measure only the
//! requested links, like those of `operator-bench`.

use super::{Bench, compute_node, node, profile, world as small_world};
use crate::observe;
use crate::state::decision::Decisions;
use crate::state::plans;
use crate::state::snapshot::{LiveNode, RequestView, RunTimes};
use crate::world::{Identity, SessionHandle, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lamina_crds::{DnnModel, DnnModelSpec, DnnModelStatus};
use lamina_model::{Digest, Manifest};
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::operator_message::Message as ToAgent;
use lamina_proto::control::{LinkSample, LinkSamples, OperatorMessage};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Hosts per site: one in the cloud, some edges, devices.
const SITE: usize = 25;
const EDGES_OF_SITE: usize = 4;
/// Requests per second at each entry.
const REQUESTS: f64 = 2.0;
/// Real profiles.
const PROFILES: [&str; 2] = [
    include_str!("../../../examples/plan/mobilenet-v2.json"),
    include_str!("../../../examples/plan/googlenet.json"),
];

/// The cluster.
pub(crate) struct Fleet {
    /// The decisions and the stored objects.
    pub bench: Bench,
    world: World,
    agents: Vec<Agent>,
}

/// A host's end of its session.
struct Agent {
    name: String,
    site: usize,
    gflops: f64,
    session: SessionHandle,
    told: mpsc::Receiver<OperatorMessage>,
    /// Hosts that it must measure.
    peers: Vec<String>,
}

impl Fleet {
    /// `hosts` hosts, and `models` prepared models, each with a device of its own as its entry.
    pub(crate) fn new(hosts: usize, models: usize) -> Self {
        let world = World::new();
        let mut snapshot = small_world();
        snapshot.compute_nodes.clear();
        snapshot.nodes.clear();
        snapshot.live.clear();
        snapshot.agents.clear();
        snapshot.manifests.clear();
        snapshot.manifest_bytes.clear();
        let mut agents = Vec::new();
        let mut devices = Vec::new();
        for ordinal in 0..hosts {
            let (tier, gflops, memory_mib) = match ordinal % SITE {
                0 => ("cloud", 80.0, 16_384),
                place @ 1..=EDGES_OF_SITE => ("edge", 24.0 + 4.0 * place as f64, 4096),
                place => ("device", 3.0 + 0.05 * place as f64, 768),
            };
            let name = format!("{tier}-{ordinal:04}");
            if tier == "device" {
                devices.push(name.clone());
            }
            let compute = compute_node(&name, tier, gflops);
            snapshot
                .compute_nodes
                .insert(name.clone(), Arc::new(compute));
            snapshot
                .nodes
                .insert(name.clone(), node(&name, tier, false));
            snapshot.agents.insert(name.clone());
            let live = LiveNode {
                address: format!("{name}:8001"),
                alive: true,
                memory_free_bytes: memory_mib << 20,
                leaving: false,
                last_seen: None,
            };
            snapshot.live.insert(name.clone(), live);
            let (session, told) = world.open_session(Identity {
                node: name.clone(),
                version: "1".into(),
                address: format!("{name}:8001"),
                started_unix_ms: 0,
            });
            agents.push(Agent {
                name,
                site: ordinal / SITE,
                gflops,
                session,
                told,
                peers: Vec::new(),
            });
        }
        world.set_known(snapshot.compute_nodes.keys().cloned());
        let manifests = PROFILES.map(|text| serde_json::from_str::<Manifest>(text).unwrap());
        for ordinal in 0..models {
            let manifest = &manifests[ordinal % manifests.len()];
            let digest = Digest::of(manifest.source.as_str().as_bytes()).to_string();
            let model = served_at(
                ordinal,
                &devices[ordinal % devices.len()],
                manifest,
                &digest,
            );
            snapshot.models.push(Arc::new(model));
            snapshot
                .manifests
                .insert(digest.clone(), Arc::new(manifest.clone()));
            snapshot.manifest_bytes.insert(digest, 4096);
        }
        Self {
            bench: Bench::of(snapshot),
            world,
            agents,
        }
    }

    /// Lets `seconds` seconds pass: reconciles, measurements, reports and requests.
    pub(crate) fn run(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.second();
        }
    }

    /// One second; returns the decisions of its reconcile.
    pub(crate) fn second(&mut self) -> Decisions {
        let bench = &mut self.bench;
        bench.snapshot.links = observe::links(&self.world, self.agents.len());
        let decisions = bench.look();
        let interest = &decisions.interest;
        self.world.set_interest(
            &interest.hosts,
            &interest.paths,
            &interest.wanted,
            &interest.entries,
        );
        self.measure();
        self.bench.agents();
        self.serve();
        self.bench.pass(1000);
        decisions
    }

    /// Number of Placements with a plan, and of active ones.
    pub(crate) fn planned_and_serving(&self) -> (usize, usize) {
        let placements = self.bench.snapshot.placements.iter();
        let planned = placements.clone().filter(|p| p.spec.plan.is_some());
        let serving = placements.filter(|p| plans::active(p).is_some());
        (planned.count(), serving.count())
    }

    /// Each agent measures the links requested last.
    fn measure(&mut self) {
        let sites: BTreeMap<String, usize> = self
            .agents
            .iter()
            .map(|a| (a.name.clone(), a.site))
            .collect();
        for agent in &mut self.agents {
            while let Ok(message) = agent.told.try_recv() {
                let Some(ToAgent::Peers(list)) = message.message else {
                    continue;
                };
                agent.peers = list.peers.into_iter().map(|p| p.node).collect();
            }
            let samples = agent.peers.iter().map(|peer| {
                let there = (peer.as_str(), sites[peer]);
                let (rtt_seconds, bytes_per_second) = link((&agent.name, agent.site), there);
                LinkSample {
                    peer: peer.clone(),
                    rtt_seconds,
                    bytes_per_second,
                    bytes: 131_072,
                    ..LinkSample::default()
                }
            });
            let samples = samples.collect();
            agent
                .session
                .heard(FromAgent::Links(LinkSamples { samples }));
        }
    }

    /// Requests arrive where a plan is active.
    fn serve(&mut self) {
        let speeds: BTreeMap<&str, f64> = self
            .agents
            .iter()
            .map(|a| (a.name.as_str(), a.gflops))
            .collect();
        let snapshot = &mut self.bench.snapshot;
        for placement in &snapshot.placements {
            let (Some(plan), Some(uid)) = (plans::active(placement), &placement.metadata.uid)
            else {
                continue;
            };
            let manifest = &snapshot.manifests[&plan.manifest];
            for (index, segment) in plan.segments.iter().enumerate() {
                let blocks = segment.blocks.iter();
                let prepared: f64 = blocks.map(|b| manifest.blocks[*b as usize].time.p50).sum();
                let seconds =
                    prepared * manifest.prepared_gflops / speeds[segment.host.node.as_str()];
                let key = (uid.clone(), plan.revision, index as u32);
                let times = RunTimes {
                    request_seconds: seconds,
                    row_seconds: seconds,
                };
                snapshot.timings.insert(key, times);
            }
            let view = RequestView {
                revision: plan.revision,
                answered: 100,
                answered_per_second: REQUESTS,
                latency_p50_seconds: plan.estimated_latency_ms / 1e3,
                latency_p95_seconds: plan.estimated_latency_ms / 1e3,
                rows: 1.0,
            };
            snapshot.requests.insert(uid.clone(), view);
        }
    }
}

/// Round trip and rate of a link: short and fast inside a site, longer and slower between two. No
/// two are exactly equal.
fn link((from, site): (&str, usize), (to, other): (&str, usize)) -> (f64, f64) {
    let (a, b) = (from.min(to), from.max(to));
    let hash = Digest::of(format!("{a}|{b}").as_bytes());
    let spread = u8::from_str_radix(&hash.as_str()[..2], 16).unwrap();
    let spread = f64::from(spread) / 255.0;
    if site == other {
        (0.004 * (1.0 + 0.5 * spread), 12.5e6 * (1.0 - 0.5 * spread))
    } else {
        let rtt = 0.02 + 0.001 * (site.abs_diff(other) - 1) as f64;
        (
            rtt.min(0.08) * (1.0 + 0.2 * spread),
            5e6 * (1.0 - 0.2 * spread),
        )
    }
}

/// A prepared model, as for a camera: raw images stay, and not everything fits.
fn served_at(ordinal: usize, entry: &str, manifest: &Manifest, digest: &str) -> DnnModel {
    let spec: DnnModelSpec = serde_json::from_value(json!({
        "source": {"uri": format!("http://files/{ordinal}.pt")},
        "inputs": manifest.inputs,
        "entry": {"nodeSelector": {"kubernetes.io/hostname": entry}},
        "objective": {"goal": "Latency", "requestsPerSecond": 0.5},
        "constraints": {
            "keepOnEntry": 1,
            "sliceMemory": [{"tier": "device", "limit": "4M"}],
        },
        "adaptation": {"coolDownSeconds": 0},
    }))
    .unwrap();
    let wish = crate::prepare::spec::wish(&spec, &BTreeSet::new()).unwrap();
    let profile = lamina_crds::dnn_model::ProfileSummary {
        manifest: digest.to_owned(),
        wish: wish.source_hash,
        ..profile()
    };
    DnnModel {
        metadata: ObjectMeta {
            name: Some(format!("model-{ordinal:03}")),
            namespace: Some("default".into()),
            uid: Some(format!("model-{ordinal:03}-uid")),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec,
        status: Some(DnnModelStatus {
            profile: Some(profile),
            ..DnnModelStatus::default()
        }),
    }
}
