//! The body of a request over HTTP, with its length of JSON in the first two bytes, if any.
#![no_main]

use bytes::Bytes;
use lamina_node_agent::fuzzing::read_body;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [a, b, body @ ..] = bytes else { return };
    let body = Bytes::copy_from_slice(body);
    read_body(&body, Some(usize::from(u16::from_be_bytes([*a, *b]))));
    read_body(&body, None);
});
