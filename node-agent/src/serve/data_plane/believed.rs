//! Hosts that authenticate each other by certificates, over real sockets.

use super::hostile::{FORWARD, sent};
use super::testing::{Folder, Host, part, request, route_to, values};
use crate::net::{Profile, Target, TlsMode, Trust, connect, connect_unknown};
use crate::serve::deadline::Deadline;
use crate::serve::engine::fake::fp32;
use crate::serve::guard::testing::framed;
use crate::serve::hop::{Hops, to_wire};
use crate::testing::{authority, credentials, trust};
use lamina_crds::Hop;
use lamina_crds::compute_node::Slice;
use lamina_identity::authority::Authority;
use lamina_proto::hop::hop_client::HopClient;
use lamina_proto::hop::{ForwardRequest, PingRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn forward(segment: u32, name: &str) -> ForwardRequest {
    ForwardRequest {
        placement_uid: "u".into(),
        revision: 1,
        segment,
        tensors: vec![to_wire(name, fp32(&[1, 2], &[1.0, 2.0]))],
        ..ForwardRequest::default()
    }
}

fn host(name: &str, folder: &Arc<Folder>, by: &Authority) -> Host {
    Host::with_trust(name, folder, trust(TlsMode::Required, by, name, &[by]))
}

fn called_by(slice: Slice, caller: &str) -> Slice {
    Slice {
        callers: Some(vec![caller.to_owned()]),
        ..slice
    }
}

/// `cam-1` serves `m` as 2x on itself and 10x on `edge-1`.
async fn path(by: &Authority) -> (Host, Host) {
    let folder = Folder::new();
    let (mut cam, mut edge) = (host("cam-1", &folder, by), host("edge-1", &folder, by));
    let first = part(&folder, 1, 0, (2.0, 0.0), Some(&edge));
    let last = part(&folder, 1, 1, (10.0, 0.0), None);
    cam.hold(called_by(first, "cam-1")).await;
    edge.hold(called_by(last, "cam-1")).await;
    cam.routes.apply(&[route_to(1, &[(1, &cam)])]).unwrap();
    (cam, edge)
}

/// A channel to `host`, dialled by the owner of `trust`.
async fn dialled(host: &Host, trust: &Trust) -> Channel {
    let target = Target::Agent {
        node: &host.hop.node,
        address: &host.hop.address,
    };
    connect(target, &Profile::REQUESTS, trust).await.unwrap()
}

/// The answers of `host` to a hop for its segment 1, and to a ping.
async fn told(channel: Channel) -> (Code, Code) {
    let mut client = HopClient::new(channel);
    let hop = client.forward(forward(1, "x1")).await;
    let ping = client.ping(PingRequest::default()).await;
    let code = |status: Option<tonic::Status>| status.map_or(Code::Ok, |s| s.code());
    (code(hop.err()), code(ping.err()))
}

#[tokio::test]
async fn a_request_goes_along_a_path_whose_hosts_know_each_other_and_its_client_needs_nothing() {
    let (cam, edge) = path(&authority()).await;
    let reply = cam.client().model_infer(request("a", &[1.0, 2.0])).await;
    assert_eq!(values(&reply.unwrap().into_inner()), [20.0, 40.0]);
    // A client of the other host is forwarded to the entry.
    edge.hear(&[super::testing::listed(&[(&cam, true)])]);
    let reply = edge.client().model_infer(request("b", &[1.0, 2.0])).await;
    assert_eq!(values(&reply.unwrap().into_inner()), [20.0, 40.0]);
}

#[tokio::test]
async fn a_hop_is_taken_from_the_host_before_alone_and_a_ping_from_every_agent() {
    let by = authority();
    let (_cam, edge) = path(&by).await;
    let as_node = |node| trust(TlsMode::Required, &by, node, &[&by]);
    let from_cam = dialled(&edge, &as_node("cam-1")).await;
    assert_eq!(told(from_cam).await, (Code::Ok, Code::Ok));
    let from_other = dialled(&edge, &as_node("cam-2")).await;
    assert_eq!(told(from_other).await, (Code::PermissionDenied, Code::Ok));
}

#[tokio::test]
async fn without_a_certificate_neither_hop_nor_ping_is_answered() {
    let by = authority();
    let (_cam, edge) = path(&by).await;
    let refused = (Code::Unauthenticated, Code::Unauthenticated);
    assert_eq!(told(edge.channel()).await, refused);
    // With TLS, but without a certificate.
    let nobody = Trust::new(TlsMode::Required);
    nobody.set(None, &[by.der().clone()]).unwrap();
    let target = Target::Agent {
        node: &edge.hop.node,
        address: &edge.hop.address,
    };
    let connected = connect_unknown(target, &nobody).await;
    assert_eq!(told(connected).await, refused);
}

#[tokio::test]
async fn of_a_hop_without_a_certificate_nothing_is_waited_for() {
    let (_cam, edge) = path(&authority()).await;
    // A message that is announced and never comes.
    let begun = framed(0, 1 << 20, b"");
    for method in [FORWARD, "/lamina.hop.v1.Hop/Ping"] {
        let sending = sent(edge.channel(), method, "identity", &begun, false);
        let code = timeout(Duration::from_secs(5), sending).await.unwrap();
        assert_eq!(code, Code::Unauthenticated, "{method}");
    }
}

#[tokio::test]
async fn a_host_of_a_foreign_authority_is_not_heard_and_not_asked() {
    let (by, foreign) = (authority(), authority());
    let (_cam, edge) = path(&by).await;
    // It trusts our authority, but shows its own certificate.
    let stranger = trust(TlsMode::Required, &foreign, "cam-1", &[&by]);
    let stranger = Hops::new(stranger);
    let heard = stranger.forward(&edge.hop, forward(1, "x1"), deadline());
    assert_eq!(heard.await.unwrap_err().code(), Code::Unavailable);
    let ours = trust(TlsMode::Required, &by, "cam-1", &[&foreign]);
    let ours = Hops::new(ours);
    let asked = ours.forward(&edge.hop, forward(1, "x1"), deadline());
    let asked = asked.await.unwrap_err();
    assert!(asked.to_string().contains("certificate"), "{asked}");
}

#[tokio::test]
async fn who_answers_at_the_address_of_another_host_gets_no_request() {
    let by = authority();
    let (_cam, edge) = path(&by).await;
    let meant = Hop {
        node: "edge-2".into(),
        address: edge.hop.address.clone(),
    };
    let hops = Hops::new(trust(TlsMode::Required, &by, "cam-1", &[&by]));
    let refused = hops.forward(&meant, forward(1, "x1"), deadline()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(
        refused.to_string().contains("edge-2.agents.lamina"),
        "{refused}"
    );
    // The intended host answers, on its own connection.
    hops.forward(&edge.hop, forward(1, "x1"), deadline())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_new_authority_takes_over_while_requests_go_on() {
    let (old, new) = (authority(), authority());
    let folder = Folder::new();
    let believed = trust(TlsMode::Required, &old, "edge-1", &[&old, &new]);
    let mut edge = Host::with_trust("edge-1", &folder, believed.clone());
    let slice = part(&folder, 1, 1, (10.0, 0.0), None);
    edge.hold(called_by(slice, "cam-1")).await;
    let ours = trust(TlsMode::Required, &old, "cam-1", &[&old, &new]);
    let hops = Hops::new(ours.clone());
    let ask = |hops: Hops| {
        let to = edge.hop.clone();
        async move { hops.forward(&to, forward(1, "x1"), deadline()).await }
    };
    ask(hops.clone()).await.unwrap();
    for (changed, node) in [(&believed, "edge-1"), (&ours, "cam-1")] {
        let own = credentials(&new, node);
        let both = [old.der().clone(), new.der().clone()];
        changed.set(Some(&own), &both).unwrap();
        // The open connection, and a new one.
        ask(hops.clone()).await.unwrap();
        ask(Hops::new(ours.clone())).await.unwrap();
    }
    for (changed, node) in [(&believed, "edge-1"), (&ours, "cam-1")] {
        let own = credentials(&new, node);
        changed.set(Some(&own), &[new.der().clone()]).unwrap();
    }
    ask(hops).await.unwrap();
    ask(Hops::new(ours)).await.unwrap();
    let stale = trust(TlsMode::Required, &old, "cam-1", &[&old, &new]);
    ask(Hops::new(stale)).await.unwrap_err();
}

#[tokio::test]
async fn before_there_is_a_certificate_nobody_is_dialled() {
    let by = authority();
    let (_cam, edge) = path(&by).await;
    let not_yet = Hops::new(Trust::new(TlsMode::Required));
    let refused = not_yet.forward(&edge.hop, forward(1, "x1"), deadline());
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("no certificate yet"), "{refused}");
}

#[tokio::test]
async fn while_a_cluster_is_changed_over_hosts_with_tls_and_without_serve_together() {
    let by = authority();
    let folder = Folder::new();
    let optional = |node| trust(TlsMode::Optional, &by, node, &[&by]);
    let mut with = Host::with_trust("edge-1", &folder, optional("edge-1"));
    let mut without = Host::start("edge-2", &folder);
    let slice = || called_by(part(&folder, 1, 1, (10.0, 0.0), None), "cam-1");
    with.hold(slice()).await;
    without.hold(slice()).await;
    let callers = [
        Hops::new(optional("cam-1")),
        Hops::default(),
        Hops::new(Trust::new(TlsMode::Optional)),
    ];
    for hops in callers {
        for host in [&with, &without] {
            hops.forward(&host.hop, forward(1, "x1"), deadline())
                .await
                .unwrap();
        }
    }
    // A certificate counts here too.
    let stranger = dialled(&with, &optional("cam-2")).await;
    assert_eq!(told(stranger).await, (Code::PermissionDenied, Code::Ok));
}
