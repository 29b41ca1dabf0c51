//! One look at the whole cluster, and all resulting decisions.
//!
//! The cost of a look grows with hosts plus Placements, never with their product: shared data
//! is indexed once, and strategies are only asked here, for the Placements that are due. They
//! answer on their own threads.

use crate::deploy::nodes::{self, Wishes};
use crate::deploy::{crash_events, phases, slices};
use crate::plan::{self, Planned, Site, Wanted};
use crate::prepare::{models, queue, spec};
use crate::state::cluster::Cluster;
use crate::state::decision::{Change, Decisions, Entries, EntryAt, Haste};
use crate::state::ids::{self, ObjectId, PlacementKey};
use crate::state::listed::Unreadable;
use crate::state::memory::{Memory, ModelMemory, PlacementMemory, StandbyMemory};
use crate::state::notice::{Notice, Regarding};
use crate::state::plans::{self, Phase, owner_uid};
use crate::state::preparation::Preparation;
use crate::state::snapshot::{QuestionView, Snapshot};
use crate::state::text;
use crate::state::wish::{ValidModel, Wish};
use crate::status::model::{self as model_status, EntryState, Parts};
use crate::status::placement::{self as placement_status, Facts};
use aside::EachModel;
use index::{Index, is_wanted};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use lamina_crds::compute_node::{Blob, Standby};
use lamina_crds::dnn_model::Move;
use lamina_crds::placement::Redeploy;
use lamina_crds::{DnnModel, Placement, PlacementSpec, reasons};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod aside;
mod index;

/// Decides everything. `memory` comes from earlier looks.
pub(crate) fn decide(snapshot: &Snapshot, memory: &mut Memory) -> Decisions {
    decide_by(snapshot, memory, &|look, model, memory| {
        look.model(model, memory);
    })
}

/// As [`decide`], with `each` deciding about a model.
fn decide_by(snapshot: &Snapshot, memory: &mut Memory, each: EachModel<'_>) -> Decisions {
    let mut out = Decisions::default();
    memory.forget_absent(snapshot);
    plan::learn(snapshot, memory);
    nodes::conditions(snapshot, &mut out);
    crash_events::tell(snapshot, memory, &mut out);
    let index = Index::of(snapshot);
    let mut look = Look {
        snapshot,
        cluster: Arc::new(Cluster::of(snapshot, memory)),
        index,
        wishes: Wishes::default(),
        wanted: BTreeSet::new(),
        out,
    };
    for model in snapshot.models.iter().filter(|m| is_wanted(m)) {
        aside::decide_about(&mut look, model, memory, each);
    }
    queue::assign(snapshot, &mut look.out);
    look.delete_orphans();
    look.keep_unreadable();
    look.tell_unreadable(memory);
    look.forget_prepares();
    look.forget_questions();
    let Look {
        cluster,
        wishes,
        mut out,
        ..
    } = look;
    let hosts = cluster.hosts.iter();
    out.interest.hosts = hosts.map(|h| (h.name.clone(), h.tier)).collect();
    nodes::apply(snapshot, wishes, &mut out);
    out
}

/// One look.
struct Look<'a> {
    snapshot: &'a Snapshot,
    cluster: Arc<Cluster>,
    index: Index<'a>,
    wishes: Wishes,
    /// UIDs of the Placements that a model wants, or that serve until others do.
    wanted: BTreeSet<String>,
    out: Decisions,
}

/// A model, from the view of all its entries.
struct ModelView<'a> {
    model: &'a DnnModel,
    id: ObjectId,
    valid: Result<Arc<ValidModel>, String>,
    preparation: Preparation,
    /// The spec last met, with its generation.
    accepted: Option<(i64, Arc<Wish>)>,
}

impl ModelView<'_> {
    fn generation(&self) -> i64 {
        self.model.metadata.generation.unwrap_or_default()
    }

    /// The current spec if it is valid, else the one last met.
    fn in_force(&self) -> Option<&Wish> {
        match &self.valid {
            Ok(valid) => Some(&valid.wish),
            Err(_) => self.accepted.as_ref().map(|(_, wish)| &**wish),
        }
    }

    /// Blocks of `plan` that must not leave the entry.
    fn keep(&self, manifest: &str) -> usize {
        let keep = self.in_force().map_or(0, |w| w.keep_on_entry);
        let is_same = match &self.preparation {
            Preparation::Ready { profile, .. } => profile.manifest == manifest,
            _ => false,
        };
        // Another manifest's blocks are counted differently; its raw input is the same.
        if is_same { keep } else { keep.min(1) }
    }
}

