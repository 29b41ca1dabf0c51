//! One look at the whole world, and everything that follows from it.

use super::decision::{Change, Decisions};
use super::deploy::{self, Phase};
use super::memory::{Memory, placement_key};
use super::model_status::{self, EntryState, Parts};
use super::models::{self, Preparation};
use super::nodes::{self, Wishes};
use super::plan::{self, PlanNotice};
use super::problem::{self, Question};
use super::snapshot::{QuestionView, Snapshot};
use super::{placement_status, slices};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use lamina_crds::{DnnModel, Placement, PlacementSpec, reasons};
use lamina_model::{Digest, Manifest};
use lamina_placement::Ctx;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Longest Placement name that is readable in a column.
const NAME_LIMIT: usize = 63;

/// Decides everything. `memory` is what earlier looks left behind; `ctx` bounds
/// the time that strategies may take.
pub(crate) fn decide(snapshot: &Snapshot, memory: &mut Memory, ctx: &Ctx) -> Decisions {
    let mut out = Decisions::default();
    memory.forget_absent(snapshot);
    problem::learn(snapshot, memory);
    nodes::conditions(snapshot, &mut out);
    let mut wishes = Wishes::default();
    let mut entries = BTreeSet::new();
    for model in snapshot.models.iter().filter(|m| is_wanted(m)) {
        let found = entries_of(snapshot, model);
        entries.extend(found.iter().cloned());
        reconcile_model(snapshot, memory, ctx, model, &found, &mut wishes, &mut out);
    }
    delete_orphans(snapshot, &mut out);
    forget_prepares(snapshot, &mut out);
    forget_questions(snapshot, &mut out);
    nodes::peers(snapshot, &entries, &mut out);
    nodes::apply(snapshot, wishes, &mut out);
    out
}

fn is_wanted(model: &DnnModel) -> bool {
    model.metadata.deletion_timestamp.is_none()
}

/// Nodes that match the model's entry selector and have an agent.
fn entries_of(snapshot: &Snapshot, model: &DnnModel) -> Vec<String> {
    let selector = &model.spec.entry.node_selector;
    let matches =
        |labels: &BTreeMap<String, String>| selector.iter().all(|(k, v)| labels.get(k) == Some(v));
    snapshot
        .compute_nodes
        .keys()
        .filter(|name| {
            snapshot
                .nodes
                .get(*name)
                .is_some_and(|n| matches(&n.labels))
        })
        .cloned()
        .collect()
}

fn no_entry(snapshot: &Snapshot, model: &DnnModel) -> String {
    let selector = &model.spec.entry.node_selector;
    let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let matching: Vec<&str> = snapshot
        .nodes
        .iter()
        .filter(|(_, n)| selector.iter().all(|(k, v)| n.labels.get(k) == Some(v)))
        .map(|(name, _)| name.as_str())
        .collect();
    let labels = labels.join(",");
    if matching.is_empty() {
        format!(
            "0/{} nodes match spec.entry.nodeSelector {labels}",
            snapshot.nodes.len()
        )
    } else {
        format!(
            "spec.entry.nodeSelector {labels} matches {}, where no agent runs",
            matching.join(", ")
        )
    }
}

fn is_owned_by(placement: &Placement, model: &DnnModel) -> bool {
    owner_uid(placement).is_some_and(|uid| Some(uid) == model.metadata.uid.as_deref())
}

fn owner_uid(placement: &Placement) -> Option<&str> {
    placement
        .metadata
        .owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|o| o.kind == "DnnModel")
        .map(|o| o.uid.as_str())
}

