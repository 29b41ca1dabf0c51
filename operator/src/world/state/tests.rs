use super::*;
use lamina_proto::control::{LinkSamples, ModelRequests, RequestStats};

fn at(second: u64) -> Duration {
    Duration::from_secs(second)
}

fn identity(node: &str) -> Identity {
    Identity {
        node: node.to_owned(),
        version: "1".into(),
        address: format!("{node}:8001"),
        started_unix_ms: 0,
    }
}

fn known(hosts: &[&str]) -> BTreeSet<String> {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

fn links<'a>(peers: impl IntoIterator<Item = &'a str>) -> FromAgent {
    let samples = peers.into_iter().map(|peer| LinkSample {
        peer: peer.to_owned(),
        rtt_seconds: 0.01,
        bytes_per_second: 1e6,
        bytes: 1 << 20,
        ..LinkSample::default()
    });
    FromAgent::Links(LinkSamples {
        samples: samples.collect(),
    })
}

/// The size of everything that could grow.
fn held(state: &State, now: Duration) -> usize {
    state.nodes.names().count()
        + state.links.hosts().count()
        + state.links.table(now).len()
        + state.timings.totals().len()
        + state.prepares.all().len()
        + state.peers.len()
        + state.strange.len()
}

#[test]
fn peers_that_are_no_hosts_are_not_taken_in() {
    let mut state = State::default();
    state.opened(identity("a"), at(0));
    state.set_known(known(&["a", "b"]));
    let made_up: Vec<String> = (0..100_000).map(|n| format!("x{n}")).collect();
    let said = made_up.iter().map(String::as_str).chain(["", "a", "b"]);
    let effects = state.heard("a", links(said), at(1));
    assert_eq!(effects.events.len(), 2, "b, there and back");
    assert_eq!(state.links.hosts().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut state = State::default();
    state.set_known(known(&["a", "b"]));
    let empty = held(&state, at(0));
    for round in 0..20_u64 {
        let now = at(round);
        let host = format!("h{round}");
        let uid = format!("p{round}");
        state.retain_placements(&BTreeMap::from([(uid.clone(), host.clone())]));
        state.set_known(known(&["a", "b", &host]));
        state.opened(identity(&host), now);
        state.heard(&host, links(["a", "b"]), now);
        let request = ModelRequests {
            placement_uid: uid,
            answered: 1,
            ..ModelRequests::default()
        };
        let requests = RequestStats {
            models: vec![request],
        };
        state.heard(&host, FromAgent::Requests(requests), now);
        assert_eq!(state.timings.totals().len(), 1);
        let job = PrepareRequest {
            job: format!("j{round}"),
            node: host.clone(),
            uri: "http://files/m.pt".into(),
            sha256: String::new(),
            inputs_json: "[]".into(),
            secret: None,
            samples: None,
        };
        state.start_prepare(job).unwrap();
        let peer = ProbePeer {
            node: "a".into(),
            address: "a:8001".into(),
            every_ms: 1000,
        };
        state.set_peers(&host, vec![peer]);
        state.closed(&host, now);
        state.tick(now + Duration::from_secs(5));
        state.forget_host(&host);
        state.retain_placements(&BTreeMap::new());
    }
    // Of the hosts that stay, only their places in the table remain.
    assert_eq!(held(&state, at(30)), empty + 2);
}

#[test]
fn silent_hosts_that_nobody_lists_go_by_themselves() {
    let mut state = State::default();
    state.set_known(known(&["a", "b"]));
    for host in ["a", "x"] {
        state.opened(identity(host), at(0));
        state.heard(host, links(["b"]), at(0));
        state.closed(host, at(0));
    }
    for second in 1..500 {
        state.tick(at(second));
    }
    assert!(state.nodes.contains("x"), "it may come back");
    for second in 500..700 {
        state.tick(at(second));
    }
    assert!(!state.nodes.contains("x") && state.nodes.contains("a"));
    assert_eq!(state.links.hosts().collect::<Vec<_>>(), ["a", "b"]);
    assert!(state.strange.is_empty());
}

#[test]
fn a_host_that_is_gone_but_still_speaks_is_not_cut_off() {
    let mut state = State::default();
    state.set_known(known(&["a", "b"]));
    state.opened(identity("a"), at(0));
    state.heard("a", links(["b"]), at(0));
    state.forget_host("a");
    assert!(state.nodes.is_alive("a"));
    assert_eq!(state.links.table(at(0)).len(), 0);
}

#[test]
fn peers_are_told_with_their_pace_and_only_when_they_change() {
    let mut state = State::default();
    let peer = |every_ms| ProbePeer {
        node: "b".into(),
        address: "b:8001".into(),
        every_ms,
    };
    let told = state.set_peers("a", vec![peer(1000)]);
    assert!(matches!(&told.messages[..],
        [(_, ToAgent::Peers(list))] if list.peers[0].every_ms == 1000));
    assert_eq!(state.set_peers("a", vec![peer(1000)]), Effects::default());
    assert_eq!(state.set_peers("a", vec![peer(2000)]).messages.len(), 1);
}

#[test]
fn every_agent_is_told_the_keys_and_again_where_they_change() {
    let mut state = State::default();
    state.opened(identity("a"), at(0));
    let key = |namespace: &str| lamina_proto::control::ApiKey {
        namespace: namespace.to_owned(),
        ..Default::default()
    };
    let told = state.set_keys(vec![key("lab")]);
    assert!(matches!(&told.messages[..],
        [(node, ToAgent::ApiKeys(all))] if node == "a" && all.keys == [key("lab")]));
    assert_eq!(state.set_keys(vec![key("lab")]), Effects::default());
    let told = state.opened(identity("b"), at(1));
    assert!(told.messages.iter().any(|(node, message)| node == "b"
        && matches!(message, ToAgent::ApiKeys(all) if all.keys.len() == 1)));
    // An empty list differs from an unknown one.
    let told = state.set_keys(Vec::new());
    assert_eq!(told.messages.len(), 2);
    // If nothing reads keys, agents keep theirs.
    let told = State::default().opened(identity("a"), at(0));
    assert!(
        told.messages
            .iter()
            .all(|(_, m)| !matches!(m, ToAgent::ApiKeys(_)))
    );
}
