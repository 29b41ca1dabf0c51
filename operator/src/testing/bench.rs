//! A tiny API server with agents, around the pure decisions.

use super::{digest, manifest, model, world};
use crate::plan::desk;
use crate::reconcile::decide;
use crate::state::decision::{Ask, Change, Decisions};
use crate::state::memory::Memory;
use crate::state::notice::Notice;
use crate::state::snapshot::{Answer, Need, PrepareView, QuestionView, Snapshot};
use crate::testing::change_links;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::SignedDuration;
use lamina_crds::compute_node::{RouteStatus, SliceState, SliceStatus, Verification};
use lamina_crds::conditions::set;
use lamina_crds::{ComputeNode, DnnModel, Placement, PlacementStatus};
use lamina_model::Manifest;
use lamina_placement::Ctx;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The world, the operator's memory of it, and the reports to users.
pub(crate) struct Bench {
    pub snapshot: Snapshot,
    pub memory: Memory,
    pub told: Vec<Notice>,
    /// Hosts that cannot load slices.
    pub broken: BTreeSet<String>,
    /// The probe's result.
    pub probe_passes: bool,
    /// The API server rejects changes of a Placement's spec.
    pub refuses_plans: bool,
    /// The last question to a plugin.
    pub asked: Option<Ask>,
    /// Number of questions asked.
    pub solves: usize,
    uids: u32,
}

/// An object as returned by the API server.
fn stored<T: Serialize + DeserializeOwned>(object: &T) -> T {
    serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap()
}

impl Bench {
    /// The world of [`super::world`] with one new model and an empty store.
    pub(crate) fn new() -> Self {
        let mut snapshot = world();
        snapshot.models.push(Arc::new(model()));
        snapshot.manifests.clear();
        Self::of(snapshot)
    }

