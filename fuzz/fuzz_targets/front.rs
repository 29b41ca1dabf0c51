//! A client's message over gRPC: what the guard admits is decoded within its estimate, and read as
//! a model's input.
#![no_main]

use lamina_node_agent::fuzzing::{inflate, read_inputs, weigh_infer};
use lamina_proto::inference::ModelInferRequest;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    if let Some((first, packed)) = bytes.split_first() {
        let _ = inflate(packed, first & 1 == 0, usize::from(first >> 1));
    }
    let Some((weighed, owner)) = weigh_infer(bytes) else {
        return;
    };
    let Ok(request) = ModelInferRequest::decode(bytes) else {
        return;
    };
    if request.model_name.len() <= 512 {
        assert_eq!(owner.unwrap_or_default(), request.model_name);
    }
    let raw: usize = request.raw_input_contents.iter().map(|raw| raw.len()).sum();
    assert!(raw as u64 <= weighed);
    read_inputs(&request);
});
