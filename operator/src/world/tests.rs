use super::*;
use lamina_proto::control::operator_message::Message as ToAgent;

fn identity(node: &str) -> Identity {
    Identity {
        node: node.to_owned(),
        version: "1".into(),
        address: format!("{node}:8001"),
        started_unix_ms: 0,
    }
}

fn pair(a: &str, b: &str) -> BTreeSet<(String, String)> {
    BTreeSet::from([(a.to_owned(), b.to_owned())])
}

#[tokio::test]
async fn agents_are_told_whom_to_measure_and_how_often_once() {
    let world = World::new();
    let (_cam, mut told) = world.open_session(identity("cam-1"));
    let (_edge, _) = world.open_session(identity("edge-1"));
    // Its agent is connected, but not listed.
    let (_other, _) = world.open_session(identity("other"));
    let hosts = BTreeMap::from([
        ("cam-1".to_owned(), Tier::Device),
        ("edge-1".to_owned(), Tier::Edge),
        ("gone".to_owned(), Tier::Edge),
    ]);
    let (paths, none) = (pair("cam-1", "edge-1"), BTreeSet::new());
    for _ in 0..3 {
        world.set_interest(&hosts, &paths, &none, &BTreeSet::new());
    }
    let mut peers = Vec::new();
    while let Ok(message) = told.try_recv() {
        if let Some(ToAgent::Peers(list)) = message.message {
            peers.push(list.peers);
        }
    }
    let [peers] = &peers[..] else {
        panic!("{peers:?}");
    };
    let [peer] = &peers[..] else {
        panic!("{peers:?}");
    };
    assert_eq!((peer.node.as_str(), peer.every_ms), ("edge-1", 1000));
    assert_eq!(peer.address, "edge-1:8001");
    assert_eq!(world.coordinates_error(), None);
}