/// The spec of `model`, validated once for each generation and set of plugins.
fn valid(
    snapshot: &Snapshot,
    model: &DnnModel,
    memory: &mut ModelMemory,
) -> Result<Arc<ValidModel>, String> {
    let generation = model.metadata.generation.unwrap_or_default();
    if let Some((of, valid)) = &memory.valid
        && *of == generation
    {
        return valid.clone();
    }
    let valid = spec::validate(model, &snapshot.plugins);
    let valid = valid.map(Arc::new).map_err(|e| e.to_string());
    memory.valid = Some((generation, valid.clone()));
    valid
}

/// The spec last met; if none is known yet, the current one.
fn accepted(
    snapshot: &Snapshot,
    model: &DnnModel,
    valid: &Result<Arc<ValidModel>, String>,
    memory: &mut ModelMemory,
) -> Option<(i64, Arc<Wish>)> {
    let Some(accepted) = model.status.as_ref().and_then(|s| s.accepted.as_ref()) else {
        let valid = valid.as_ref().ok()?;
        return Some((valid.generation, Arc::clone(&valid.wish)));
    };
    let generation = accepted.generation;
    if let Ok(valid) = valid
        && valid.generation == generation
    {
        return Some((generation, Arc::clone(&valid.wish)));
    }
    if let Some((of, wish)) = &memory.accepted
        && *of == generation
    {
        return Some((generation, Arc::clone(wish.as_ref()?)));
    }
    let wish = spec::wish(&accepted.spec, &snapshot.plugins).ok();
    let wish = wish.map(Arc::new);
    memory.accepted = Some((generation, wish.clone()));
    Some((generation, wish?))
}

impl<'a> Look<'a> {
    fn model(&mut self, model: &'a DnnModel, memory: &mut Memory) {
        let (snapshot, id) = (self.snapshot, ObjectId::of(&model.metadata));
        let own = memory.models.entry(id.uid.clone()).or_default();
        let valid = valid(snapshot, model, own);
        let preparation = models::prepare(snapshot, model, &valid, own, &mut self.out);
        let accepted = accepted(snapshot, model, &valid, own);
        let view = ModelView {
            model,
            id,
            valid,
            preparation,
            accepted,
        };
        let found = self.index.entries_of(&model.spec.entry.node_selector);
        let mut told = Vec::new();
        let mut states: Vec<EntryState> = found
            .iter()
            .map(|entry| self.entry(&view, entry, memory, &mut told))
            .collect();
        let leaving = self.leaving(&view, &found, &states);
        let left: Vec<EntryState> = leaving
            .iter()
            .map(|entry| self.entry(&view, entry, memory, &mut told))
            .collect();
        self.report(&view, &found, &states, &told, memory);
        states.extend(left);
        self.add_to_directory(&view, &states);
    }

    /// Entries that are no longer wanted, but serve until all others do.
    fn leaving(
        &self,
        view: &ModelView<'_>,
        found: &[String],
        states: &[EntryState],
    ) -> Vec<String> {
        let serves = |e: &EntryState| e.status.as_ref().is_some_and(|s| s.active.is_some());
        if !found.is_empty() && states.iter().all(serves) {
            return Vec::new();
        }
        let placements = self.index.placements_of(&view.id.uid);
        placements
            .filter(|p| plans::active(p).is_some() && !found.contains(&p.spec.entry))
            .map(|p| p.spec.entry.clone())
            .filter(|entry| self.snapshot.compute_nodes.contains_key(entry))
            .collect()
    }

