//! The agent's own program needs no libtorch.
#![allow(clippy::unwrap_used, clippy::panic)] // a test as a whole

use std::process::Command;

/// The libraries that the dynamic linker would load.
#[test]
fn the_agent_loads_no_libtorch() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina-node-agent"));
    let output = command
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let libraries = String::from_utf8_lossy(&output.stdout);
    assert!(libraries.contains("libc.so"), "{libraries}");
    for foreign in ["torch", "libc10", "gomp", "stdc++"] {
        assert!(!libraries.contains(foreign), "{libraries}");
    }
}
