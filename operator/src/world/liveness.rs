//! Which agents are alive, from their messages and a clock.

use super::types::{Identity, NodeState, WorldEvent};
use lamina_proto::control::Heartbeat;
use std::collections::BTreeMap;
use std::time::Duration;

/// Silence after which an agent is lost, even if its stream looks open.
pub(super) const SILENCE: Duration = Duration::from_millis(2500);
/// Time for an agent to return after its stream closed.
pub(super) const REOPEN: Duration = Duration::from_millis(1500);
/// Time between two checks of the clock.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Every agent that ever connected.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    by_name: BTreeMap<String, Record>,
    last_tick: Option<Duration>,
}

#[derive(Debug)]
struct Record {
    identity: Identity,
    last_message: Duration,
    closed: Option<Duration>,
    lost: Option<Duration>,
    heartbeat: Option<Heartbeat>,
}

impl Nodes {
    /// Agents whose stream is open.
    pub(super) fn connected(&self) -> Vec<String> {
        let all = self.by_name.iter();
        let open = all.filter(|(_, r)| r.closed.is_none());
        open.map(|(name, _)| name.clone()).collect()
    }

    /// An agent opened a session.
    pub(super) fn opened(&mut self, identity: Identity, now: Duration) -> Option<WorldEvent> {
        let node = identity.node.clone();
        let Some(record) = self.by_name.get_mut(&node) else {
            let record = Record {
                identity,
                last_message: now,
                closed: None,
                lost: None,
                heartbeat: None,
            };
            self.by_name.insert(node.clone(), record);
            return Some(WorldEvent::NodeJoined { node });
        };
        record.identity = identity;
        record.last_message = now;
        record.closed = None;
        // It may be another process now.
        record.heartbeat = record.heartbeat.map(|said| Heartbeat {
            leaving: false,
            ..said
        });
        let was_lost = record.lost.take().is_some();
        was_lost.then_some(WorldEvent::NodeRecovered { node })
    }

    /// An agent sent a message over its open session.
    pub(super) fn heard(&mut self, node: &str, now: Duration) -> Option<WorldEvent> {
        let record = self.by_name.get_mut(node)?;
        record.last_message = now;
        let was_lost = record.lost.take().is_some();
        was_lost.then(|| WorldEvent::NodeRecovered {
            node: node.to_owned(),
        })
    }

    /// An agent's heartbeat.
    pub(super) fn heartbeat(&mut self, node: &str, heartbeat: Heartbeat) {
        if let Some(record) = self.by_name.get_mut(node) {
            record.heartbeat = Some(heartbeat);
        }
    }

    /// An agent's stream ended.
    pub(super) fn closed(&mut self, node: &str, now: Duration) {
        if let Some(record) = self.by_name.get_mut(node) {
            record.closed = Some(now);
        }
    }

    /// Finds the agents lost by `now`. Must be called every [`TICK`]: if the calls come late, this
    /// process was delayed, and the agents' silence does not count.
    pub(super) fn tick(&mut self, now: Duration) -> Vec<WorldEvent> {
        let late = self
            .last_tick
            .map_or(Duration::ZERO, |last| now.saturating_sub(last + TICK));
        self.last_tick = Some(now);
        let mut lost = Vec::new();
        for (node, record) in &mut self.by_name {
            if late > TICK {
                record.last_message = (record.last_message + late).min(now);
                record.closed = record.closed.map(|at| (at + late).min(now));
            }
            if record.lost.is_none() && record.is_overdue(now) {
                record.lost = Some(now);
                lost.push(WorldEvent::NodeLost { node: node.clone() });
            }
        }
        lost
    }

    /// Whether the agent of `node` is connected, or expected back at once.
    pub(super) fn is_alive(&self, node: &str) -> bool {
        self.by_name.get(node).is_some_and(|r| r.lost.is_none())
    }

    /// Whether an agent of `node` ever connected.
    pub(super) fn contains(&self, node: &str) -> bool {
        self.by_name.contains_key(node)
    }

    /// Every node by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Forgets a node whose agent is not connected.
    pub(super) fn forget(&mut self, node: &str) {
        if !self.is_alive(node) {
            self.by_name.remove(node);
        }
    }

    /// The state of one node.
    pub(super) fn get(&self, node: &str, now: Duration) -> Option<NodeState> {
        self.by_name.get(node).map(|r| r.state(now))
    }

