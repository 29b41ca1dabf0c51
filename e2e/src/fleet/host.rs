//! One host of a fleet: the state of its agent and its reports.

use super::duty::{Duty, Report, Wish};
use super::models::Library;
use super::objects::Tokens;
use super::prober::{Peer, Prober};
use super::traffic::Traffic;
use super::{FleetHost, Links};
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use lamina_crds::AGENT_MANAGER;
use lamina_crds::quantity::format_bytes;
use lamina_proto::control::{LinkSample, ModelRequests, SegmentTiming};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{sleep, timeout};

/// Changes within this time are written together.
const GATHER: Duration = Duration::from_millis(50);
/// A write that takes longer has failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// State shared by all hosts of a fleet.
pub(super) struct Shared {
    /// Connects to the API server without a user: each agent has its own token.
    pub(super) client: Client,
    pub(super) library: Arc<Library>,
    pub(super) links: Mutex<Links>,
    pub(super) traffic: Mutex<Traffic>,
    /// Hosts that neither report nor answer.
    pub(super) silent: Mutex<BTreeSet<String>>,
    /// The clock: one moment as both types.
    pub(super) began: (Instant, Timestamp),
}

impl Shared {
    fn now(&self) -> Duration {
        self.began.0.elapsed()
    }

    /// A moment as Kubernetes writes it, in whole seconds.
    fn clock(&self, at: Duration) -> String {
        let at = SignedDuration::try_from(at).unwrap_or_default();
        let at = self.began.1.checked_add(at).unwrap_or(self.began.1);
        at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host with its agent.
pub(super) struct Host {
    spec: FleetHost,
    tokens: Tokens,
    /// From 0 to 1: this host's place among all.
    share: f64,
    shared: Arc<Shared>,
    state: Mutex<State>,
    operator: watch::Sender<String>,
    changed: Notify,
    /// Whether the operator reports it Ready.
    is_ready: AtomicBool,
    /// A session is open.
    is_connected: AtomicBool,
}

struct State {
    duty: Duty,
    prober: Prober,
    /// UID and generation of the adopted wish.
    seen: (String, i64),
    /// Peers whose links changed under real traffic, with the channel to notify once reported.
    changes: Vec<(String, oneshot::Sender<Instant>)>,
    sessions: u32,
}

/// What an agent reports each second.
pub(super) struct Said {
    pub(super) load: f64,
    pub(super) memory_free_bytes: u64,
    pub(super) links: Vec<LinkSample>,
    pub(super) segments: Vec<SegmentTiming>,
    pub(super) requests: Vec<ModelRequests>,
    pub(super) changes: Changes,
}

/// Channels to notify once changed links are reported.
pub(super) struct Changes(Vec<oneshot::Sender<Instant>>);

impl Changes {
    /// Notifies them: the operator has the report.
    pub(super) fn told(self) {
        let now = Instant::now();
        for waiting in self.0 {
            // The receiver may have given up.
            let _ = waiting.send(now);
        }
    }
}

impl Host {
    /// A host without a wish, number `ordinal` of `count`.
    pub(super) fn new(
        spec: FleetHost,
        tokens: Tokens,
        (ordinal, count): (usize, usize),
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            spec,
            tokens,
            share: ordinal as f64 / count.max(1) as f64,
            shared,
            state: Mutex::new(State {
                duty: Duty::default(),
                prober: Prober::new(ordinal as u64),
                seen: (String::new(), -1),
                changes: Vec::new(),
                sessions: 0,
            }),
            operator: watch::Sender::default(),
            changed: Notify::new(),
            is_ready: AtomicBool::new(false),
            is_connected: AtomicBool::new(false),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(super) fn address(&self) -> &str {
        &self.spec.address
    }

    /// The token for the operator.
    pub(super) fn token(&self) -> &str {
        &self.tokens.operator
    }

    pub(super) const fn share(&self) -> f64 {
        self.share
    }

    pub(super) fn library(&self) -> &Library {
        &self.shared.library
    }

    pub(super) fn is_silent(&self) -> bool {
        lock(&self.shared.silent).contains(self.name())
    }

    /// The operator's address, once known.
    pub(super) async fn operator(&self) -> String {
        let mut address = self.operator.subscribe();
        // The sender is a part of this host.
        let known = address.wait_for(|address| !address.is_empty()).await;
        known.map(|address| address.clone()).unwrap_or_default()
    }

    pub(super) fn has_moved(&self, address: &str) -> bool {
        *self.operator.borrow() != address
    }

    pub(super) fn session_opened(&self) {
        lock(&self.state).sessions += 1;
        self.is_connected.store(true, Ordering::Relaxed);
    }

    pub(super) fn session_ended(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
    }

    /// Whether a session is open now.
    pub(super) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Number of sessions opened so far.
    pub(super) fn sessions(&self) -> u32 {
        lock(&self.state).sessions
    }

    pub(super) fn set_peers(&self, peers: Vec<Peer>) {
        lock(&self.state).prober.follow(peers);
    }

    /// Reports that real traffic sees a changed link to `peer`; the receiver resolves when the
    /// operator has the report.
    pub(super) fn sees_change(&self, peer: &str) -> oneshot::Receiver<Instant> {
        let (told, answer) = oneshot::channel();
        lock(&self.state).changes.push((peer.to_owned(), told));
        answer
    }

    /// Whether the operator reports it Ready.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Notes the operator's verdict in the ComputeNode's status.
    pub(super) fn judged(&self, status: &Value) {
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
        self.is_ready.store(ready, Ordering::Relaxed);
    }

    /// Adopts a wish if it differs.
    pub(super) fn follow(&self, wish: &Wish) {
        let now = self.shared.now();
        let mut state = lock(&self.state);
        let seen = (wish.uid.clone(), wish.generation);
        if state.seen == seen {
            return;
        }
        state.seen = seen;
        state.duty.follow(wish, now, |block| {
            self.library().milliseconds(block, self.spec.gflops)
        });
        drop(state);
        self.operator.send_if_modified(|known| {
            *known != wish.operator && {
                known.clone_from(&wish.operator);
                true
            }
        });
        self.changed.notify_one();
    }

    /// The report of the last second.
    pub(super) fn second(&self) -> Said {
        let now = self.shared.now();
        let mut state = lock(&self.state);
        let silent = lock(&self.shared.silent).clone();
        let links = lock(&self.shared.links);
        let link = |peer: &str| (!silent.contains(peer)).then(|| links.get(self.name(), peer));
        let mut samples = Vec::new();
        let mut told = Vec::new();
        for (peer, waiting) in std::mem::take(&mut state.changes) {
            let quality = links.get(self.name(), &peer);
            samples.extend(state.prober.seen(&peer, now, quality));
            told.push(waiting);
        }
        samples.extend(state.prober.second(now, link));
        drop(links);
        let (segments, requests) = self.traffic(&state.duty, now);
        let held = state.duty.bytes().saturating_mul(2);
        Said {
            load: if requests.is_empty() { 0.02 } else { 0.2 },
            memory_free_bytes: self.spec.memory_bytes.saturating_sub(held),
            links: samples,
            segments,
            requests,
            changes: Changes(told),
        }
    }

    fn traffic(&self, duty: &Duty, now: Duration) -> (Vec<SegmentTiming>, Vec<ModelRequests>) {
        let mut traffic = lock(&self.shared.traffic);
        for ((uid, revision, segment), ms) in duty.ready(now) {
            traffic.holds(uid, *revision, *segment, ms / 1e3);
        }
        for (uid, revision) in duty.entries() {
            traffic.serves(uid, revision);
        }
        let segments = duty
            .ready(now)
            .filter_map(|((uid, revision, segment), _)| traffic.segment(uid, *revision, *segment));
        let requests = duty
            .entries()
            .filter_map(|(uid, revision)| traffic.requests(uid, revision));
        (segments.collect(), requests.collect())
    }

    /// Writes the ComputeNode's status for as long as the fleet lives.
    pub(super) async fn publish(self: Arc<Self>) {
        let mut written = Value::Null;
        loop {
            let (uid, status, next) = self.status();
            // The same status must be written again to a new object.
            let news = json!([uid, status]);
            if !uid.is_empty() && !self.is_silent() && news != written {
                match self.write(&news[1]).await {
                    Ok(()) => written = news,
                    Err(error) => {
                        tracing::debug!(node = self.name(), error, "status not written");
                        sleep(RETRY).await;
                    }
                }
                continue;
            }
            let now = self.shared.now();
            let wait = next.map_or(RETRY * 5, |at| at.saturating_sub(now));
            // A silent host checks again after a while.
            let _ = timeout(wait.min(RETRY * 5), self.changed.notified()).await;
            sleep(GATHER).await;
        }
    }

    /// UID of the object, its status, and when it changes next.
    fn status(&self) -> (String, Value, Option<Duration>) {
        let now = self.shared.now();
        let state = lock(&self.state);
        let (uid, generation) = state.seen.clone();
        let report = state.duty.report(now, |at| self.shared.clock(at));
        let held = state.duty.bytes();
        drop(state);
        let condition = |kind: &str, reason: &str, message: String| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastTransitionTime": self.shared.clock(Duration::ZERO),
            })
        };
        let FleetHost {
            gflops,
            cpu_millis,
            memory_bytes,
            address,
            ..
        } = &self.spec;
        let Report {
            slices,
            routes,
            ready,
            next,
        } = report;
        let status = json!({
            "observedGeneration": generation,
            "conditions": [
                condition("Registered", "Registered", format!("the agent listens at {address}")),
                condition("Benchmarked", "Measured", format!("{gflops:.1} GFLOP/s, made up")),
            ],
            "address": address,
            "agentVersion": env!("CARGO_PKG_VERSION"),
            "capacity": {"gflops": gflops, "cpuMillis": cpu_millis, "memoryBytes": memory_bytes},
            "display": {
                "gflops": format!("{gflops:.1}"),
                "memoryFree": format_bytes(*memory_bytes),
                "slices": ready,
                "sliceBytes": format_bytes(held),
            },
            "slices": slices,
            "routes": routes,
        });
        (uid, status, next)
    }

    /// Writes `status` as agents do, with this one's token.
    async fn write(&self, status: &Value) -> Result<(), String> {
        let body = json!({
            "apiVersion": format!("{}/v1alpha1", lamina_crds::GROUP),
            "kind": "ComputeNode",
            "metadata": {"name": self.name()},
            "status": status,
        });
        let path = format!(
            "/apis/{}/v1alpha1/computenodes/{}/status?fieldManager={AGENT_MANAGER}&force=true",
            lamina_crds::GROUP,
            self.name(),
        );
        let request = Request::patch(path)
            .header(CONTENT_TYPE, "application/apply-patch+yaml")
            .header(AUTHORIZATION, format!("Bearer {}", self.tokens.api))
            .body(body.to_string().into_bytes())
            .map_err(|error| error.to_string())?;
        match timeout(WRITE_TIMEOUT, self.shared.client.request_text(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {WRITE_TIMEOUT:?}")),
        }
    }
}
