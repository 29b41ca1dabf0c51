//! The pure core: messages and times in, events and messages out. No clock, no I/O, no locks.

use super::directory::Directory;
use super::directory::Models;
use super::holders::Asked;
use super::holders::Holders;
use super::links::{Links, Sample};
use super::liveness::Nodes;
use super::prepares::{self, Outcome, Prepares};
use super::timings::Timings;
use super::types::{Identity, PrepareRequest, ProbePeer, WorldError, WorldEvent};
use lamina_model::Digest;
use lamina_proto::control::agent_message::Message as FromAgent;
use lamina_proto::control::operator_message::Message as ToAgent;
use lamina_proto::control::{
    ApiKey, ApiKeys, LinkSample, Peer, Peers, PrepareUpdate, WantBlobs, Welcome,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A host that is not listed and whose agent is silent is forgotten after this time, even if nobody
/// reports it gone.
const FORGET: Duration = Duration::from_secs(600);
/// Time between two checks for such hosts.
const SWEEP: Duration = Duration::from_secs(10);

/// The state.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) nodes: Nodes,
    pub(super) links: Links,
    pub(super) timings: Timings,
    pub(super) prepares: Prepares,
    pub(super) directory: Directory,
    pub(super) holders: Holders,
    /// Keys of clients; `None` until they are known.
    keys: Option<Vec<ApiKey>>,
    operator_node: String,
    peers: BTreeMap<String, Vec<ProbePeer>>,
    /// Hosts of the cluster.
    known: BTreeSet<String>,
    /// Other hosts with data here and a silent agent, since when.
    strange: BTreeMap<String, Duration>,
    swept: Duration,
}

/// The results of an input.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    /// For all listeners.
    pub(super) events: Vec<WorldEvent>,
    /// For nodes' agents.
    pub(super) messages: Vec<(String, ToAgent)>,
}

impl Effects {
    fn send(&mut self, node: &str, message: ToAgent) {
        self.messages.push((node.to_owned(), message));
    }
}

impl State {
    /// An agent opened a session: send it everything that concerns it.
    pub(super) fn opened(&mut self, identity: Identity, now: Duration) -> Effects {
        let node = identity.node.clone();
        let mut effects = Effects::default();
        effects.events.extend(self.nodes.opened(identity, now));
        effects.send(&node, self.welcome());
        if let Some(peers) = self.peers.get(&node) {
            effects.send(&node, to_message(peers));
        }
        for message in self.prepares.running_on(&node) {
            effects.send(&node, message);
        }
        effects.send(&node, self.directory.whole());
        if let Some(keys) = &self.keys {
            effects.send(&node, told(keys));
        }
        effects
    }

    /// Whether the agent of `node` is alive.
    pub(super) fn is_alive(&self, node: &str) -> bool {
        self.nodes.is_alive(node)
    }

    /// An agent's stream ended.
    pub(super) fn closed(&mut self, node: &str, now: Duration) {
        self.nodes.closed(node, now);
    }

    /// An agent sent a message.
    pub(super) fn heard(&mut self, node: &str, message: FromAgent, now: Duration) -> Effects {
        let mut effects = Effects::default();
        effects.events.extend(self.nodes.heard(node, now));
        match message {
            // Only the first message of a session identifies the agent.
            FromAgent::Hello(_) => {}
            FromAgent::Heartbeat(heartbeat) => self.nodes.heartbeat(node, heartbeat),
            FromAgent::Links(links) => {
                for sample in links.samples {
                    effects.events.extend(self.link_sample(node, &sample, now));
                }
            }
            FromAgent::Segments(segments) => {
                for timing in segments.timings {
                    self.timings.add_segment(node, timing, now);
                }
            }
            FromAgent::Requests(requests) => {
                for model in requests.models {
                    self.timings.add_requests(node, model, now);
                }
            }
            FromAgent::Prepare(update) => self.prepare_update(node, update, &mut effects),
            FromAgent::Blobs(inventory) => self.holders.heard(node, inventory),
            // From hosts that are not Nodes; their session handles it.
            FromAgent::Report(_) => {}
        }
        effects
    }

