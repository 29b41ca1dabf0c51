//! A manifest as read by operator and agents, from any source: a valid one stays valid after
//! writing and reading it. Numbers may differ in the last bit: serde_json is not exact without its
//! feature `float_roundtrip`.
#![no_main]

use lamina_model::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = Manifest::from_json(bytes) else {
        return;
    };
    let text = serde_json::to_vec(&manifest).unwrap();
    let again = Manifest::from_json(&text).unwrap();
    assert_eq!(manifest.blocks.len(), again.blocks.len());
});