fn reconcile_model(
    snapshot: &Snapshot,
    memory: &mut Memory,
    ctx: &Ctx,
    model: &DnnModel,
    found: &[String],
    wishes: &mut Wishes,
    out: &mut Decisions,
) {
    let preparation = models::prepare(snapshot, model, memory, out);
    let mut told = Vec::new();
    let mut states = Vec::new();
    for entry in found {
        let mut work = EntryWork {
            snapshot,
            ctx,
            model,
            entry,
            told: &mut told,
            wishes,
            out,
        };
        states.push(work.reconcile(memory, &preparation));
    }
    let uid = model.metadata.uid.clone().unwrap_or_default();
    let parts = Parts {
        preparation: &preparation,
        entries: &states,
        no_entry: found.is_empty().then(|| no_entry(snapshot, model)),
        told: &told,
    };
    let own = memory.models.entry(uid).or_default();
    let (status, notices) = model_status::report(snapshot, model, own, &parts);
    if model.status.as_ref() != Some(&status) {
        let change = Change::ModelStatus {
            namespace: model.metadata.namespace.clone().unwrap_or_default(),
            name: model.metadata.name.clone().unwrap_or_default(),
            uid: model.metadata.uid.clone().unwrap_or_default(),
            status: Box::new(status),
        };
        let events = notices
            .iter()
            .map(|n| model_status::notice(model, n))
            .collect();
        out.write(change, events);
    }
}

/// One model at one entry.
struct EntryWork<'a> {
    snapshot: &'a Snapshot,
    ctx: &'a Ctx,
    model: &'a DnnModel,
    entry: &'a str,
    told: &'a mut Vec<PlanNotice>,
    wishes: &'a mut Wishes,
    out: &'a mut Decisions,
}

