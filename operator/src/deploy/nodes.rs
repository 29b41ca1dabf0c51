//! ComputeNodes: which should exist, and whether their agents are connected.

use super::room;
use crate::state::cluster::{impossible_speed, tier};
use crate::state::decision::{Change, Decisions, Haste, Holder};
use crate::state::ids::ObjectId;
use crate::state::notice::{Notice, Regarding};
use crate::state::snapshot::Snapshot;
use crate::state::time::seconds_only;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference};
use lamina_crds::compute_node::{Route, Slice, Standby};
use lamina_crds::conditions::{BENCHMARKED, READY, REGISTERED, condition, is_true};
use lamina_crds::{ComputeNode, ComputeNodeSpec, TIER_LABEL, reasons};
use std::collections::{BTreeMap, BTreeSet};

/// Start of the message about a lost host.
const SILENT: &str = "no heartbeat since";

/// The wishes of all hosts.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// Slices by host.
    pub slices: BTreeMap<String, Vec<Slice>>,
    /// Routes by host.
    pub routes: BTreeMap<String, Vec<Route>>,
    /// Blocks to fetch ahead, by host.
    pub standby: BTreeMap<String, Vec<Standby>>,
}

impl Wishes {
    /// Adds wishes that were built separately.
    pub(crate) fn append(&mut self, more: Self) {
        for (host, slices) in more.slices {
            self.slices.entry(host).or_default().extend(slices);
        }
        for (host, routes) in more.routes {
            self.routes.entry(host).or_default().extend(routes);
        }
        for (host, standby) in more.standby {
            self.standby.entry(host).or_default().extend(standby);
        }
    }
}

/// Hosts that have a ComputeNode or are to get one.
pub(crate) fn hosts(snapshot: &Snapshot) -> BTreeSet<&str> {
    let known = snapshot.compute_nodes.keys();
    known
        .chain(&snapshot.agents)
        .map(String::as_str)
        .filter(|name| snapshot.nodes.contains_key(*name))
        .collect()
}

/// Writes every ComputeNode that is missing or differs.
pub(crate) fn apply(snapshot: &Snapshot, mut wishes: Wishes, out: &mut Decisions) {
    for name in hosts(snapshot) {
        let Some(node) = snapshot.nodes.get(name) else {
            continue;
        };
        let mut slices = wishes.slices.remove(name).unwrap_or_default();
        slices.sort_by(|a, b| {
            (&a.placement_uid, a.revision, a.segment).cmp(&(
                &b.placement_uid,
                b.revision,
                b.segment,
            ))
        });
        let mut routes = wishes.routes.remove(name).unwrap_or_default();
        routes.sort_by(|a, b| a.placement_uid.cmp(&b.placement_uid));
        let mut standby = wishes.standby.remove(name).unwrap_or_default();
        standby.sort_by(|a, b| a.placement_uid.cmp(&b.placement_uid));
        let present = snapshot.compute_nodes.get(name);
        let spec = ComputeNodeSpec {
            tier: node.label(TIER_LABEL).unwrap_or_default().to_owned(),
            operator: snapshot.endpoint.clone(),
            slices,
            routes,
            standby,
            // The operator does not write how a host joins.
            join: present.and_then(|present| present.spec.join.clone()),
        };
        let present = present.map(|present| &present.spec);
        if present == Some(&spec) {
            continue;
        }
        let mut spec = room::fitting(present, spec, snapshot.memory_share);
        if present != Some(&spec) {
            spec.join = None;
            let of = if snapshot.is_node(name) {
                Holder::Node(owner(name, node.uid()))
            } else {
                Holder::Join(node.uid().to_owned())
            };
            let change = Change::ComputeNode {
                name: name.to_owned(),
                of,
                spec,
            };
            out.write(Haste::Step, change, Vec::new());
        }
    }
}

fn owner(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(false),
    }
}

/// Sets Ready of every ComputeNode, and reports agents that connect, disappear or return.
pub(crate) fn conditions(snapshot: &Snapshot, out: &mut Decisions) {
    for (name, node) in &snapshot.compute_nodes {
        let before = node
            .status
            .as_ref()
            .and_then(|s| s.conditions.iter().find(|c| c.type_ == READY));
        let Some(ready) = readiness(snapshot, name, node, before) else {
            continue;
        };
        let unchanged = before.is_some_and(|b| {
            (&b.status, &b.reason, &b.message) == (&ready.status, &ready.reason, &ready.message)
        });
        if unchanged {
            continue;
        }
        let ready = match before {
            Some(b) if b.status == ready.status => Condition {
                last_transition_time: b.last_transition_time.clone(),
                ..ready
            },
            _ => ready,
        };
        let events = notice(name, node, before, &ready).into_iter().collect();
        let change = Change::ComputeNodeConditions {
            name: name.clone(),
            conditions: vec![ready],
        };
        out.write(Haste::Report, change, events);
    }
}

