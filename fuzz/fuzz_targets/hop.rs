//! Messages from another agent on a path: tensors, also encoded, and exits.
#![no_main]

use lamina_node_agent::fuzzing::{read_hop, weigh_forward};
use lamina_proto::hop::ForwardRequest;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let Some((weighed, owner)) = weigh_forward(bytes) else {
        return;
    };
    let Ok(request) = ForwardRequest::decode(bytes) else {
        return;
    };
    if request.placement_uid.len() <= 512 {
        assert_eq!(owner.unwrap_or_default(), request.placement_uid);
    }
    let data: usize = request.tensors.iter().map(|tensor| tensor.data.len()).sum();
    assert!(data as u64 <= weighed);
    // The decoded size of encoded tensors must have been estimated.
    assert!(read_hop(&request) <= weighed);
});