impl EntryWork<'_> {
    /// Plans and deploys; nothing yet where the name of its Placement is still
    /// taken by one that is being removed.
    fn reconcile(&mut self, memory: &mut Memory, preparation: &Preparation) -> EntryState {
        let placement = self.placement();
        let prepared = self.prepared(preparation, placement.as_deref());
        let name = match &placement {
            Some(p) => p.metadata.name.clone().unwrap_or_default(),
            None => match self.free_name() {
                Some(name) => name,
                None => return self.waiting(),
            },
        };
        let key = placement_key(
            self.model.metadata.uid.as_deref().unwrap_or_default(),
            self.entry,
        );
        let mut clock =
            std::mem::take(&mut memory.placements.entry(key.clone()).or_default().clock);
        let phase = placement.as_deref().map_or(Phase::Unplanned, |p| {
            deploy::phase(self.snapshot, p, &mut clock)
        });
        memory.placements.entry(key.clone()).or_default().clock = clock;
        let is_prepared = prepared.is_some();
        let planned = prepared.map(|(digest, manifest)| {
            let question = Question {
                spec: &self.model.spec,
                manifest: &manifest,
                digest,
                entry: self.entry,
                placement: placement.as_deref(),
            };
            plan::decide(
                self.snapshot,
                memory,
                self.ctx,
                self.model,
                &question,
                &phase,
            )
        });
        let mut planned = planned.unwrap_or_default();
        self.out.solves.extend(planned.solve.take());
        self.out.asks.extend(planned.ask.take());
        self.out
            .forget_asks
            .extend(planned.answered.then_some(key.clone()));
        self.told.extend(planned.notices.iter().cloned());
        self.write_plan(placement.as_deref(), &name, planned, is_prepared);
        let status = placement.map(|p| {
            self.wish(&p, &phase);
            self.write_status(memory, &key, &p, &phase)
        });
        EntryState {
            name,
            entry: self.entry.to_owned(),
            phase,
            status,
        }
    }

    fn waiting(&self) -> EntryState {
        let model = self.model.metadata.name.as_deref().unwrap_or_default();
        EntryState {
            name: format!("{model}-{}", self.entry),
            entry: self.entry.to_owned(),
            phase: Phase::Unplanned,
            status: None,
        }
    }

    /// What is to be placed: the prepared model, else the one that serves, which
    /// must be able to leave a lost host though an update of it is broken.
    fn prepared<'m>(
        &self,
        preparation: &'m Preparation,
        placement: Option<&'m Placement>,
    ) -> Option<(&'m str, Arc<Manifest>)> {
        let digest = match preparation {
            // What was prepared is told before what becomes of it.
            Preparation::Ready { fresh: true, .. } => return None,
            Preparation::Ready { profile, .. } => &profile.manifest,
            Preparation::Failed { reason, .. } if *reason == reasons::INVALID_SPEC => return None,
            _ => &deploy::active(placement?)?.manifest,
        };
        let manifest = self.snapshot.manifests.get(digest)?;
        Some((digest, Arc::clone(manifest)))
    }

    fn placement(&self) -> Option<Arc<Placement>> {
        self.snapshot
            .placements
            .iter()
            .find(|p| {
                is_owned_by(p, self.model)
                    && p.spec.entry == self.entry
                    && p.metadata.deletion_timestamp.is_none()
            })
            .cloned()
    }

    /// `<model>-<entry>`, or with a hash where that is too long or belongs to
    /// another model.
    fn free_name(&self) -> Option<String> {
        let model = self.model.metadata.name.as_deref().unwrap_or_default();
        let plain = format!("{model}-{}", self.entry);
        let hash = Digest::of(format!("{model}/{}", self.entry).as_bytes());
        let hash = &hash.as_str()[..6];
        let holder = |name: &str| {
            self.snapshot.placements.iter().find(|p| {
                p.metadata.name.as_deref() == Some(name)
                    && p.metadata.namespace == self.model.metadata.namespace
            })
        };
        let is_ours = |p: &Arc<Placement>| p.spec.model == model && p.spec.entry == self.entry;
        let name = if plain.len() <= NAME_LIMIT && holder(&plain).is_none_or(is_ours) {
            plain
        } else {
            let head: String = plain.chars().take(NAME_LIMIT - 7).collect();
            format!("{}-{hash}", head.trim_end_matches(['-', '.']))
        };
        holder(&name).is_none().then_some(name)
    }

    fn write_plan(
        &mut self,
        placement: Option<&Placement>,
        name: &str,
        planned: plan::Planned,
        is_prepared: bool,
    ) {
        let events = planned
            .notices
            .iter()
            .map(|n| model_status::notice(self.model, n))
            .collect();
        let create = placement.is_none() && is_prepared;
        if planned.plan.is_none() && !create {
            self.out.write(Change::Nothing, events);
            return;
        }
        let present = placement.and_then(|p| p.spec.plan.clone());
        let model = self.model.metadata.name.clone().unwrap_or_default();
        let change = Change::Placement {
            namespace: self.model.metadata.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
            uid: placement.and_then(|p| p.metadata.uid.clone()),
            owner: OwnerReference {
                api_version: format!("{}/v1alpha1", lamina_crds::GROUP),
                kind: "DnnModel".to_owned(),
                name: model.clone(),
                uid: self.model.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(false),
            },
            spec: PlacementSpec {
                model,
                entry: self.entry.to_owned(),
                plan: planned.plan.or(present),
            },
        };
        self.out.write(change, events);
    }

    /// What hosts are to hold for the Placement in this phase.
    fn wish(&mut self, placement: &Placement, phase: &Phase) {
        let uid = placement.metadata.uid.as_deref().unwrap_or_default();
        let (wanted, verify) = deploy::wanted(placement, phase);
        let all: Option<Vec<Vec<slices::HostedSlice>>> = wanted
            .plans
            .iter()
            .map(|p| slices::slices_of(self.snapshot, placement, p))
            .collect();
        match all {
            Some(all) => {
                for hosted in all.into_iter().flatten() {
                    let on = self.wishes.slices.entry(hosted.node).or_default();
                    on.push(hosted.slice);
                }
            }
            None => self.keep_slices(uid),
        }
        let route = slices::route_of(self.snapshot, placement, &wanted);
        for host in nodes::hosts(self.snapshot) {
            let route = match &route {
                _ if wanted.plans.is_empty() => None,
                Some(route) => {
                    let is_entry = host == placement.spec.entry;
                    let mut route = route.clone();
                    route.verify_revision = verify.filter(|_| is_entry);
                    Some(route)
                }
                None => slices::route_on(self.snapshot, host, uid).cloned(),
            };
            if let Some(route) = route {
                let on = self.wishes.routes.entry(host.to_owned()).or_default();
                on.push(route);
            }
        }
    }

    /// Without the manifest, hosts keep what they have.
    fn keep_slices(&mut self, uid: &str) {
        for (name, node) in &self.snapshot.compute_nodes {
            let kept = node.spec.slices.iter().filter(|s| s.placement_uid == uid);
            let on = self.wishes.slices.entry(name.clone()).or_default();
            on.extend(kept.cloned());
        }
    }

    fn write_status(
        &mut self,
        memory: &mut Memory,
        key: &str,
        placement: &Placement,
        phase: &Phase,
    ) -> lamina_crds::PlacementStatus {
        let own = memory.placements.entry(key.to_owned()).or_default();
        let report = placement_status::report(self.snapshot, own, placement, phase);
        if let Some(redeploy) = report.redeploy {
            let uid = self.model.metadata.uid.clone().unwrap_or_default();
            let known = &mut memory.models.entry(uid).or_default().redeploys;
            known
                .retain(|r| (&r.placement, r.revision) != (&redeploy.placement, redeploy.revision));
            known.push(redeploy);
        }
        self.told.extend(report.notices.iter().cloned());
        if placement.status.as_ref() != Some(&report.status) {
            let change = Change::PlacementStatus {
                namespace: placement.metadata.namespace.clone().unwrap_or_default(),
                name: placement.metadata.name.clone().unwrap_or_default(),
                uid: placement.metadata.uid.clone().unwrap_or_default(),
                status: Box::new(report.status.clone()),
            };
            let events = report
                .notices
                .iter()
                .map(|n| model_status::notice(self.model, n))
                .collect();
            self.out.write(change, events);
        }
        report.status
    }
}

