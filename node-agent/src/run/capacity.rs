//! The capacity of this host: measured once and stored, so that a restarted agent serves at
//! once instead of measuring under its own load.

use crate::{measure, worker};
use lamina_crds::compute_node::Capacity;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Wall time of the reference benchmark.
const BUDGET: Duration = Duration::from_secs(2);
const FILE_NAME: &str = "capacity.json";

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Another version may measure otherwise.
    version: String,
    capacity: Capacity,
}

/// The capacity of this host. Takes some seconds where it must be measured.
///
/// # Errors
/// The worker at `program` does not run.
pub(super) async fn capacity(cache_dir: &Path, program: &Path) -> io::Result<Capacity> {
    let path = cache_dir.join(FILE_NAME);
    if let Some(known) = read(&path) {
        return Ok(known);
    }
    let capacity = measure::capacity(worker::benchmark(program, BUDGET).await?);
    if let Err(error) = remember(&path, capacity) {
        tracing::warn!(%error, "the measured speed is not remembered");
    }
    Ok(capacity)
}

fn remember(path: &Path, capacity: Capacity) -> io::Result<()> {
    let remembered = Remembered {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity,
    };
    std::fs::write(path, serde_json::to_vec(&remembered)?)
}

fn read(path: &Path) -> Option<Capacity> {
    let text = std::fs::read(path).ok()?;
    let remembered: Remembered = serde_json::from_slice(&text).ok()?;
    let is_sound = remembered.version == env!("CARGO_PKG_VERSION")
        && remembered.capacity.gflops.is_finite()
        && remembered.capacity.gflops > 0.0;
    is_sound.then_some(remembered.capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_measured_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(read(&path), None);
        let first = measure::capacity(3.25);
        assert!(first.memory_bytes > 0);
        remember(&path, first).unwrap();
        assert_eq!(read(&path), Some(first));
        remember(&path, measure::capacity(0.0)).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, b"{}").unwrap();
        assert_eq!(read(&path), None);
    }
}
