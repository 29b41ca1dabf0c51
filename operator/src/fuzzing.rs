//! Entry points for messages from agents, as used by `fuzz/`: built only with the feature `fuzzing`.

use crate::world::{Identity, World};
use lamina_proto::control::AgentMessage;
use std::collections::BTreeMap;

/// Two hosts that know each other, one of which sends `messages` in turn.
pub fn hear_agent(messages: impl IntoIterator<Item = AgentMessage>) {
    let world = World::new();
    let host = |node: &str| Identity {
        node: node.to_owned(),
        version: "0.1.0".to_owned(),
        address: "10.0.0.7:8001".to_owned(),
        started_unix_ms: 0,
    };
    world.set_known(["a", "b"].map(str::to_owned));
    // The first of them is an entry, of a name that is soon found.
    world.retain_placements(&BTreeMap::from([(String::new(), "a".to_owned())]));
    let (session, _inbox) = world.open_session(host("a"));
    let (_other, _also) = world.open_session(host("b"));
    for message in messages {
        if let Some(known) = message.message {
            session.heard(known);
        }
    }
    // The result can be read.
    let _ = world.requests();
}