/// Removes Placements whose model is gone, was made anew, or does not want them.
fn delete_orphans(snapshot: &Snapshot, out: &mut Decisions) {
    for placement in &snapshot.placements {
        let Some(owner) = owner_uid(placement) else {
            continue;
        };
        let wanted = snapshot
            .models
            .iter()
            .filter(|m| is_wanted(m) && m.metadata.uid.as_deref() == Some(owner))
            .any(|m| entries_of(snapshot, m).contains(&placement.spec.entry));
        if wanted || placement.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let change = Change::DeletePlacement {
            namespace: placement.metadata.namespace.clone().unwrap_or_default(),
            name: placement.metadata.name.clone().unwrap_or_default(),
            uid: placement.metadata.uid.clone().unwrap_or_default(),
        };
        out.write(change, Vec::new());
    }
}

/// Stops preparing for models that are gone. What a model itself no longer wants
/// is forgotten where it is prepared.
fn forget_prepares(snapshot: &Snapshot, out: &mut Decisions) {
    let wanted: BTreeSet<&str> = snapshot
        .models
        .iter()
        .filter(|m| is_wanted(m))
        .filter_map(|m| m.metadata.uid.as_deref())
        .collect();
    let jobs = snapshot.prepares.keys();
    let unwanted = jobs.filter(|job| !wanted.contains(models::owner_of(job)));
    out.forget_prepares.extend(unwanted.cloned());
}

/// Drops questions of models that are gone or want something else by now.
fn forget_questions(snapshot: &Snapshot, out: &mut Decisions) {
    let is_wanted = |key: &str, question: &QuestionView| {
        snapshot.models.iter().filter(|m| is_wanted(m)).any(|m| {
            m.metadata.uid.as_deref() == Some(models::owner_of(key))
                && m.metadata.generation.unwrap_or_default() == question.generation
                && m.spec.strategy.name == question.strategy
        })
    };
    let questions = snapshot.questions.iter();
    let unwanted = questions.filter(|(key, question)| !is_wanted(key, question));
    out.forget_asks.extend(unwanted.map(|(key, _)| key.clone()));
}

#[cfg(test)]
mod tests;
