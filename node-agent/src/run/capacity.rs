//! What this host can do: measured once and remembered, so that an agent which
//! was restarted serves at once instead of measuring beside its own load.

use crate::measure::benchmark;
use lamina_crds::compute_node::Capacity;
use serde::{Deserialize, Serialize};
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

/// The capacity of this host. Blocks for some seconds where it must be measured.
pub(super) fn capacity(cache_dir: &Path) -> Capacity {
    let path = cache_dir.join(FILE_NAME);
    if let Some(known) = read(&path) {
        return known;
    }
    let capacity = benchmark(BUDGET);
    let remembered = Remembered {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity,
    };
    let written = serde_json::to_vec(&remembered)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&path, text));
    if let Err(error) = written {
        tracing::warn!(%error, "the measured speed is not remembered");
    }
    capacity
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
        let first = capacity(dir.path());
        assert!(first.gflops > 0.0 && first.memory_bytes > 0);
        let again = capacity(dir.path());
        // JSON keeps all digits but the last.
        assert!((again.gflops / first.gflops - 1.0).abs() < 1e-12);
        assert_eq!(again.memory_bytes, first.memory_bytes);
        std::fs::write(dir.path().join(FILE_NAME), b"{}").unwrap();
        assert_eq!(read(&dir.path().join(FILE_NAME)), None);
    }
}
