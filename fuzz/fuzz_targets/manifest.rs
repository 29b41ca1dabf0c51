//! A manifest as operator and agents read it, whoever wrote it: what is valid stays valid
//! after writing and reading it. It is not equal to the last bit: serde_json
//! reads some numbers off by one (its feature `float_roundtrip` is off).
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