    fn report(
        &mut self,
        view: &ModelView<'_>,
        found: &[String],
        states: &[EntryState],
        told: &[Notice],
        memory: &mut Memory,
    ) {
        let model = view.model;
        let no_entry = found.is_empty().then(|| self.index.no_entry(model));
        let parts = Parts {
            generation: view.generation(),
            preparation: &view.preparation,
            entries: states,
            no_entry,
            told,
            unreadable: self.unreadable(&view.id),
        };
        let own = memory.models.entry(view.id.uid.clone()).or_default();
        let (status, notices) = model_status::report(self.snapshot, model, own, &parts);
        if model.status.as_ref() != Some(&status) {
            // A plan is made only once the profile has been written.
            let before = model.status.as_ref().and_then(|s| s.profile.as_ref());
            let haste = match before == status.profile.as_ref() {
                true => Haste::Report,
                false => Haste::Plan,
            };
            let change = Change::ModelStatus {
                id: view.id.clone(),
                status: Box::new(status),
            };
            self.out.write(haste, change, notices);
        }
    }

    /// Plans and deploys one model at one entry; does nothing while a Placement that is being
    /// deleted has its name.
    fn entry(
        &mut self,
        view: &ModelView<'_>,
        entry: &str,
        memory: &mut Memory,
        told: &mut Vec<Notice>,
    ) -> EntryState {
        self.out.interest.entries.insert(entry.to_owned());
        let placement = self.index.placement(&view.id.uid, entry);
        let uid = placement.map(|p| ids::uid(&p.metadata).to_owned());
        self.wanted.extend(uid);
        let named = placement.map(|p| p.metadata.name.clone().unwrap_or_default());
        let Some(name) = named.or_else(|| self.index.free_name(view.model, entry)) else {
            return EntryState {
                name: format!("{}-{entry}", view.id.name),
                entry: entry.to_owned(),
                phase: Phase::Unplanned,
                status: None,
                unmet_since: None,
            };
        };
        let key = PlacementKey::new(&view.id.uid, entry);
        let clock = &mut memory.placements.entry(key.clone()).or_default().clock;
        let phase = placement.map_or(Phase::Unplanned, |p| phases::phase(self.snapshot, p, clock));
        let asked = self.asked(view);
        let is_prepared = asked.is_some() || placement.is_some();
        let site = Site {
            snapshot: self.snapshot,
            cluster: &self.cluster,
            model: &view.id,
            entry,
            placement,
            phase: &phase,
            in_force: self.in_force(view, placement, asked.as_ref()),
            asked,
        };
        let planned = plan::decide(&site, memory);
        told.extend(planned.notices.iter().cloned());
        self.take_plan(
            view,
            placement,
            name.clone(),
            key.clone(),
            planned,
            is_prepared,
        );
        let status = placement.map(|p| {
            let refused = self.wish(view, p, &phase);
            self.standby(view, p, memory.placements.entry(key.clone()).or_default());
            self.placement_status(view, p, &phase, refused.as_deref(), memory, told)
        });
        let own = memory.placements.get(&key);
        let unmet = own.filter(|o| o.unmet_generation == Some(view.generation()));
        EntryState {
            name,
            entry: entry.to_owned(),
            phase,
            status,
            unmet_since: unmet.and_then(|o| o.unmet_since),
        }
    }

    /// The current spec's wish, if it is valid and prepared.
    fn asked(&self, view: &ModelView<'_>) -> Option<Wanted> {
        let valid = view.valid.as_ref().ok()?;
        let digest = match &view.preparation {
            // The profile is written before it is used.
            Preparation::Ready {
                profile,
                fresh: false,
            } => &profile.manifest,
            _ => return None,
        };
        Some(Wanted {
            generation: valid.generation,
            wish: Arc::clone(&valid.wish),
            digest: digest.clone(),
            manifest: Arc::clone(self.snapshot.manifests.get(digest)?),
        })
    }

    /// The wish last met, with the serving blocks, which must be able to leave a lost host even if
    /// their update fails.
    fn in_force(
        &self,
        view: &ModelView<'_>,
        placement: Option<&Placement>,
        asked: Option<&Wanted>,
    ) -> Option<Wanted> {
        let (generation, wish) = view.accepted.as_ref()?;
        let active = plans::active(placement?)?;
        if asked.is_some_and(|a| a.generation == *generation && a.digest == active.manifest) {
            return asked.cloned();
        }
        Some(Wanted {
            generation: *generation,
            wish: Arc::clone(wish),
            digest: active.manifest.clone(),
            manifest: Arc::clone(self.snapshot.manifests.get(&active.manifest)?),
        })
    }

