//! Random small networks: the chain of blocks answers like the file itself, bit for bit, to
//! requests not used for preparing, or refuses them with a reason.

use crate::against_whole::compared;
use crate::common::*;
use std::path::Path;
use std::process::Command;

/// Networks of one run of the generator.
const CHUNK: u64 = 50;
/// Networks of an ordinary test run; `LAMINA_RANDOM_GRAPHS` sets another number.
const FEW: u64 = 100;

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().unwrap())
}

fn write(folder: &Path, first: u64, count: u64) {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/random_graphs.py"
    );
    let output = Command::new(std::env::var_os("LAMINA_PYTHON").unwrap())
        .args(["-W", "ignore", script])
        .arg(folder)
        .args([first.to_string(), count.to_string()])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

#[derive(Debug, Default)]
struct Count {
    cut: u64,
    whole: u64,
    unprepared: u64,
    answered: u64,
    refused: u64,
}

/// The error with network `number`, if any.
fn tried(folder: &Path, number: u64, count: &mut Count) -> Result<(), String> {
    let file = folder.join(format!("{number}.pt"));
    let prepared = match try_prepare(&file, &row()) {
        Ok(prepared) => prepared,
        Err(error) => {
            count.unprepared += 1;
            let text = error.to_string();
            let is_a_reason = text.contains("depends on the request");
            return if is_a_reason { Ok(()) } else { Err(text) };
        }
    };
    let blocks = prepared.manifest.blocks.len();
    *(if blocks > 1 {
        &mut count.cut
    } else {
        &mut count.whole
    }) += 1;
    let compared = compared(&prepared, &file, number)?;
    count.answered += compared.answered;
    count.refused += compared.refused;
    Ok(())
}

#[test]
fn random_networks_are_never_cut_into_something_else() {
    let (many, first) = (
        number("LAMINA_RANDOM_GRAPHS", FEW),
        number("LAMINA_RANDOM_SEED", 0),
    );
    let mut count = Count::default();
    let mut faults = Vec::new();
    for begin in (first..first + many).step_by(CHUNK as usize) {
        let folder = tempfile::tempdir().unwrap();
        let size = CHUNK.min(first + many - begin);
        write(folder.path(), begin, size);
        for number in begin..begin + size {
            if let Err(fault) = tried(folder.path(), number, &mut count) {
                let text = std::fs::read_to_string(folder.path().join(format!("{number}.py")));
                let text = text.unwrap();
                let forward = text.split("class Model").nth(1).unwrap_or_default();
                faults.push(format!("network {number}: {fault}\n{forward}"));
            }
        }
        println!("up to {}: {count:?}, {} faults", begin + size, faults.len());
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Otherwise the test would prove nothing: most are cut, and few answers are refused.
    assert!(count.cut * 3 > many, "{count:?}");
    assert!(count.refused * 50 < count.answered, "{count:?}");
}
