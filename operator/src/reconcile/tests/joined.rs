//! Hosts without a Node.

use super::*;
use crate::state::decision::{Change, Holder};
use crate::state::snapshot::Snapshot;
use crate::testing::{at, node, world};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use lamina_crds::compute_node::{Join, Joined};

const HOST: &str = "roof-1";

/// The world, with a host that may join and, if `joined`, did.
fn with_host(joined: bool) -> Snapshot {
    let mut snapshot = world();
    let mut object = (*snapshot.compute_nodes["cam-1"]).clone();
    object.metadata.name = Some(HOST.into());
    object.metadata.uid = Some("roof-uid".into());
    let token = "01".repeat(32);
    object.spec.join = Some(Join {
        token_sha256: token.clone(),
        expires_at: Time(at(200)),
        address: None,
    });
    let status = object.status.get_or_insert_default();
    status.conditions.retain(|c| c.type_ != READY);
    status.joined = joined.then(|| Joined {
        token_sha256: token,
        key_sha256: "key".into(),
        at: Time(at(50)),
    });
    snapshot.compute_nodes.insert(HOST.into(), Arc::new(object));
    let mut view = node(HOST, "device", false);
    Arc::make_mut(&mut view.0).metadata.uid = Some("roof-uid".into());
    snapshot.nodes.insert(HOST.into(), view);
    snapshot.joins.insert(HOST.into());
    if joined {
        let live = snapshot.live["cam-1"].clone();
        snapshot.live.insert(HOST.into(), live);
        snapshot.agents.insert(HOST.into());
    }
    snapshot
}

fn said(bench: &Bench) -> (String, String) {
    let status = bench.snapshot.compute_nodes[HOST].status.as_ref().unwrap();
    let ready = status.conditions.iter().find(|c| c.type_ == READY).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_host_without_a_node_is_written_as_itself_and_its_join_left_alone() {
    let mut bench = Bench::of(with_host(true));
    // The operator moved.
    bench.snapshot.endpoint = "10.0.0.4:9000".into();
    let decisions = bench.look();
    let mut written = decisions.writes.iter().filter_map(|w| match &w.change {
        Change::ComputeNode { name, of, spec } if name == HOST => Some((of, spec)),
        _ => None,
    });
    let (of, spec) = written.next().unwrap();
    assert_eq!(*of, Holder::Join("roof-uid".into()));
    assert_eq!(spec.join, None);
    assert_eq!(spec.operator, "10.0.0.4:9000");
    assert!(bench.snapshot.compute_nodes[HOST].is_joined());
    // Nothing changes then.
    let writes = bench.look().writes;
    let is_host =
        |w: &crate::state::decision::Write| matches!(&w.change, Change::ComputeNode { .. });
    assert!(!writes.iter().any(is_host));
    assert_eq!(said(&bench).0, "Connected");
}

#[test]
fn one_that_has_not_joined_says_until_when_it_may() {
    let mut bench = Bench::of(with_host(false));
    bench.look();
    let (reason, message) = said(&bench);
    assert_eq!(reason, "NotJoined");
    assert!(message.contains("may join as this host until"), "{message}");
    bench.snapshot.wall += SignedDuration::from_secs(3600);
    bench.look();
    let (reason, message) = said(&bench);
    assert_eq!(reason, "NotJoined");
    assert!(message.contains("make another token"), "{message}");
}

#[test]
fn one_that_is_silent_is_lost_by_its_heartbeats_alone() {
    let mut bench = Bench::of(with_host(true));
    bench.look();
    assert_eq!(said(&bench).0, "Connected");
    bench.snapshot.live.get_mut(HOST).unwrap().alive = false;
    bench.look();
    let (reason, message) = said(&bench);
    assert_eq!(reason, reasons::NODE_LOST);
    assert!(message.starts_with("no heartbeat since"), "{message}");
}