    fn take_plan(
        &mut self,
        view: &ModelView<'_>,
        placement: Option<&Placement>,
        name: String,
        key: PlacementKey,
        planned: Planned,
        is_prepared: bool,
    ) {
        self.out.solves.extend(planned.solve);
        self.out.asks.extend(planned.ask);
        self.out
            .forget_asks
            .extend(planned.answered.then_some(key.clone()));
        self.out.interest.wanted.extend(planned.wanted_links);
        self.out.look_again(planned.again_seconds);
        if planned.plan.is_none() && (placement.is_some() || !is_prepared) {
            self.out
                .write(Haste::Report, Change::Nothing, planned.notices);
            return;
        }
        let id = ObjectId {
            namespace: view.id.namespace.clone(),
            name,
            uid: placement.map_or("", |p| ids::uid(&p.metadata)).to_owned(),
        };
        // Without a plan it has only information for people.
        let haste = match planned.plan.is_some() {
            true => Haste::Plan,
            false => Haste::Report,
        };
        let change = Change::Placement {
            id,
            owner: owner(&view.id),
            spec: PlacementSpec {
                model: view.id.name.clone(),
                entry: key.entry,
                plan: planned.plan.or(placement.and_then(|p| p.spec.plan.clone())),
            },
        };
        self.out.write(haste, change, planned.notices);
    }

    /// What hosts should hold for the Placement in this phase; returns why requests are refused, if
    /// they are.
    fn wish(
        &mut self,
        view: &ModelView<'_>,
        placement: &Placement,
        phase: &Phase,
    ) -> Option<String> {
        let (snapshot, uid) = (self.snapshot, ids::uid(&placement.metadata));
        let entry = &placement.spec.entry;
        let (wanted, verify) = phases::wanted(placement, phase);
        for plan in &wanted.plans {
            for (from, to) in plans::links(entry, plan) {
                self.out.interest.paths.insert((to.clone(), from.clone()));
                self.out.interest.paths.insert((from, to));
            }
        }
        let all: Option<Vec<Vec<slices::HostedSlice>>> = wanted
            .plans
            .iter()
            .map(|p| slices::slices_of(snapshot, placement, p, view.in_force()))
            .collect();
        match all {
            Some(all) => {
                for hosted in all.into_iter().flatten() {
                    let on = self.wishes.slices.entry(hosted.node).or_default();
                    on.push(hosted.slice);
                }
            }
            // Without the manifest, hosts keep what they have.
            None => self.index.keep_slices(uid, &mut self.wishes),
        }
        if wanted.plans.is_empty() {
            return None;
        }
        let serving = wanted.plans.iter();
        let mut serving = serving.filter(|p| p.revision == wanted.active_revision);
        let keep = serving.next().map_or(0, |p| view.keep(&p.manifest));
        let early = view.in_force().and_then(|wish| wish.exits.as_ref());
        let built = slices::route_of(snapshot, placement, &wanted, keep, early).map(|route| {
            lamina_crds::compute_node::Route {
                verify_revision: verify,
                ..route
            }
        });
        let route = built.or_else(|| snapshot.route_on(entry, uid).cloned())?;
        let refused = route.refuse.clone();
        let on = self.wishes.routes.entry(entry.clone()).or_default();
        on.push(route);
        refused
    }

    /// Blocks for hosts to fetch ahead for the Placement.
    fn standby(&mut self, view: &ModelView<'_>, placement: &Placement, own: &mut PlacementMemory) {
        let wants = |wish: &Wish| wish.adaptation.standby;
        if !view.in_force().is_some_and(wants) || plans::active(placement).is_none() {
            own.standby = StandbyMemory::default();
            return;
        }
        let uid = ids::uid(&placement.metadata);
        let hosts = &mut own.standby.hosts;
        // After a restart, hosts keep their standby blocks until a strategy has answered.
        let hosts = hosts.get_or_insert_with(|| self.index.standby_of(uid));
        add_standby(&mut self.wishes, uid, hosts);
    }

