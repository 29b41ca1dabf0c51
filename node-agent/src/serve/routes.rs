//! Which revision a request takes, and how many are on their way.
//!
//! A flip and a request's start exclude each other, so every request belongs to
//! exactly one revision from its start to its end, and the count at the flip is
//! exact.

use crate::serve::specs::{SpecError, value_specs};
use lamina_crds::Hop;
use lamina_crds::compute_node::{Route, RouteRevision, RouteStatus, Verification};
use lamina_model::ValueSpec;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A model that this host routes, as far as requests need to know it.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) placement_uid: String,
    /// `namespace/name`.
    pub(crate) full_name: String,
    pub(crate) name: String,
    /// The host at which requests enter.
    pub(crate) entry: Hop,
    pub(crate) inputs: Vec<ValueSpec>,
    pub(crate) outputs: Vec<ValueSpec>,
    /// Some revision serves.
    pub(crate) serves: bool,
}

/// No model can be told by that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("unknown model `{name}`; this cluster serves: {known}")]
    Unknown { name: String, known: String },
    #[error("model `{name}` is in several namespaces; call one of: {candidates}")]
    Ambiguous { name: String, candidates: String },
}

/// A request's place on a revision. Dropping it ends the request there.
#[derive(Debug)]
pub(crate) struct Ticket {
    routes: Routes,
    placement_uid: String,
    /// The revision.
    pub(crate) revision: i64,
    /// Its first host.
    pub(crate) first: Hop,
    /// Its path, `cam-1[0-4]→edge-2[5-14]`.
    pub(crate) path: String,
    /// Fires when the revision is no longer wanted while this request is still
    /// on it: its hosts may be gone without a word.
    pub(crate) abandoned: CancellationToken,
    /// Fires when new requests take another revision, or none.
    pub(crate) superseded: CancellationToken,
}

/// The routes of this host. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    node: Arc<str>,
    table: Arc<Mutex<Table>>,
    changed: Arc<Notify>,
}

type Table = BTreeMap<String, Entry>;

#[derive(Debug)]
struct Entry {
    spec: Route,
    model: Arc<Model>,
    in_flight: BTreeMap<i64, InFlight>,
    in_flight_at_flip: u32,
    verified: Option<Verification>,
    /// Of the active revision.
    superseded: CancellationToken,
}

#[derive(Debug, Default)]
struct InFlight {
    requests: u32,
    abandoned: CancellationToken,
}

impl Routes {
    /// None yet, on the host `node`; `changed` is notified when a status changes.
    pub(crate) fn new(node: &str, changed: Arc<Notify>) -> Self {
        Self {
            node: node.into(),
            table: Arc::default(),
            changed,
        }
    }

    /// Follows `wanted` from now on. A changed active revision is taken by every
    /// request that starts afterwards.
    ///
    /// # Errors
    /// A route with an unknown datatype; the others are followed all the same.
    pub(crate) fn apply(&self, wanted: &[Route]) -> Result<(), SpecError> {
        let mut table = self.lock();
        for (_, gone) in
            table.extract_if(.., |uid, _| !wanted.iter().any(|r| r.placement_uid == *uid))
        {
            gone.in_flight.values().for_each(|f| f.abandoned.cancel());
            gone.superseded.cancel();
        }
        let mut outcome = Ok(());
        for route in wanted {
            match compile(route) {
                Ok(model) => follow(&mut table, route, model),
                Err(error) => outcome = Err(error),
            }
        }
        drop(table);
        self.changed.notify_one();
        outcome
    }

    /// The model called `name` or `namespace/name`. Where it has several entries,
    /// this host comes first, then one that serves.
    ///
    /// # Errors
    /// See [`LookupError`].
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Model>, LookupError> {
        let table = self.lock();
        let mut found: Vec<&Arc<Model>> = table
            .values()
            .map(|entry| &entry.model)
            .filter(|m| m.full_name == name || m.name == name)
            .collect();
        let exact: Vec<_> = found
            .iter()
            .copied()
            .filter(|m| m.full_name == name)
            .collect();
        if !exact.is_empty() {
            found = exact;
        }
        let mut full_names: Vec<&str> = found.iter().map(|m| m.full_name.as_str()).collect();
        full_names.sort_unstable();
        full_names.dedup();
        if full_names.len() > 1 {
            return Err(LookupError::Ambiguous {
                name: name.to_owned(),
                candidates: full_names.join(", "),
            });
        }
        let best = found
            .into_iter()
            .min_by_key(|m| (*m.entry.node != *self.node, !m.serves));
        best.cloned().ok_or_else(|| LookupError::Unknown {
            name: name.to_owned(),
            known: known(&table),
        })
    }