    /// Time passed.
    pub(super) fn tick(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.timings.expire(now);
        self.sweep(now, &mut effects);
        for event in self.nodes.tick(now) {
            if let WorldEvent::NodeLost { node } = &event {
                let jobs = self.prepares.node_lost(node);
                let changed = jobs
                    .into_iter()
                    .map(|job| WorldEvent::PrepareChanged { job });
                effects.events.extend(changed);
            }
            effects.events.push(event);
        }
        effects
    }

    /// Sets the hosts of the cluster: nobody measures links to others.
    pub(super) fn set_known(&mut self, hosts: BTreeSet<String>) {
        self.known = hosts;
    }

    /// Drops the data of a host that is gone. An open session continues and is forgotten some time
    /// after its end.
    pub(super) fn forget_host(&mut self, host: &str) -> Effects {
        self.known.remove(host);
        self.strange.remove(host);
        self.peers.remove(host);
        self.links.forget(host);
        self.holders.forget(host);
        let mut effects = Effects::default();
        if !self.nodes.is_alive(host) {
            self.nodes.forget(host);
            let jobs = self.prepares.forget_node(host).into_iter();
            let changed = jobs.map(|job| WorldEvent::PrepareChanged { job });
            effects.events.extend(changed);
        }
        effects
    }

    /// Keeps nothing of placements other than these, whose entries stand beside their UIDs.
    pub(super) fn retain_placements(&mut self, placements: &BTreeMap<String, String>) {
        self.timings.retain(placements);
    }