    fn placement_status(
        &mut self,
        view: &ModelView<'_>,
        placement: &Placement,
        phase: &Phase,
        refused: Option<&str>,
        memory: &mut Memory,
        told: &mut Vec<Notice>,
    ) -> lamina_crds::PlacementStatus {
        let key = PlacementKey::new(&view.id.uid, &placement.spec.entry);
        let own = memory.placements.entry(key).or_default();
        let facts = Facts {
            snapshot: self.snapshot,
            model: &view.id,
            generation: view.generation(),
            phase,
            refused,
        };
        let report = placement_status::report(&facts, own, placement);
        if let Some(redeploy) = &report.redeploy {
            self.out.redeployed.extend(redeploy.took);
            let name = placement.metadata.name.clone().unwrap_or_default();
            let known = &mut memory.models.entry(view.id.uid.clone()).or_default().moves;
            known.retain(|m| (&m.placement, m.revision) != (&name, redeploy.revision));
            known.push(digest_of(name, redeploy));
        }
        told.extend(report.notices.iter().cloned());
        if placement.status.as_ref() != Some(&report.status) {
            let haste = match plans::moves_on(placement, &report.status) {
                true => Haste::Step,
                false => Haste::Report,
            };
            let change = Change::PlacementStatus {
                id: ObjectId::of(&placement.metadata),
                status: Box::new(report.status.clone()),
            };
            self.out.write(haste, change, report.notices);
        }
        report.status
    }

    /// Publishes the entries of the model to other hosts.
    fn add_to_directory(&mut self, view: &ModelView<'_>, states: &[EntryState]) {
        let snapshot = self.snapshot;
        let mut entries: Vec<EntryAt> = states
            .iter()
            .filter_map(|e| {
                let placement = self.index.placement(&view.id.uid, &e.entry)?;
                let is_here = snapshot.is_alive(&e.entry) || snapshot.is_starting();
                let active = e.status.as_ref().is_some_and(|s| s.active.is_some());
                Some(EntryAt {
                    node: e.entry.clone(),
                    address: snapshot.address(&e.entry)?.to_owned(),
                    placement_uid: ids::uid(&placement.metadata).to_owned(),
                    serves: active && is_here,
                })
            })
            .collect();
        entries.sort_by(|a, b| a.node.cmp(&b.node));
        let serves = entries.iter().any(|e| e.serves);
        let (reason, coming) = match &view.preparation {
            _ if serves => (String::new(), false),
            Preparation::Failed {
                reason,
                message,
                permanent,
                ..
            } => (format!("failed: {reason}: {message}"), !permanent),
            Preparation::Working { message, .. } => (format!("not ready yet: {message}"), true),
            Preparation::Ready { .. } => {
                let unmet = states.iter().find_map(|e| e.unmet_since);
                let why = if unmet.is_some() {
                    "failed: no placement meets the spec"
                } else {
                    "not ready yet: being placed"
                };
                (why.to_owned(), unmet.is_none())
            }
        };
        let name = (view.id.namespace.clone(), view.id.name.clone());
        let model = Entries {
            entries,
            reason,
            coming,
        };
        self.out.directory.insert(name, model);
    }

    /// Removes Placements whose model was deleted or recreated, and those at entries that it no
    /// longer wants, once all others serve.
    fn delete_orphans(&mut self) {
        for placement in &self.snapshot.placements {
            let Some(owner) = owner_uid(placement) else {
                continue;
            };
            let uid = ids::uid(&placement.metadata);
            let is_kept = self.index.is_unreadable(placement)
                || self.index.model(owner).is_some() && self.wanted.contains(uid);
            if is_kept || placement.metadata.deletion_timestamp.is_some() || uid.is_empty() {
                continue;
            }
            let change = Change::DeletePlacement {
                id: ObjectId::of(&placement.metadata),
            };
            self.out.write(Haste::Report, change, Vec::new());
        }
    }

    /// The serving path of an unreadable model stays as it is: unreadable does not mean deleted.
    fn keep_unreadable(&mut self) {
        for placement in &self.snapshot.placements {
            if !self.index.is_unreadable(placement) {
                continue;
            }
            self.keep_as_told(placement);
        }
    }

    /// Hosts keep what they have for the Placement.
    fn keep_as_told(&mut self, placement: &Placement) {
        let uid = ids::uid(&placement.metadata);
        self.index.keep_slices(uid, &mut self.wishes);
        add_standby(&mut self.wishes, uid, &self.index.standby_of(uid));
        let entry = &placement.spec.entry;
        if let Some(route) = self.snapshot.route_on(entry, uid) {
            let on = self.wishes.routes.entry(entry.clone()).or_default();
            on.push(route.clone());
        }
    }

