//! Probes the links of this host.
//!
//! Each peer has its own task ([`peer`]), so an unresponsive one delays no other. Round trips
//! continue while a bandwidth is measured; bandwidth is measured for one peer at a time, since
//! the probes would compete.

mod pace;
mod peer;

use super::link_memory::{HostBudget, LinkMemory, Seen, passive_samples, probe_told};
use super::lost_time::process_denied;
use crate::net::Trust;
use crate::telemetry::{Activity, Telemetry, Transfer};
use lamina_proto::control::{LinkSample, Peer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Default interval between probes of a peer, and the bounds for the operator's choice.
const EVERY: Duration = Duration::from_secs(2);
const EVERY_BOUNDS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(600));
/// Most peers probed, whatever the operator says.
const MOST_PEERS: usize = 256;
/// Samples kept while there is no session.
const KEPT: usize = 1024;
/// Data of a host that is no longer a peer is dropped after this time.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Requests of a window say less if this process was denied a larger share of it.
const DENIED: f64 = 0.1;

/// A host whose link is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    address: String,
    every: Duration,
}

/// Measures the links from this host to its peers, from real traffic if possible, otherwise with
/// small probes. Clones share their content.
#[derive(Debug, Clone)]
pub struct Prober(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    telemetry: Telemetry,
    trust: Trust,
    start: Instant,
    targets: watch::Sender<BTreeMap<String, Target>>,
    state: Mutex<State>,
    /// Held while a bandwidth is measured.
    turn: tokio::sync::Mutex<()>,
    measuring: Activity,
    /// There is an urgent sample.
    news: Notify,
    /// Requests were much slower than a link's probed rate.
    distrusted: Notify,
}

#[derive(Debug)]
struct State {
    links: BTreeMap<String, LinkMemory>,
    host: HostBudget,
    samples: Vec<LinkSample>,
    /// When real traffic was last processed, and the processor time denied by then.
    window: (Instant, Duration),
}

impl Prober {
    /// Measures nothing before [`Prober::run`]; `trust` authenticates peers.
    pub fn new(telemetry: Telemetry, trust: Trust) -> Self {
        Self(Arc::new(Inner {
            telemetry,
            trust,
            start: Instant::now(),
            targets: watch::Sender::default(),
            state: Mutex::new(State {
                links: BTreeMap::new(),
                host: HostBudget::default(),
                samples: Vec::new(),
                window: (Instant::now(), process_denied()),
            }),
            turn: tokio::sync::Mutex::default(),
            measuring: Activity::default(),
            news: Notify::new(),
            distrusted: Notify::new(),
        }))
    }

