//! The operator's knowledge of agents, links and running requests, and what it sends to
//! agents: everything that changes faster than Kubernetes objects.
//!
//! [`state`] decides (pure); [`World`] holds it behind a lock with a clock, the open
//! sessions and the listeners. Nothing here survives a restart: agents reconnect and report
//! again.

mod coordinates;
mod directory;
mod holders;
mod links;
mod liveness;
mod prepares;
mod probing;
mod state;
mod timings;
mod types;

pub use holders::Inventories;
pub use links::LinkTable;
pub(crate) use timings::RequestTotals;
pub(crate) use types::Identity;
pub use types::{
    LinkEstimate, NodeState, PrepareRequest, PrepareState, ProbePeer, RequestEstimate,
    SegmentTimingEstimate, WorldError, WorldEvent,
};

use crate::state::decision::Entries;
use lamina_model::Digest;
use lamina_placement::Tier;
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::{ApiKey, OperatorMessage};
use state::{Effects, State};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{broadcast, mpsc};

/// Events that a slow listener may lag behind; after that it gets `Lagged` and must look at
/// everything.
const EVENT_BUFFER: usize = 1024;
/// Messages that an agent may leave unread before its session is ended.
const OUTBOX: usize = 1024;

/// The operator's knowledge of agents. Clones share their content.
#[derive(Debug, Clone)]
pub struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    held: Mutex<Held>,
    events: broadcast::Sender<WorldEvent>,
}

#[derive(Debug, Default)]
struct Held {
    state: State,
    sessions: BTreeMap<String, Session>,
    next_session: u64,
}

#[derive(Debug)]
struct Session {
    id: u64,
    started_unix_ms: u64,
    outbox: mpsc::Sender<OperatorMessage>,
}