    /// A world before the first reconcile.
    pub(crate) fn of(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            memory: Memory::default(),
            told: Vec::new(),
            broken: BTreeSet::new(),
            probe_passes: true,
            refuses_plans: false,
            asked: None,
            solves: 0,
            uids: 0,
        }
    }

    /// The same, served; gains count for long enough to pay for slow transfers.
    pub(crate) fn serving() -> Self {
        let mut bench = Self::new();
        Arc::make_mut(&mut bench.snapshot.models[0])
            .spec
            .adaptation
            .horizon_seconds = 7200;
        bench.look();
        bench.finish_prepare();
        bench.run(20);
        assert_eq!(bench.stage(), "Serving", "{:?}", bench.model().status);
        bench.told.clear();
        bench
    }

    /// Reconciles until built-in strategies have answered all questions.
    pub(crate) fn look(&mut self) -> Decisions {
        let mut all = self.look_once();
        for _ in 0..3 {
            let is_answered = self
                .snapshot
                .questions
                .values()
                .any(|q| q.answer.is_some() || q.ahead.is_some());
            if !is_answered {
                break;
            }
            let next = self.look_once();
            all.writes.extend(next.writes);
            all.prepares.extend(next.prepares);
            all.solves.extend(next.solves);
            all.asks.extend(next.asks);
        }
        all
    }

    /// Decides, and applies the decisions.
    pub(crate) fn look_once(&mut self) -> Decisions {
        let decisions = decide(&self.snapshot, &mut self.memory);
        self.carry_out(decisions)
    }

    /// Applies the decisions.
    pub(crate) fn carry_out(&mut self, decisions: Decisions) -> Decisions {
        for write in &decisions.writes {
            let is_plan = matches!(write.change, Change::Placement { .. });
            if !(is_plan && self.refuses_plans) {
                self.apply(&write.change);
            }
            self.told.extend(write.events.iter().cloned());
        }
        for job in &decisions.forget_prepares {
            self.snapshot.prepares.remove(job);
        }
        for key in &decisions.forget_asks {
            self.snapshot.questions.remove(key);
        }
        for ask in &decisions.asks {
            let is_plugin = ask.question.wish.strategy.is_plugin;
            let is_ahead = ask.need == Need::Ahead;
            let ctx = Ctx::until(Instant::now() + Duration::from_secs(20));
            let answer =
                (!is_plugin && !is_ahead).then(|| Arc::new(desk::solve(&ask.question, &ctx)));
            let ahead = is_ahead.then(|| Arc::new(desk::ahead(&ask.question, &ctx)));
            let question = QuestionView {
                about: ask.about.clone(),
                need: ask.need,
                answer,
                ahead,
            };
            self.snapshot.questions.insert(ask.key.clone(), question);
            self.solves += 1;
            if is_plugin {
                self.asked = Some(ask.clone());
            }
        }
        for start in &decisions.prepares {
            let running = PrepareView::Running {
                node: start.node.clone(),
                step: String::new(),
                done: 0,
                total: 0,
                bytes: false,
            };
            self.snapshot.prepares.insert(start.job.clone(), running);
        }
        decisions
    }

    /// The plugin, or its fallback, gives this answer.
    pub(crate) fn answer(&mut self, answer: Answer) {
        let mut questions = self.snapshot.questions.values_mut();
        let question = questions.next().expect("a plugin is asked");
        question.answer = Some(Arc::new(answer));
    }

    /// Reconciles and lets agents work for `seconds` seconds.
    pub(crate) fn run(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.look();
            self.agents();
            self.pass(1000);
        }
    }

    /// Two reconciles of an unchanged world: the second writes nothing.
    pub(crate) fn expect_fixpoint(&mut self) {
        self.look();
        let again = self.look();
        assert_eq!(again.writes, [], "not a fixpoint");
        assert_eq!(again.prepares, []);
    }

    pub(crate) fn pass(&mut self, millis: i64) {
        self.snapshot.wall += SignedDuration::from_millis(millis);
        self.snapshot.now = self.snapshot.now.plus(millis as f64 / 1e3);
    }

    /// The operator is killed and restarts.
    pub(crate) fn restart(&mut self) {
        self.memory = Memory::default();
        self.snapshot.questions.clear();
        self.snapshot.started = self.snapshot.now;
    }

    /// Agents adopt their wishes and report.
    pub(crate) fn agents(&mut self) {
        let now = self.snapshot.wall;
        for (name, node) in &mut self.snapshot.compute_nodes {
            if !self.snapshot.live.get(name).is_some_and(|l| l.alive) {
                continue;
            }
            let node = Arc::make_mut(node);
            let spec = node.spec.clone();
            let status = node.status.get_or_insert_default();
            let broken = self.broken.contains(name);
            status.slices = spec
                .slices
                .iter()
                .map(|s| SliceStatus {
                    placement_uid: s.placement_uid.clone(),
                    revision: s.revision,
                    segment: s.segment,
                    state: if broken {
                        SliceState::Failed
                    } else {
                        SliceState::Ready
                    },
                    message: if broken { "out of memory" } else { "" }.to_owned(),
                    run_ms: None,
                })
                .collect();
            status.routes = spec
                .routes
                .iter()
                .map(|r| {
                    let old = status
                        .routes
                        .iter()
                        .find(|o| o.placement_uid == r.placement_uid);
                    let verified = r.verify_revision.map(|revision| Verification {
                        revision,
                        passed: self.probe_passes,
                        message: "differs by 0.1".to_owned(),
                        latency_ms: 41.0,
                        time: Time(now),
                    });
                    RouteStatus {
                        placement_uid: r.placement_uid.clone(),
                        active_revision: r.active_revision,
                        oldest_in_flight: r.active_revision,
                        in_flight_at_flip: 0,
                        verified: verified.or_else(|| old.and_then(|o| o.verified.clone())),
                    }
                })
                .collect();
        }
    }

    /// The running job succeeds.
    pub(crate) fn finish_prepare(&mut self) {
        self.finish_prepare_of(manifest(4));
    }

    /// The running job succeeds with `manifest`.
    pub(crate) fn finish_prepare_of(&mut self, manifest: Manifest) {
        self.snapshot.manifests.insert(digest(), Arc::new(manifest));
        self.snapshot.manifest_bytes.insert(digest(), 4096);
        self.end_prepare(|node| PrepareView::Done {
            node,
            manifest: digest(),
        });
    }

    /// The running job ends with `outcome`.
    pub(crate) fn end_prepare(&mut self, outcome: impl Fn(String) -> PrepareView) {
        let (job, node) = self
            .snapshot
            .prepares
            .iter()
            .find_map(|(job, view)| match view {
                PrepareView::Running { node, .. } => Some((job.clone(), node.clone())),
                _ => None,
            })
            .unwrap();
        self.snapshot.prepares.insert(job, outcome(node));
    }

    /// Kills an agent.
    pub(crate) fn lose(&mut self, node: &str) {
        self.snapshot.live.get_mut(node).unwrap().alive = false;
    }

    /// Changes the bandwidth of every link of a host.
    pub(crate) fn links_of(&mut self, node: &str, bytes_per_second: f64) {
        change_links(&mut self.snapshot.links, |a, b, view| {
            if a == node || b == node {
                view.bytes_per_second = Some(bytes_per_second);
            }
        });
    }

    /// Cuts or restores one direction of a link.
    pub(crate) fn set_reachable(&mut self, from: &str, to: &str, reachable: bool) {
        change_links(&mut self.snapshot.links, |a, b, view| {
            if a == from && b == to {
                view.reachable = reachable;
            }
        });
    }

    pub(crate) fn edit(&mut self, change: impl Fn(&mut DnnModel)) {
        let model = Arc::make_mut(&mut self.snapshot.models[0]);
        change(model);
        *model.metadata.generation.as_mut().unwrap() += 1;
    }

    pub(crate) fn model(&self) -> &DnnModel {
        &self.snapshot.models[0]
    }

    pub(crate) fn stage(&self) -> &str {
        self.model().status.as_ref().map_or("", |s| &s.stage)
    }

    /// Status, reason and message of a condition of the model.
    pub(crate) fn condition(&self, kind: &str) -> (String, String, String) {
        let status = self.model().status.as_ref().unwrap();
        let all = &status.conditions;
        let c = all.iter().find(|c| c.type_ == kind).unwrap();
        (c.status.clone(), c.reason.clone(), c.message.clone())
    }

    pub(crate) fn placement(&self) -> &Placement {
        &self.snapshot.placements[0]
    }

    pub(crate) fn status(&self) -> PlacementStatus {
        self.placement().status.clone().unwrap_or_default()
    }

    pub(crate) fn reasons(&self) -> Vec<&str> {
        self.told.iter().map(|n| n.reason).collect()
    }

    pub(crate) fn note(&self, reason: &str) -> &str {
        let found = self.told.iter().find(|n| n.reason == reason);
        found.map_or("", |n| &n.note)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::ComputeNode { name, spec, .. } => {
                let node = self
                    .snapshot
                    .compute_nodes
                    .entry(name.clone())
                    .or_insert_with(|| {
                        Arc::new(ComputeNode {
                            metadata: ObjectMeta {
                                name: Some(name.clone()),
                                uid: Some(format!("{name}-uid")),
                                ..ObjectMeta::default()
                            },
                            ..ComputeNode::default()
                        })
                    });
                // Server-side apply keeps the fields of others.
                let join = node.spec.join.clone();
                let node = Arc::make_mut(node);
                node.spec = stored(spec);
                node.spec.join = join;
            }
            Change::ComputeNodeConditions { name, conditions } => {
                let node = self.snapshot.compute_nodes.get_mut(name).unwrap();
                let status = Arc::make_mut(node).status.get_or_insert_default();
                for condition in conditions {
                    set(&mut status.conditions, stored(condition));
                }
            }
            Change::Placement { id, owner, spec } => {
                if !id.uid.is_empty() {
                    let placement = self.by_uid(&id.uid);
                    placement.spec = stored(spec);
                    *placement.metadata.generation.as_mut().unwrap() += 1;
                    return;
                }
                self.uids += 1;
                let metadata = ObjectMeta {
                    name: Some(id.name.clone()),
                    namespace: Some(id.namespace.clone()),
                    uid: Some(format!("placement-{}", self.uids)),
                    generation: Some(1),
                    owner_references: Some(vec![owner.clone()]),
                    ..ObjectMeta::default()
                };
                self.snapshot.placements.push(Arc::new(Placement {
                    metadata,
                    spec: stored(spec),
                    status: None,
                }));
            }
            Change::PlacementStatus { id, status } => {
                self.by_uid(&id.uid).status = Some(stored(status));
            }
            Change::DeletePlacement { id } => {
                let is_it = |p: &Arc<Placement>| p.metadata.uid.as_ref() == Some(&id.uid);
                self.snapshot.placements.retain(|p| !is_it(p));
            }
            Change::ModelStatus { id, status } => {
                let is_it = |m: &&mut Arc<DnnModel>| m.metadata.uid.as_ref() == Some(&id.uid);
                if let Some(model) = self.snapshot.models.iter_mut().find(is_it) {
                    Arc::make_mut(model).status = Some(stored(status));
                    return;
                }
                let mut aside = self.snapshot.unreadable.values_mut();
                aside.find(|u| u.uid == id.uid).unwrap().status = Some(stored(status));
            }
            Change::Nothing => {}
        }
    }

    fn by_uid(&mut self, uid: &str) -> &mut Placement {
        let is_it = |p: &&mut Arc<Placement>| p.metadata.uid.as_deref() == Some(uid);
        let placement = self.snapshot.placements.iter_mut().find(is_it).unwrap();
        Arc::make_mut(placement)
    }
}
