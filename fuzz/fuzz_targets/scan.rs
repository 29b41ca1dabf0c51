//! Whole archives: no panic, no hang, no more memory than the limits allow.
#![no_main]

use lamina_sandbox::scan::{ScanLimits, scan};
use libfuzzer_sys::fuzz_target;
use std::io::Cursor;

fuzz_target!(|bytes: &[u8]| {
    let _ = scan(Cursor::new(bytes), &ScanLimits::default());
});