/// The operator's end of an agent's session. Dropping it closes the session.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    world: World,
    node: String,
    id: u64,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    /// An empty world.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            held: Mutex::default(),
            events: broadcast::Sender::new(EVENT_BUFFER),
        }))
    }

    /// The state of one agent; `None` if it never connected.
    pub fn node(&self, name: &str) -> Option<NodeState> {
        self.held().state.nodes.get(name, self.now())
    }

    /// Every agent that connected since the operator started, by node.
    pub fn nodes(&self) -> BTreeMap<String, NodeState> {
        self.held().state.nodes.all(self.now())
    }

    /// Every measured link at this moment. Costs a few pointers, however many links there are.
    pub fn links(&self) -> LinkTable {
        self.held().state.links.table(self.now())
    }

    /// Blobs in the caches of hosts, as reported.
    pub fn inventories(&self) -> Inventories {
        self.held().state.holders.all()
    }

    /// Sets the hosts of the cluster. Data about other hosts is dropped.
    pub fn set_known(&self, hosts: impl IntoIterator<Item = String>) {
        let hosts = hosts.into_iter().collect();
        self.held().state.set_known(hosts);
    }

    /// Drops the data of a host that is gone: links, peers, its unfinished jobs and, once its agent
    /// is silent, the agent.
    pub fn forget_host(&self, host: &str) {
        self.change(|state, _| state.forget_host(host));
    }

    /// Keeps requests and times of these placements, by UID, and takes none of others.
    /// Beside each is its entry, which alone is heard of its requests.
    pub fn retain_placements(&self, entries: &BTreeMap<String, String>) {
        self.held().state.retain_placements(entries);
    }

    /// Median relative error of the round trips that network coordinates predict, over the measured
    /// pairs; `None` if there are none.
    pub fn coordinates_error(&self) -> Option<f64> {
        self.links().coordinates_error()
    }

    /// Live times of a revision's segments over the last minute, in order; empty without requests.
    pub fn segment_timings(
        &self,
        placement_uid: &str,
        revision: i64,
    ) -> Vec<SegmentTimingEstimate> {
        let held = self.held();
        held.state
            .timings
            .segment_timings(placement_uid, revision, self.now())
    }

    /// Requests of a placement over the last minute; `None` if there were none.
    pub fn request_stats(&self, placement_uid: &str) -> Option<RequestEstimate> {
        let held = self.held();
        held.state.timings.request_stats(placement_uid, self.now())
    }

    /// Receives every change from now on. A receiver that lags must look at everything.
    pub fn subscribe(&self) -> broadcast::Receiver<WorldEvent> {
        self.0.events.subscribe()
    }

    /// Sets the hosts to which `node` measures links; its agent is told when they change and
    /// whenever it reconnects.
    pub fn set_peers<P: Into<ProbePeer>>(&self, node: &str, peers: impl IntoIterator<Item = P>) {
        let peers = peers.into_iter().map(Into::into).collect();
        self.change(|state, _| state.set_peers(node, peers));
    }

    /// Sets the entries of each model; agents receive the changes.
    pub(crate) fn set_directory(&self, models: BTreeMap<(String, String), Entries>) {
        self.change(|state, _| state.set_directory(models));
    }

    /// Sets the clients' keys; agents receive the changes.
    pub(crate) fn set_keys(&self, keys: Vec<ApiKey>) {
        self.change(|state, _| state.set_keys(keys));
    }

    /// Asks a host that holds `blob`, which has `most_bytes` at most, to send it to the
    /// store; false where none is there.
    pub(crate) fn take_back(&self, blob: &Digest, most_bytes: u64) -> bool {
        let mut held = self.held();
        let (is_coming, effects) = held.state.take_back(blob, most_bytes, self.now());
        self.carry_out(&mut held, effects);
        is_coming
    }

    /// How many bytes `blob` has at most, where `node` was asked for it a while ago.
    pub(crate) fn was_asked_for(&self, blob: &Digest, node: &str) -> Option<u64> {
        self.held().state.holders.was_asked(blob, node)
    }

    /// Sets which links matter: `paths` of requests, those that a planner wants to know, those of
    /// entries. Agents of these hosts are told what to measure, within bounds, and again when it
    /// changes.
    pub fn set_interest(
        &self,
        hosts: &BTreeMap<String, Tier>,
        paths: &BTreeSet<(String, String)>,
        candidates: &BTreeSet<(String, String)>,
        entries: &BTreeSet<String>,
    ) {
        // Not under the lock, so that sessions continue meanwhile.
        let (nodes, links) = (self.nodes(), self.links());
        let host = |(name, node): (String, NodeState)| {
            Some(probing::ProbeHost {
                tier: *hosts.get(&name)?,
                name,
                address: node.address,
                alive: node.alive,
            })
        };
        let hosts: Vec<_> = nodes.into_iter().filter_map(host).collect();
        let plan = probing::plan(&probing::Situation {
            hosts: &hosts,
            paths,
            entries,
            candidates,
            links: &links,
        });
        self.change(|state, _| state.set_all_peers(plan));
    }

    /// Sets the node on which this operator runs.
    pub fn set_operator_node(&self, node: &str) {
        self.change(|state, now| state.set_operator_node(node, now));
    }

    /// Starts a job on its node; its agent is told again whenever it reconnects.
    /// A job that ended, or was lost, starts again; one already running there
    /// continues.
    ///
    /// # Errors
    /// The node's agent is not connected, or the job runs on another node.
    pub fn start_prepare(&self, job: PrepareRequest) -> Result<(), WorldError> {
        let mut held = self.held();
        let effects = held.state.start_prepare(job)?;
        self.carry_out(&mut held, effects);
        Ok(())
    }

    /// Notes that a job cannot start, with `message` for people; it may be started again.
    pub fn refuse_prepare(&self, job: PrepareRequest, message: String) {
        self.change(|state, _| state.refuse_prepare(job, message));
    }

    /// The progress of a job; `None` if it was never started, or was forgotten.
    pub fn prepare_state(&self, job: &str) -> Option<PrepareState> {
        self.held().state.prepares.state(job)
    }

    /// Every job that was started and not forgotten, by name.
    pub fn prepares(&self) -> BTreeMap<String, PrepareState> {
        self.held().state.prepares.all()
    }

    /// Drops a job; the agent running it stops.
    pub fn forget_prepare(&self, job: &str) {
        self.change(|state, _| state.forget_prepare(job));
    }

    /// Finds lost agents; never returns.
    pub async fn watch_over(&self) {
        let mut interval = tokio::time::interval(liveness::TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.change(State::tick);
        }
    }

    /// Requests since the operator's start by placement UID, and the estimate of
    /// those with requests in the last minute.
    pub(crate) fn requests(&self) -> BTreeMap<String, (RequestTotals, Option<RequestEstimate>)> {
        let (held, now) = (self.held(), self.now());
        let timings = &held.state.timings;
        timings
            .totals()
            .iter()
            .map(|(uid, totals)| (uid.clone(), (*totals, timings.request_stats(uid, now))))
            .collect()
    }

    /// Whether a younger agent of that node has the session and is alive. While an agent is
    /// replaced there are two, and the older may return at any time, for example if the operator
    /// was replaced too.
    pub(crate) fn is_superseded(&self, identity: &Identity) -> bool {
        let held = self.held();
        let younger = held
            .sessions
            .get(&identity.node)
            .is_some_and(|session| session.started_unix_ms > identity.started_unix_ms);
        younger && held.state.is_alive(&identity.node)
    }

    /// An agent said hello: this ends its previous session, if any. The receiver delivers the
    /// messages to send to it.
    pub(crate) fn open_session(
        &self,
        identity: Identity,
    ) -> (SessionHandle, mpsc::Receiver<OperatorMessage>) {
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let mut held = self.held();
        let (id, node) = (held.next_session, identity.node.clone());
        held.next_session += 1;
        let session = Session {
            id,
            started_unix_ms: identity.started_unix_ms,
            outbox,
        };
        held.sessions.insert(node.clone(), session);
        let effects = held.state.opened(identity, self.now());
        self.carry_out(&mut held, effects);
        drop(held);
        let world = self.clone();
        (SessionHandle { world, node, id }, inbox)
    }

    fn change(&self, change: impl FnOnce(&mut State, Duration) -> Effects) {
        let mut held = self.held();
        let effects = change(&mut held.state, self.now());
        self.carry_out(&mut held, effects);
    }

    /// Sends and publishes under the lock, to keep the order.
    fn carry_out(&self, held: &mut Held, effects: Effects) {
        for (node, message) in effects.messages {
            let Some(session) = held.sessions.get(&node) else {
                continue;
            };
            let message = OperatorMessage {
                message: Some(message),
            };
            // A closing session gets everything when it reconnects.
            let sent = session.outbox.try_send(message);
            if let Err(mpsc::error::TrySendError::Full(_)) = sent {
                tracing::warn!(node, "the agent accepts no messages; closing its session");
                held.sessions.remove(&node);
                held.state.closed(&node, self.now());
            }
        }
        for event in effects.events {
            // Without a listener there is nobody to notify.
            let _ = self.0.events.send(event);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change of the state is complete before anything can panic.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.0.start.elapsed()
    }
}

impl SessionHandle {
    /// Name of the agent's node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Handles a message of the agent; false if a newer session has replaced this one.
    pub(crate) fn heard(&self, message: FromAgent) -> bool {
        let mut held = self.world.held();
        if !self.is_held_in(&held) {
            return false;
        }
        let effects = held.state.heard(&self.node, message, self.world.now());
        self.world.carry_out(&mut held, effects);
        true
    }

    /// Whether no newer session has replaced this one.
    pub(crate) fn is_current(&self) -> bool {
        self.is_held_in(&self.world.held())
    }

    fn is_held_in(&self, held: &Held) -> bool {
        held.sessions
            .get(&self.node)
            .is_some_and(|s| s.id == self.id)
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        let mut held = self.world.held();
        if self.is_held_in(&held) {
            held.sessions.remove(&self.node);
            held.state.closed(&self.node, self.world.now());
        }
    }
}

#[cfg(test)]
mod tests;
