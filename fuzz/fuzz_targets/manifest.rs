//! A manifest as the agent reads it from a child: what is valid stays valid
//! after writing and reading it. It is not equal to the last bit: serde_json
//! reads some numbers off by one (its feature `float_roundtrip` is off).
#![no_main]

use lamina_model::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return;
    };
    if manifest.validate().is_ok() {
        let text = serde_json::to_vec(&manifest).unwrap();
        let again: Manifest = serde_json::from_slice(&text).unwrap();
        assert!(again.validate().is_ok());
        assert_eq!(manifest.blocks.len(), again.blocks.len());
    }
});