    /// Forgets hosts that were unlisted for long.
    fn sweep(&mut self, now: Duration, effects: &mut Effects) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        let held = self.nodes.names().chain(self.links.hosts());
        let held = held.chain(self.peers.keys().map(String::as_str));
        let is_strange = |host: &str| !self.known.contains(host) && !self.nodes.is_alive(host);
        let strange: BTreeSet<&str> = held.filter(|host| is_strange(host)).collect();
        let since = |host: &str| self.strange.get(host).copied().unwrap_or(now);
        let strange = strange.into_iter().map(|h| (h.to_owned(), since(h)));
        self.strange = strange.collect();
        let overdue = self
            .strange
            .iter()
            .filter(|(_, since)| now >= **since + FORGET);
        let overdue: Vec<String> = overdue.map(|(host, _)| host.clone()).collect();
        for host in overdue {
            effects.events.extend(self.forget_host(&host).events);
        }
    }

    /// Sets the hosts to which `node` measures links.
    pub(super) fn set_peers(&mut self, node: &str, peers: Vec<ProbePeer>) -> Effects {
        let mut effects = Effects::default();
        if self.peers.get(node) != Some(&peers) {
            effects.send(node, to_message(&peers));
            self.peers.insert(node.to_owned(), peers);
        }
        effects
    }

    /// Sets the peers of each of these hosts.
    pub(super) fn set_all_peers(&mut self, all: BTreeMap<String, Vec<ProbePeer>>) -> Effects {
        let mut effects = Effects::default();
        for (node, peers) in all {
            effects
                .messages
                .extend(self.set_peers(&node, peers).messages);
        }
        effects
    }

    /// Sets the node on which the operator runs.
    pub(super) fn set_operator_node(&mut self, node: &str, now: Duration) -> Effects {
        let mut effects = Effects::default();
        if self.operator_node != node {
            node.clone_into(&mut self.operator_node);
            for name in self.nodes.all(now).into_keys() {
                effects.send(&name, self.welcome());
            }
        }
        effects
    }

    /// Sets the entries of each model; every agent receives the changes.
    pub(super) fn set_directory(&mut self, models: Models) -> Effects {
        let mut effects = Effects::default();
        if let Some(change) = self.directory.set(models) {
            for node in self.nodes.connected() {
                effects.send(&node, ToAgent::Directory(change.clone()));
            }
        }
        effects
    }

    /// Sets the clients' keys; every agent receives the changes.
    pub(super) fn set_keys(&mut self, keys: Vec<ApiKey>) -> Effects {
        let mut effects = Effects::default();
        if self.keys.as_ref() != Some(&keys) {
            for node in self.nodes.connected() {
                effects.send(&node, told(&keys));
            }
            self.keys = Some(keys);
        }
        effects
    }

    /// Asks a host that holds `blob`, of so many bytes at most, to send it; false where
    /// none is there.
    pub(super) fn take_back(
        &mut self,
        blob: &Digest,
        most_bytes: u64,
        now: Duration,
    ) -> (bool, Effects) {
        let mut effects = Effects::default();
        let (nodes, holders) = (&self.nodes, &mut self.holders);
        let asked = holders.ask(blob, most_bytes, now, |node| nodes.is_alive(node));
        let Some(asked) = asked else {
            return (false, effects);
        };
        if let Asked::Now(node) = asked {
            let digests = vec![blob.to_string()];
            effects.send(&node, ToAgent::WantBlobs(WantBlobs { digests }));
        }
        (true, effects)
    }

    /// Starts a job on a node whose agent is connected.
    pub(super) fn start_prepare(&mut self, request: PrepareRequest) -> Result<Effects, WorldError> {
        let (node, job) = (request.node.clone(), request.job.clone());
        if !self.nodes.is_alive(&node) {
            return Err(WorldError::NotConnected(node));
        }
        let mut effects = Effects::default();
        if let Some(message) = self.prepares.start(request)? {
            effects.send(&node, message);
            effects.events.push(WorldEvent::PrepareChanged { job });
        }
        Ok(effects)
    }

    /// Notes that a job could not start.
    pub(super) fn refuse_prepare(&mut self, request: PrepareRequest, message: String) -> Effects {
        let mut effects = Effects::default();
        let job = request.job.clone();
        self.prepares.refuse(request, message);
        effects.events.push(WorldEvent::PrepareChanged { job });
        effects
    }

    /// Drops a job and stops the agent running it.
    pub(super) fn forget_prepare(&mut self, job: &str) -> Effects {
        Effects {
            events: Vec::new(),
            messages: self.prepares.forget(job).into_iter().collect(),
        }
    }

    fn welcome(&self) -> ToAgent {
        ToAgent::Welcome(Welcome {
            operator_node: self.operator_node.clone(),
        })
    }

    fn link_sample(&mut self, node: &str, sample: &LinkSample, now: Duration) -> Vec<WorldEvent> {
        let is_host = self.known.contains(&sample.peer) || self.nodes.contains(&sample.peer);
        if sample.peer == node || !is_host {
            return Vec::new();
        }
        let measured = Sample {
            inbound: sample.inbound,
            rtt_seconds: Some(sample.rtt_seconds),
            bytes_per_second: Some(sample.bytes_per_second),
            bytes: sample.bytes,
            failed: sample.failed,
            contended: sample.contended,
        };
        self.links.add(node, &sample.peer, measured, now)
    }

    fn prepare_update(&mut self, node: &str, update: PrepareUpdate, effects: &mut Effects) {
        let job = update.job.clone();
        match self.prepares.update(node, update) {
            Outcome::Changed => effects.events.push(WorldEvent::PrepareChanged { job }),
            Outcome::Same => {}
            Outcome::Unwanted => effects.send(node, prepares::cancel(&job)),
        }
    }
}

fn told(keys: &[ApiKey]) -> ToAgent {
    ToAgent::ApiKeys(ApiKeys {
        keys: keys.to_vec(),
    })
}

fn to_message(peers: &[ProbePeer]) -> ToAgent {
    let peers = peers.iter().map(|peer| Peer {
        node: peer.node.clone(),
        address: peer.address.clone(),
        every_ms: peer.every_ms,
    });
    ToAgent::Peers(Peers {
        peers: peers.collect(),
    })
}

#[cfg(test)]
mod tests;