    /// Sets the hosts whose links are measured. Unchanged ones continue undisturbed.
    pub fn set_targets<'a>(&self, peers: impl IntoIterator<Item = &'a Peer>) {
        let targets = peers.into_iter().take(MOST_PEERS).map(|peer| {
            let target = Target {
                address: peer.address.clone(),
                every: every(peer.every_ms),
            };
            (peer.node.clone(), target)
        });
        self.0.targets.send_replace(targets.collect());
    }

    /// Adds the transfers of real requests since the last call.
    pub fn passive(&self, transfers: &[Transfer]) {
        let inner = &self.0;
        let (now, denied) = (Instant::now(), process_denied());
        inner.with(|state| {
            let (since, before) = std::mem::replace(&mut state.window, (now, denied));
            let lost = denied.saturating_sub(before);
            let contended = inner.telemetry.blobs().was_since(since)
                || lost > now.duration_since(since).mul_f64(DENIED);
            let samples = passive_samples(transfers, &mut state.links, contended, inner.now());
            state.keep(samples);
            if state.links.values().any(LinkMemory::is_distrusted) {
                inner.distrusted.notify_waiters();
            }
        });
    }

    /// Smallest recent round trip to `node` in seconds; `None` before the first.
    pub fn rtt(&self, node: &str) -> Option<f64> {
        self.0.rtt(node)
    }

    /// The samples since the last drain.
    pub fn drain(&self) -> Vec<LinkSample> {
        self.0.with(|state| std::mem::take(&mut state.samples))
    }

    /// Waits for an urgent sample: of a peer that does not answer, or of a link that has changed.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// Probes until dropped.
    pub async fn run(self) {
        let mut targets = self.0.targets.subscribe();
        let mut tasks: BTreeMap<String, (Target, AbortOnDropHandle<()>)> = BTreeMap::new();
        loop {
            let wanted = targets.borrow_and_update().clone();
            tasks.retain(|node, (target, _)| wanted.get(node) == Some(target));
            self.0.forget_others(&wanted);
            for (node, target) in wanted {
                tasks.entry(node).or_insert_with_key(|node| {
                    let watch = peer::watch(Arc::clone(&self.0), node.clone(), target.clone());
                    (target, AbortOnDropHandle::new(tokio::spawn(watch)))
                });
            }
            if targets.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Inner {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn rtt(&self, node: &str) -> Option<f64> {
        self.with(|state| state.links.get(node).and_then(LinkMemory::rtt))
    }

    /// Adds a round trip.
    fn answered(&self, node: &str, seen: Seen) {
        self.with(|state| {
            let told = state.link(node).round_trip(seen);
            state.keep([LinkSample {
                peer: node.to_owned(),
                rtt_seconds: told.value,
                contended: told.contended,
                ..LinkSample::default()
            }]);
        });
    }

    /// Notes that a peer did not answer.
    fn missed(&self, node: &str) {
        self.with(|state| {
            state.keep([LinkSample {
                peer: node.to_owned(),
                failed: true,
                ..LinkSample::default()
            }]);
        });
        self.news.notify_one();
    }

    /// Size of the due bandwidth probe, and its repetitions.
    fn due(&self, node: &str) -> Option<(u64, u32)> {
        let is_shared = self.telemetry.blobs().was_since(Instant::now());
        let now = self.now();
        self.with(|state| {
            let link = state.links.get(node)?;
            let bytes = link.probe_due(&state.host, is_shared, now)?;
            Some((bytes, link.repetitions()))
        })
    }

    /// Notes bytes sent, whatever the result.
    fn spent(&self, node: &str, bytes: u64, seen: Seen) {
        let now = self.now();
        self.with(|state| {
            let link = state.link(node);
            link.spend(seen.seconds - link.rtt().unwrap_or(0.0), now);
            state.host.spend(bytes, now);
        });
    }

    /// Adds a probe of `bytes`; returns its rate, and whether that is news.
    fn told(&self, node: &str, bytes: u64, seen: Seen) -> Option<Rate> {
        let now = self.now();
        self.with(|state| {
            let told = state.link(node).rate(bytes, seen)?;
            state.keep([LinkSample {
                peer: node.to_owned(),
                bytes_per_second: told.value,
                bytes,
                contended: told.contended,
                ..LinkSample::default()
            }]);
            let is_news = !told.contended && probe_told(&mut state.links, node, told.value, now);
            state.host.rates(&state.links);
            Some(Rate {
                bytes_per_second: told.value,
                is_news,
                is_bound: told.contended,
            })
        })
    }

    /// Notes the end of a measurement, and whether it found the rate.
    fn measured(&self, node: &str, has_told: bool) {
        let now = self.now();
        self.with(|state| state.link(node).probed(has_told, now));
    }

    fn forget_others(&self, targets: &BTreeMap<String, Target>) {
        let now = self.now();
        self.with(|state| {
            state.links.retain(|node, link| {
                let is_recent = link.seen_at().is_some_and(|at| now < at + REMEMBERED);
                targets.contains_key(node) || is_recent
            });
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Result of a probe.
struct Rate {
    bytes_per_second: f64,
    is_news: bool,
    is_bound: bool,
}

impl State {
    fn link(&mut self, node: &str) -> &mut LinkMemory {
        self.links.entry(node.to_owned()).or_default()
    }

    fn keep(&mut self, samples: impl IntoIterator<Item = LinkSample>) {
        let room = KEPT.saturating_sub(self.samples.len());
        self.samples.extend(samples.into_iter().take(room));
    }
}

fn every(millis: u32) -> Duration {
    match millis {
        0 => EVERY,
        millis => Duration::from_millis(millis.into()).clamp(EVERY_BOUNDS.0, EVERY_BOUNDS.1),
    }
}

#[cfg(test)]
mod tests;
