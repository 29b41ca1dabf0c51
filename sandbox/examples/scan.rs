//! Prints for each file whether it may be opened: `cargo run -p lamina-sandbox
//! --example scan FILE…`.

use lamina_sandbox::scan::{ScanLimits, scan_file};
use std::time::Instant;

fn main() {
    for file in std::env::args().skip(1) {
        let begin = Instant::now();
        let verdict = scan_file(file.as_ref(), &ScanLimits::default());
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        match verdict {
            Ok(scanned) => println!("{file}: ok, {scanned:?}, {ms:.1} ms"),
            Err(error) => println!("{file}: refused, {error}, {ms:.1} ms"),
        }
    }
}
