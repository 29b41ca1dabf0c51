//! Code and pickles without the archive, whose checksums would stop almost
//! every input.
#![no_main]

use lamina_sandbox::scan::{check_code, check_pickle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = check_code(bytes);
    let _ = check_pickle(bytes);
});
