//! Random small networks: the chain of blocks answers like the file itself, bit for bit, to
//! requests not used for preparing, or refuses them with a reason; and so does the optimized slice,
//! up to rounding.
//!
//! `cargo xtask random` runs this test over many networks, in several processes.

use crate::against_whole::{Compared, compared};
use crate::common::*;
use lamina_torchscript::PrepareOptions;
use std::path::Path;
use std::process::Command;

/// Networks of one run of the generator, which takes seconds to start.
const CHUNK: u64 = 250;
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

/// What became of a network that could be prepared, or the reason why it could not.
enum Outcome {
    Blocks(usize, Compared),
    Unprepared(String),
}

/// Prepares network `number` and compares its answers.
fn tried(folder: &Path, number: u64) -> Result<Outcome, String> {
    let file = folder.join(format!("{number}.pt"));
    // How long its blocks take does not matter here, and measuring it takes longer than the rest.
    let unmeasured = PrepareOptions {
        timing_runs: 0,
        ..options(&row())
    };
    let prepared = match prepare_with(&file, &unmeasured) {
        Ok(prepared) => prepared,
        Err(error) => {
            let text = error.to_string();
            return match text.contains("depends on the request") {
                true => Ok(Outcome::Unprepared(text)),
                false => Err(text),
            };
        }
    };
    let compared = compared(&prepared, &file, number)?;
    Ok(Outcome::Blocks(prepared.manifest.blocks.len(), compared))
}

/// `cargo xtask random` reads the printed lines: the first tells which network ended the process,
/// if one does.
#[test]
fn random_networks_are_never_cut_into_something_else() {
    let (many, first) = (
        number("LAMINA_RANDOM_GRAPHS", FEW),
        number("LAMINA_RANDOM_SEED", 0),
    );
    let (mut cut, mut all) = (0, Compared::default());
    let mut faults = Vec::new();
    for begin in (first..first + many).step_by(CHUNK as usize) {
        let folder = tempfile::tempdir().unwrap();
        let size = CHUNK.min(first + many - begin);
        write(folder.path(), begin, size);
        for number in begin..begin + size {
            println!("network {number} begins");
            match tried(folder.path(), number) {
                Ok(Outcome::Blocks(blocks, compared)) => {
                    let Compared { answered, refused } = compared;
                    println!(
                        "network {number} blocks {blocks} answered {answered} refused {refused}"
                    );
                    cut += u64::from(blocks > 1);
                    all.answered += answered;
                    all.refused += refused;
                }
                Ok(Outcome::Unprepared(reason)) => {
                    println!("network {number} unprepared {reason:?}");
                }
                Err(fault) => {
                    println!("network {number} wrong {fault:?}");
                    let text = std::fs::read_to_string(folder.path().join(format!("{number}.py")));
                    let text = text.unwrap();
                    let forward = text.split("class Model").nth(1).unwrap_or_default();
                    faults.push(format!("network {number}: {fault}\n{forward}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // Otherwise the test would prove nothing: most are cut, and few answers are refused.
    if many >= FEW {
        assert!(cut * 3 > many, "{cut} cut");
        assert!(all.refused * 50 < all.answered, "{all:?}");
    }
}