    /// Starts a request on the active revision; `None` where none serves.
    pub(crate) fn begin(&self, placement_uid: &str) -> Option<Ticket> {
        let mut table = self.lock();
        let entry = table.get_mut(placement_uid)?;
        let revision = entry.spec.active_revision;
        let RouteRevision { first, path, .. } = route_to(&entry.spec, revision)?.clone();
        let in_flight = entry.in_flight.entry(revision).or_default();
        in_flight.requests += 1;
        Some(Ticket {
            routes: self.clone(),
            placement_uid: placement_uid.to_owned(),
            revision,
            first,
            path,
            abandoned: in_flight.abandoned.clone(),
            superseded: entry.superseded.clone(),
        })
    }

    /// The route as it is wanted now.
    pub(crate) fn route(&self, placement_uid: &str) -> Option<Route> {
        self.lock().get(placement_uid).map(|e| e.spec.clone())
    }

    /// Revisions that this host, as their entry, is to verify and has not:
    /// placement UID and revision.
    pub(crate) fn to_verify(&self) -> Vec<(String, i64)> {
        let table = self.lock();
        let pending = |entry: &Entry| {
            let revision = entry.spec.verify_revision?;
            let done = entry
                .verified
                .as_ref()
                .is_some_and(|v| v.revision == revision);
            let ours = *entry.spec.entry.node == *self.node;
            (ours && !done).then_some(revision)
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

    /// What the operator is told of each route.
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
        self.routes.end(&self.placement_uid, self.revision);
    }
}

fn compile(route: &Route) -> Result<Arc<Model>, SpecError> {
    Ok(Arc::new(Model {
        placement_uid: route.placement_uid.clone(),
        full_name: format!("{}/{}", route.namespace, route.name),
        name: route.name.clone(),
        entry: route.entry.clone(),
        inputs: value_specs(&route.inputs)?,
        outputs: value_specs(&route.outputs)?,
        serves: route_to(route, route.active_revision).is_some(),
    }))
}

fn follow(table: &mut Table, route: &Route, model: Arc<Model>) {
    let Some(entry) = table.get_mut(&route.placement_uid) else {
        let entry = Entry {
            spec: route.clone(),
            model,
            in_flight: BTreeMap::new(),
            in_flight_at_flip: 0,
            verified: None,
            superseded: CancellationToken::new(),
        };
        table.insert(route.placement_uid.clone(), entry);
        return;
    };
    if entry.spec.active_revision != route.active_revision {
        entry.in_flight_at_flip = entry.in_flight.values().map(|f| f.requests).sum();
        tracing::info!(
            model = model.full_name,
            from = entry.spec.active_revision,
            to = route.active_revision,
            in_flight = entry.in_flight_at_flip,
            "route flipped"
        );
        std::mem::take(&mut entry.superseded).cancel();
    }
    for (revision, in_flight) in &entry.in_flight {
        if !route.revisions.iter().any(|r| r.revision == *revision) {
            in_flight.abandoned.cancel();
        }
    }
    entry.spec = route.clone();
    entry.model = model;
}

fn route_to(route: &Route, revision: i64) -> Option<&RouteRevision> {
    let mut revisions = route.revisions.iter();
    revisions.find(|r| r.revision == revision && revision > 0)
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

fn known(table: &Table) -> String {
    let mut names: Vec<&str> = table.values().map(|e| e.model.full_name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        "none yet".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{hop, route};

    fn routes() -> Routes {
        Routes::new("cam-1", Arc::default())
    }

    fn with_revisions(active: i64, all: &[i64]) -> Route {
        Route {
            revisions: all
                .iter()
                .map(|&revision| RouteRevision {
                    revision,
                    first: hop("cam-1"),
                    path: format!("cam-1[{revision}]"),
                })
                .collect(),
            ..route("u", "m", active)
        }
    }

    #[test]
    fn a_flip_counts_what_is_on_its_way_and_the_old_revision_drains() {
        let routes = routes();
        routes.apply(&[with_revisions(1, &[1, 2])]).unwrap();
        let old = [routes.begin("u").unwrap(), routes.begin("u").unwrap()];
        routes.apply(&[with_revisions(2, &[1, 2])]).unwrap();
        let new = routes.begin("u").unwrap();
        assert_eq!((old[0].revision, new.revision), (1, 2));
        let status = &routes.statuses()[0];
        assert_eq!(
            (
                status.active_revision,
                status.oldest_in_flight,
                status.in_flight_at_flip
            ),
            (2, 1, 2)
        );
        drop(old);
        assert_eq!(routes.statuses()[0].oldest_in_flight, 2);
        assert_eq!(routes.statuses()[0].in_flight_at_flip, 2);
    }

    #[test]
    fn requests_on_a_dropped_revision_are_told() {
        let routes = routes();
        routes.apply(&[with_revisions(1, &[1])]).unwrap();
        let ticket = routes.begin("u").unwrap();
        routes.apply(&[with_revisions(2, &[1, 2])]).unwrap();
        assert!(!ticket.abandoned.is_cancelled() && ticket.superseded.is_cancelled());
        routes.apply(&[with_revisions(2, &[2])]).unwrap();
        assert!(ticket.abandoned.is_cancelled());
        let fresh = routes.begin("u").unwrap();
        assert!(!fresh.superseded.is_cancelled());
        routes.apply(&[]).unwrap();
        assert!(fresh.abandoned.is_cancelled() && fresh.superseded.is_cancelled());
        assert!(routes.begin("u").is_none());
    }

    #[test]
    fn nothing_starts_where_nothing_serves() {
        let routes = routes();
        routes.apply(&[with_revisions(0, &[1])]).unwrap();
        assert!(routes.begin("u").is_none());
        assert!(!routes.find("m").unwrap().serves);
    }

    #[test]
    fn models_are_found_by_short_and_by_full_name() {
        let routes = routes();
        let other = Route {
            namespace: "lab".into(),
            ..route("v", "m", 1)
        };
        routes.apply(&[route("u", "m", 1), other]).unwrap();
        assert_eq!(routes.find("lab/m").unwrap().placement_uid, "v");
        assert_eq!(
            routes.find("m").unwrap_err().to_string(),
            "model `m` is in several namespaces; call one of: default/m, lab/m"
        );
        assert_eq!(
            routes.find("n").unwrap_err().to_string(),
            "unknown model `n`; this cluster serves: default/m, lab/m"
        );
    }

    #[test]
    fn of_several_entries_this_host_comes_first() {
        let routes = Routes::new("cam-2", Arc::default());
        let ours = Route {
            entry: hop("cam-2"),
            ..route("v", "m", 0)
        };
        routes.apply(&[route("u", "m", 1), ours.clone()]).unwrap();
        assert_eq!(routes.find("m").unwrap().placement_uid, "v");
        let elsewhere = Routes::new("edge-1", Arc::default());
        elsewhere.apply(&[route("u", "m", 1), ours]).unwrap();
        assert_eq!(elsewhere.find("m").unwrap().placement_uid, "u");
    }

    #[test]
    fn the_entry_alone_verifies_and_once() {
        let mut wanted = with_revisions(1, &[1, 2]);
        wanted.verify_revision = Some(2);
        let routes = routes();
        routes.apply(&[wanted.clone()]).unwrap();
        assert_eq!(routes.to_verify(), [("u".to_owned(), 2)]);
        routes.verified(
            "u",
            Verification {
                revision: 2,
                passed: true,
                message: String::new(),
                latency_ms: 1.0,
                time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
                ),
            },
        );
        assert_eq!(routes.to_verify(), []);
        wanted.entry = hop("cam-2");
        let elsewhere = self::routes();
        elsewhere.apply(&[wanted]).unwrap();
        assert_eq!(elsewhere.to_verify(), []);
    }
}
