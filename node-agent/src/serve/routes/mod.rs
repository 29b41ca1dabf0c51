//! Which revision a request takes, and how many are in flight.
//!
//! A flip and a request's start exclude each other, so every request belongs to exactly one
//! revision from its start to its end, and the count at the flip is exact.

use super::specs::{SpecError, value_specs};
use lamina_crds::compute_node::{Blob, Exits, Route, RouteRevision, RouteStatus, Verification};
use lamina_crds::dnn_model::{EarlyExits, ExitMode, WhenCutOff};
use lamina_crds::{Encoding, Hop};
use lamina_model::ValueSpec;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// A model that enters at this host, as far as requests need to know it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) placement_uid: String,
    /// `namespace/name`.
    pub(crate) full_name: String,
    pub(crate) name: String,
    /// Inputs and outputs of the active revision; `None` if none serves.
    pub(crate) active: Option<Arc<Signature>>,
    /// Why requests are refused, if they are.
    pub(crate) refuse: Option<String>,
    /// The user's settings for early exits.
    pub(crate) early: Option<EarlyExits>,
}

impl Model {
    /// Whether an exit may answer a request if a host is away.
    pub(crate) fn answers_when_cut_off(&self) -> bool {
        let has_exits = self.active.as_ref().is_some_and(|a| a.exits.is_some());
        let early = self.early.as_ref().filter(|_| has_exits);
        early.is_some_and(|e| e.mode == ExitMode::Early && e.when_cut_off == WhenCutOff::Answer)
    }
}

/// Inputs and outputs of one revision.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Signature {
    pub(crate) revision: i64,
    pub(crate) inputs: Vec<ValueSpec>,
    pub(crate) outputs: Vec<ValueSpec>,
    /// Its early exits.
    pub(crate) exits: Option<Exits>,
    /// Digest of its manifest.
    pub(crate) manifest: String,
}

impl Signature {
    /// Whether a request for `other` fits this one too.
    pub(crate) fn takes_the_same(&self, other: &Self) -> bool {
        (&self.inputs, &self.outputs, &self.exits) == (&other.inputs, &other.outputs, &other.exits)
    }
}

/// Why a request cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoTicket {
    /// This host is not the entry any more.
    Gone,
    /// No revision serves.
    NotServing,
    /// What serves violates a constraint that protects data.
    Refused(String),
}

/// A request's registration with a revision. Dropping it ends the request there.
#[derive(Debug)]
pub(crate) struct Ticket {
    routes: Routes,
    placement_uid: String,
    /// Inputs and outputs of the revision.
    pub(crate) signature: Arc<Signature>,
    /// Those of an earlier one, if different.
    pub(crate) earlier: Option<Arc<Signature>>,
    /// Its first host.
    pub(crate) first: Hop,
    /// The encoding of inputs on the way there.
    pub(crate) encoding: Option<Encoding>,
    /// Its path, `cam-1[0-4]→edge-2[5-14]`.
    pub(crate) path: String,
    /// Fires when the revision must not be used any more while this request is still on it: its
    /// hosts may have vanished, or its data may not leave.
    pub(crate) abandoned: CancellationToken,
    /// Fires when new requests take another revision, or none.
    pub(crate) superseded: CancellationToken,
}

impl Ticket {
    pub(crate) fn revision(&self) -> i64 {
        self.signature.revision
    }
}

/// The routes of this host. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
    applied: watch::Sender<u64>,
}

type Table = BTreeMap<String, Entry>;

#[derive(Debug)]
struct Entry {
    spec: Route,
    model: Arc<Model>,
    /// The signature that served last, and the last one before it that differed.
    last: Option<Arc<Signature>>,
    earlier: Option<Arc<Signature>>,
    in_flight: BTreeMap<i64, InFlight>,
    in_flight_at_flip: u32,
    verified: Option<Verification>,
    /// For the active revision.
    superseded: CancellationToken,
}

#[derive(Debug, Default)]
struct InFlight {
    requests: u32,
    abandoned: CancellationToken,
}

impl InFlight {
    /// Notifies requests in flight; later ones are not affected.
    fn abandon(&mut self) {
        std::mem::take(&mut self.abandoned).cancel();
    }
}

impl Routes {
    /// Starts empty; `changed` is notified when a status changes.
    pub(crate) fn new(changed: Arc<Notify>) -> Self {
        Self {
            table: Arc::default(),
            changed,
            applied: watch::Sender::default(),
        }
    }