    /// Reports for each unreadable model what is wrong with it, once.
    fn tell_unreadable(&mut self, memory: &mut Memory) {
        let unreadable = &self.snapshot.unreadable;
        memory
            .unreadable
            .retain(|name, _| unreadable.contains_key(name));
        for (name, what) in unreadable {
            if memory.unreadable.get(name) == Some(&what.error) {
                continue;
            }
            memory.unreadable.insert(name.clone(), what.error.clone());
            let regarding = Regarding::model(unreadable_id(name, what));
            let note = unreadable_note(what);
            let notice = Notice::warning(regarding, reasons::UNREADABLE, "Read", note);
            self.out.write(Haste::Report, Change::Nothing, vec![notice]);
        }
        for (name, what) in unreadable {
            // Models that were readable once are reported with their status.
            if self.index.model(&what.uid).is_some() || what.uid.is_empty() {
                continue;
            }
            let before = what.status.as_deref().cloned().unwrap_or_default();
            let note = unreadable_note(what);
            let status = model_status::set_aside(self.snapshot, &before, reasons::UNREADABLE, note);
            if before != status {
                let change = Change::ModelStatus {
                    id: unreadable_id(name, what),
                    status: Box::new(status),
                };
                self.out.write(Haste::Report, change, Vec::new());
            }
        }
    }

    /// Why the model cannot be read, if it cannot.
    fn unreadable(&self, id: &ObjectId) -> Option<String> {
        let name = (id.namespace.clone(), id.name.clone());
        let what = self.snapshot.unreadable.get(&name)?;
        (what.uid == id.uid).then(|| unreadable_note(what))
    }

    /// Stops preparing for deleted models. Jobs that a model no longer wants are dropped where it
    /// is prepared.
    fn forget_prepares(&mut self) {
        let jobs = self.snapshot.prepares.keys();
        let unwanted = jobs.filter(|job| self.index.model(&job.model_uid).is_none());
        self.out.forget_prepares.extend(unwanted.cloned());
    }

    /// Drops questions of deleted models, or whose answers are no longer needed.
    fn forget_questions(&mut self) {
        let is_wanted = |key: &PlacementKey, _: &QuestionView| {
            self.index.model(&key.model_uid).is_some()
                && self.out.interest.entries.contains(&key.entry)
        };
        let questions = self.snapshot.questions.iter();
        let unwanted = questions.filter(|(key, question)| !is_wanted(key, question));
        let unwanted: Vec<PlacementKey> = unwanted.map(|(key, _)| key.clone()).collect();
        self.out.forget_asks.extend(unwanted);
    }
}

fn add_standby(wishes: &mut Wishes, uid: &str, hosts: &BTreeMap<String, Vec<Blob>>) {
    for (host, blocks) in hosts {
        let standby = Standby {
            placement_uid: uid.to_owned(),
            blocks: blocks.clone(),
        };
        wishes
            .standby
            .entry(host.clone())
            .or_default()
            .push(standby);
    }
}

fn unreadable_id(name: &(String, String), what: &Unreadable) -> ObjectId {
    ObjectId {
        namespace: name.0.clone(),
        name: name.1.clone(),
        uid: what.uid.clone(),
    }
}

fn unreadable_note(what: &Unreadable) -> String {
    format!(
        "{}; what it asked for before stays in force. Update the CRDs or correct it",
        what.error
    )
}

fn owner(model: &ObjectId) -> OwnerReference {
    OwnerReference {
        api_version: format!("{}/v1alpha1", lamina_crds::GROUP),
        kind: "DnnModel".to_owned(),
        name: model.name.clone(),
        uid: model.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

fn digest_of(placement: String, redeploy: &Redeploy) -> Move {
    Move {
        time: redeploy.time.clone(),
        placement,
        revision: redeploy.revision,
        summary: format!(
            "{}: {} → {} (est. {} → {})",
            redeploy.trigger,
            redeploy.from,
            redeploy.to,
            text::millis(redeploy.estimated_before_ms),
            text::millis(redeploy.estimated_after_ms)
        ),
    }
}

#[cfg(test)]
mod tests;