/// Ready of one host; `None` while it may not have found this operator yet.
fn readiness(
    snapshot: &Snapshot,
    name: &str,
    node: &ComputeNode,
    before: Option<&Condition>,
) -> Option<Condition> {
    let make = |is: bool, reason: &str, message: String| {
        let now = seconds_only(snapshot.wall);
        Some(condition(
            READY,
            is,
            reason,
            message,
            node.metadata.generation,
            now,
        ))
    };
    let was_there = before.is_some_and(|b| b.status == "True" || b.reason == reasons::NODE_LOST);
    if !snapshot.is_alive(name) {
        if snapshot.is_starting() {
            return None;
        }
        if let Some(message) = not_joined(snapshot, name, node) {
            return make(false, "NotJoined", message);
        }
        if !snapshot.agents.contains(name) {
            return make(
                false,
                reasons::NODE_LOST,
                "no agent pod runs here".to_owned(),
            );
        }
        if was_there {
            let seen = snapshot.live.get(name).and_then(|l| l.last_seen);
            let message = match (seen, before) {
                // Keep the first message: computed later, the time may round to another second.
                (_, Some(b)) if b.message.starts_with(SILENT) => b.message.clone(),
                (Some(t), _) => format!("{SILENT} {}", t.strftime("%H:%M:%SZ")),
                (None, Some(b)) if b.reason == reasons::NODE_LOST => b.message.clone(),
                (None, _) => "the agent has not reconnected to the restarted operator".to_owned(),
            };
            return make(false, reasons::NODE_LOST, message);
        }
        let message = "the agent has not connected to the operator yet".to_owned();
        return make(false, "NotConnected", message);
    }
    if !node.spec.tier.is_empty() && tier(&node.spec.tier).is_none() {
        let message = format!(
            "node label {TIER_LABEL} is `{}`; use device, edge or cloud. It counts as edge",
            node.spec.tier
        );
        return make(false, reasons::INVALID_SPEC, message);
    }
    let told = node.status.iter().flat_map(|s| &s.conditions);
    let mut told = told.filter(|c| c.type_ == REGISTERED && c.status == "False");
    if let Some(trouble) = told.next() {
        return make(false, &trouble.reason, trouble.message.clone());
    }
    if let Some(gflops) = impossible_speed(snapshot, name, node) {
        let message = format!(
            "the agent reports a speed of {gflops:?} GFLOP/s, which no host of these processors has; nothing is placed here"
        );
        return make(false, reasons::IMPOSSIBLE_REPORT, message);
    }
    let status = node.status.as_ref();
    match status.and_then(|s| s.capacity) {
        Some(c) if status.is_some_and(|s| is_true(&s.conditions, BENCHMARKED)) => make(
            true,
            "Connected",
            format!("{:.1} GFLOP/s measured", c.gflops),
        ),
        _ => make(
            false,
            "NotBenchmarked",
            "the agent measures its speed".to_owned(),
        ),
    }
}

/// Why a host that is not a Node has not joined yet.
fn not_joined(snapshot: &Snapshot, name: &str, node: &ComputeNode) -> Option<String> {
    let join = node.spec.join.as_ref()?;
    if snapshot.is_node(name) || node.is_joined() {
        return None;
    }
    let until = join.expires_at.0;
    Some(if until < snapshot.wall {
        format!(
            "nobody joined by {}; make another token with `kubectl lamina join {name}`",
            until.strftime("%FT%H:%M:%SZ")
        )
    } else {
        format!(
            "no Node: a machine may join as this host until {}",
            until.strftime("%FT%H:%M:%SZ")
        )
    })
}

fn notice(
    name: &str,
    node: &ComputeNode,
    before: Option<&Condition>,
    ready: &Condition,
) -> Option<Notice> {
    let was_lost = before.is_some_and(|b| b.reason == reasons::NODE_LOST);
    let was_ready = before.is_some_and(|b| b.status == "True");
    let is_ready = ready.status == "True";
    let status = node.status.as_ref();
    let what = || {
        let capacity = status.and_then(|s| s.capacity);
        let speed = capacity.map_or(0.0, |c| c.gflops);
        let memory = capacity.map_or(0, |c| c.memory_bytes);
        let address = status.map_or("", |s| s.address.as_str());
        format!(
            "{speed:.1} GFLOP/s, {} memory, at {address}",
            lamina_crds::quantity::format_bytes(memory)
        )
    };
    let (warning, reason, note) = if is_ready && was_lost {
        (
            false,
            reasons::NODE_RECOVERED,
            format!("{name} is back: {}", what()),
        )
    } else if is_ready && !was_ready {
        (
            false,
            reasons::NODE_REGISTERED,
            format!("{name}: {}", what()),
        )
    } else if ready.reason == reasons::NODE_LOST && !was_lost {
        (
            true,
            reasons::NODE_LOST,
            format!("{name}: {}", ready.message),
        )
    } else if ready.reason == reasons::IMPOSSIBLE_REPORT
        && before.is_none_or(|b| b.reason != ready.reason)
    {
        (
            true,
            reasons::IMPOSSIBLE_REPORT,
            format!("{name}: {}", ready.message),
        )
    } else {
        return None;
    };
    Some(Notice {
        regarding: Regarding {
            kind: "ComputeNode",
            id: ObjectId::of(&node.metadata),
        },
        warning,
        reason,
        action: "Watch",
        note,
    })
}
