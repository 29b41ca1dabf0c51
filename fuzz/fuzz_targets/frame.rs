//! Messages to the agent from a worker, which a model may have taken over.
#![no_main]

use lamina_worker_link::frame::{body_bytes, decode};
use lamina_worker_link::message::{Greeting, LoadReply, RunReply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk() else {
        return;
    };
    let _ = body_bytes(*header);
    let _ = decode::<Greeting>(body);
    let _ = decode::<LoadReply>(body);
    let _ = decode::<RunReply>(body);
});