    /// Applies `wanted`. Every request that starts afterwards takes the new active
    /// revision.
    ///
    /// # Errors
    /// A revision with an unknown datatype, which is never used; the others are
    /// applied all the same.
    pub(crate) fn apply(&self, wanted: &[Route]) -> Result<(), SpecError> {
        let mut table = self.lock();
        for (_, mut gone) in
            table.extract_if(.., |uid, _| !wanted.iter().any(|r| r.placement_uid == *uid))
        {
            gone.in_flight.values_mut().for_each(InFlight::abandon);
            gone.superseded.cancel();
        }
        let mut outcome = Ok(());
        for route in wanted {
            let (signatures, misfit) = compile(route);
            outcome = outcome.and(misfit);
            follow(&mut table, route, signatures);
        }
        drop(table);
        self.applied.send_modify(|times| *times += 1);
        self.changed.notify_one();
        outcome
    }

    /// A number that changes each time that routes are applied.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The models `namespace/name` that enter at this host: a recreated one coexists with the old
    /// one for a moment.
    pub(crate) fn find(&self, full_name: &str) -> Vec<Arc<Model>> {
        let table = self.lock();
        let models = table.values().map(|entry| &entry.model);
        let found = models.filter(|m| m.full_name == full_name);
        found.cloned().collect()
    }

    /// `namespace/name` of every model that enters at this host.
    pub(crate) fn names(&self) -> Vec<String> {
        let table = self.lock();
        let models = table.values().map(|entry| &entry.model);
        models.map(|model| model.full_name.clone()).collect()
    }

    /// Whether this host is the entry of the Placement.
    pub(crate) fn has(&self, placement_uid: &str) -> bool {
        self.lock().contains_key(placement_uid)
    }

    /// Manifests of all revisions that may be called.
    pub(crate) fn manifests(&self) -> Vec<Blob> {
        let table = self.lock();
        let revisions = table.values().flat_map(|e| &e.spec.revisions);
        revisions.map(|r| r.manifest.clone()).collect()
    }

    /// The maximum of `of` over the inputs of the serving revisions.
    pub(crate) fn most_of_inputs(&self, of: impl Fn(&[ValueSpec]) -> u64) -> u64 {
        let table = self.lock();
        let active = table.values().filter_map(|e| e.model.active.as_ref());
        active.map(|s| of(&s.inputs)).max().unwrap_or(0)
    }

    /// Starts a request on the active revision.
    ///
    /// # Errors
    /// See [`NoTicket`].
    pub(crate) fn begin(&self, placement_uid: &str) -> Result<Ticket, NoTicket> {
        let mut table = self.lock();
        let entry = table.get_mut(placement_uid).ok_or(NoTicket::Gone)?;
        if let Some(reason) = &entry.spec.refuse {
            return Err(NoTicket::Refused(reason.clone()));
        }
        let signature = entry.model.active.clone().ok_or(NoTicket::NotServing)?;
        let target = route_to(&entry.spec, signature.revision).ok_or(NoTicket::NotServing)?;
        let (first, path) = (target.first.clone(), target.path.clone());
        let encoding = target.encoding.clone();
        let in_flight = entry.in_flight.entry(signature.revision).or_default();
        in_flight.requests += 1;
        Ok(Ticket {
            routes: self.clone(),
            placement_uid: placement_uid.to_owned(),
            signature,
            earlier: entry.earlier.clone(),
            first,
            encoding,
            path,
            abandoned: in_flight.abandoned.clone(),
            superseded: entry.superseded.clone(),
        })
    }

    /// Revision for new requests, 0 if none serves.
    pub(crate) fn active_revision(&self, placement_uid: &str) -> i64 {
        let table = self.lock();
        table
            .get(placement_uid)
            .map_or(0, |e| e.spec.active_revision)
    }

    /// The current route of `revision`.
    pub(crate) fn revision(&self, placement_uid: &str, revision: i64) -> Option<RouteRevision> {
        let table = self.lock();
        route_to(&table.get(placement_uid)?.spec, revision).cloned()
    }

    /// Revisions that this host must still verify: placement UID and revision.
    pub(crate) fn to_verify(&self) -> Vec<(String, i64)> {
        let table = self.lock();
        let pending = |entry: &Entry| {
            let revision = entry.spec.verify_revision?;
            let done = entry
                .verified
                .as_ref()
                .is_some_and(|v| v.revision == revision);
            (!done).then_some(revision)
        };
        table
            .iter()
            .filter_map(|(uid, entry)| Some((uid.clone(), pending(entry)?)))
            .collect()
    }