    /// The state of every node by name.
    pub(super) fn all(&self, now: Duration) -> BTreeMap<String, NodeState> {
        self.by_name
            .iter()
            .map(|(name, record)| (name.clone(), record.state(now)))
            .collect()
    }
}

impl Record {
    fn is_overdue(&self, now: Duration) -> bool {
        let silent = now.saturating_sub(self.last_message) > SILENCE;
        let gone = self
            .closed
            .is_some_and(|at| now.saturating_sub(at) > REOPEN);
        silent || gone
    }

    fn state(&self, now: Duration) -> NodeState {
        NodeState {
            address: self.identity.address.clone(),
            version: self.identity.version.clone(),
            alive: self.lost.is_none(),
            last_seen: now.saturating_sub(self.last_message),
            since_lost: self.lost.map(|at| now.saturating_sub(at)),
            cpu_load: self.heartbeat.map_or(0.0, |h| share(h.cpu_load)),
            memory_free_bytes: self.heartbeat.map(|h| h.memory_free_bytes),
            in_flight: self.heartbeat.map_or(0, |h| h.in_flight),
            leaving: self.heartbeat.is_some_and(|h| h.leaving),
        }
    }
}

/// A share as an agent reports it, clamped to 0 and 1.
fn share(told: f64) -> f64 {
    if told.is_finite() {
        told.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn identity() -> Identity {
        Identity {
            node: "a".into(),
            version: "1".into(),
            address: "a:8001".into(),
            started_unix_ms: 0,
        }
    }

    /// Ticks every [`TICK`] from one time to another; returns what was lost when.
    fn ticks(nodes: &mut Nodes, from: u64, to: u64) -> Vec<(u64, WorldEvent)> {
        (from..=to)
            .step_by(250)
            .flat_map(|now| {
                let lost = nodes.tick(at(now));
                lost.into_iter().map(move |event| (now, event))
            })
            .collect()
    }

    #[test]
    fn silence_loses_an_agent_once_and_a_word_brings_it_back() {
        let mut nodes = Nodes::default();
        let node = || "a".to_owned();
        let joined = nodes.opened(identity(), at(0));
        assert_eq!(joined, Some(WorldEvent::NodeJoined { node: node() }));
        let lost = ticks(&mut nodes, 0, 5000);
        assert_eq!(lost, [(2750, WorldEvent::NodeLost { node: node() })]);
        assert!(!nodes.is_alive("a"));
        let back = nodes.heard("a", at(5100));
        assert_eq!(back, Some(WorldEvent::NodeRecovered { node: node() }));
        assert_eq!(nodes.heard("a", at(5200)), None);
    }

    #[test]
    fn who_left_and_came_back_does_not_leave_any_more() {
        let mut nodes = Nodes::default();
        nodes.opened(identity(), at(0));
        let heartbeat = Heartbeat {
            memory_free_bytes: 7,
            leaving: true,
            ..Heartbeat::default()
        };
        nodes.heartbeat("a", heartbeat);
        assert!(nodes.get("a", at(0)).unwrap().leaving);
        nodes.closed("a", at(300));
        nodes.opened(identity(), at(1000));
        let back = nodes.get("a", at(1000)).unwrap();
        assert_eq!((back.leaving, back.memory_free_bytes), (false, Some(7)));
    }

    #[test]
    fn a_closed_stream_leaves_time_to_open_another() {
        let mut nodes = Nodes::default();
        nodes.opened(identity(), at(0));
        ticks(&mut nodes, 0, 250);
        nodes.closed("a", at(300));
        assert_eq!(ticks(&mut nodes, 500, 1750), []);
        nodes.opened(identity(), at(1760));
        assert_eq!(ticks(&mut nodes, 2000, 3000), []);
        nodes.closed("a", at(3000));
        assert_eq!(ticks(&mut nodes, 3250, 5000).len(), 1);
    }

    #[test]
    fn an_operator_that_was_held_up_blames_nobody() {
        let mut nodes = Nodes::default();
        nodes.opened(identity(), at(0));
        ticks(&mut nodes, 0, 1000);
        assert_eq!(nodes.tick(at(9000)), []);
        assert!(nodes.is_alive("a"));
        assert_eq!(
            ticks(&mut nodes, 9250, 13_000).len(),
            1,
            "but silence goes on"
        );
    }
}
