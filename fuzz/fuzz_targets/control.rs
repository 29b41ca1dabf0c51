//! Both directions of the session between agent and operator: a sequence of messages, each with its
//! length before it.
#![no_main]

use lamina_node_agent::fuzzing::hear_operator;
use lamina_operator::fuzzing::hear_agent;
use lamina_proto::control::{AgentMessage, OperatorMessage};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fn messages<M: Message + Default>(mut bytes: &[u8]) -> Vec<M> {
    let mut read = Vec::new();
    while let Ok(message) = M::decode_length_delimited(&mut bytes) {
        read.push(message);
        if bytes.is_empty() {
            break;
        }
    }
    read
}

fuzz_target!(|bytes: &[u8]| {
    hear_agent(messages::<AgentMessage>(bytes));
    messages::<OperatorMessage>(bytes)
        .into_iter()
        .for_each(hear_operator);
});