    /// Notes the outcome of a verification.
    pub(crate) fn verified(&self, placement_uid: &str, outcome: Verification) {
        if let Some(entry) = self.lock().get_mut(placement_uid) {
            entry.verified = Some(outcome);
        }
        self.changed.notify_one();
    }

    /// The status of each route, for the operator.
    pub(crate) fn statuses(&self) -> Vec<RouteStatus> {
        self.lock().values().map(status).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, placement_uid: &str, revision: i64) {
        let mut table = self.lock();
        let Some(entry) = table.get_mut(placement_uid) else {
            return;
        };
        let before = oldest_in_flight(entry);
        if let Some(in_flight) = entry.in_flight.get_mut(&revision) {
            in_flight.requests = in_flight.requests.saturating_sub(1);
            if in_flight.requests == 0 {
                entry.in_flight.remove(&revision);
            }
        }
        let drained = oldest_in_flight(entry) != before;
        drop(table);
        if drained {
            self.changed.notify_one();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.routes.end(&self.placement_uid, self.revision());
    }
}

type Signatures = BTreeMap<i64, Arc<Signature>>;

/// The signature of each revision, and the error of one that is left out.
fn compile(route: &Route) -> (Signatures, Result<(), SpecError>) {
    let mut signatures = Signatures::new();
    let mut outcome = Ok(());
    // 0 means that none serves.
    for revision in route.revisions.iter().filter(|r| r.revision > 0) {
        match signature(revision) {
            Ok(signature) => {
                signatures.insert(revision.revision, Arc::new(signature));
            }
            Err(error) => outcome = Err(error),
        }
    }
    (signatures, outcome)
}

fn signature(revision: &RouteRevision) -> Result<Signature, SpecError> {
    Ok(Signature {
        revision: revision.revision,
        inputs: value_specs(&revision.inputs)?,
        outputs: value_specs(&revision.outputs)?,
        exits: revision.exits.clone(),
        manifest: revision.manifest.digest.clone(),
    })
}

fn follow(table: &mut Table, route: &Route, signatures: Signatures) {
    let entry = table
        .entry(route.placement_uid.clone())
        .or_insert_with(|| Entry {
            spec: route.clone(),
            model: Arc::new(model(route, None)),
            last: None,
            earlier: None,
            in_flight: BTreeMap::new(),
            in_flight_at_flip: 0,
            verified: None,
            superseded: CancellationToken::new(),
        });
    if entry.spec.active_revision != route.active_revision {
        entry.in_flight_at_flip = entry.in_flight.values().map(|f| f.requests).sum();
        tracing::info!(
            model = entry.model.full_name,
            from = entry.spec.active_revision,
            to = route.active_revision,
            in_flight = entry.in_flight_at_flip,
            "route flipped"
        );
        std::mem::take(&mut entry.superseded).cancel();
    }
    let refused_now = entry.spec.refuse.is_none() && route.refuse.is_some();
    if refused_now {
        std::mem::take(&mut entry.superseded).cancel();
    }
    for (revision, in_flight) in &mut entry.in_flight {
        if refused_now || !signatures.contains_key(revision) {
            in_flight.abandon();
        }
    }
    let active = signatures.get(&route.active_revision).cloned();
    if let Some(active) = &active
        && let Some(last) = entry.last.replace(Arc::clone(active))
        && !last.takes_the_same(active)
    {
        entry.earlier = Some(last);
    }
    entry.model = Arc::new(model(route, active));
    entry.spec = route.clone();
}

fn model(route: &Route, active: Option<Arc<Signature>>) -> Model {
    Model {
        placement_uid: route.placement_uid.clone(),
        full_name: format!("{}/{}", route.namespace, route.name),
        name: route.name.clone(),
        active,
        refuse: route.refuse.clone(),
        early: route.exits.clone(),
    }
}

fn route_to(route: &Route, revision: i64) -> Option<&RouteRevision> {
    let mut revisions = route.revisions.iter();
    revisions.find(|r| r.revision == revision)
}

fn oldest_in_flight(entry: &Entry) -> i64 {
    let oldest = entry.in_flight.keys().next().copied();
    oldest.map_or(entry.spec.active_revision, |oldest| {
        oldest.min(entry.spec.active_revision)
    })
}

fn status(entry: &Entry) -> RouteStatus {
    RouteStatus {
        placement_uid: entry.spec.placement_uid.clone(),
        active_revision: entry.spec.active_revision,
        oldest_in_flight: oldest_in_flight(entry),
        in_flight_at_flip: entry.in_flight_at_flip,
        verified: entry.verified.clone(),
    }
}

#[cfg(test)]
mod tests;
