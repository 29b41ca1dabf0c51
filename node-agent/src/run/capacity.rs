//! The capacity of this host: measured once and stored, so that a restarted agent serves at
//! once instead of measuring under its own load.

use crate::worker::{self, Lanes};
use crate::{measure, measure::Speed};
use lamina_crds::compute_node::Capacity;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;
use std::time::Duration;

/// Wall time of the reference benchmark.
const BUDGET: Duration = Duration::from_secs(2);
const FILE_NAME: &str = "capacity.json";
/// Most concurrent forwards: each takes activations and a thread.
const MOST_LANES: u32 = 16;
/// Relative throughput at which a way is as good as the best; of those, the one with the fewest
/// lanes answers a single request soonest.
const GOOD: f64 = 0.9;

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// Another version may measure differently.
    version: String,
    capacity: Capacity,
}

/// The capacity of this host. Takes some seconds if it must be measured.
///
/// # Errors
/// The worker at `program` does not run.
pub(super) async fn capacity(cache_dir: &Path, program: &Path) -> io::Result<Capacity> {
    let path = cache_dir.join(FILE_NAME);
    let cpu_millis = measure::capacity(Speed::NONE).cpu_millis;
    // Another share of the processors changes everything.
    if let Some(known) = read(&path).filter(|known| known.cpu_millis == cpu_millis) {
        return Ok(known);
    }
    let capacity = measure::capacity(speed(program, cpu_millis).await?);
    if let Err(error) = remember(&path, capacity) {
        tracing::warn!(%error, "the measured speed is not remembered");
    }
    Ok(capacity)
}

/// Tries the ways to use all processors, then measures how much the forwards of the best one slow
/// each other.
async fn speed(program: &Path, cpu_millis: u64) -> io::Result<Speed> {
    let ways = ways(cpu_millis);
    let together = worker::benchmark(program, &ways, BUDGET).await?;
    let way = best(&ways, &together);
    if way.lanes == 1 {
        let gflops = together.first().copied().unwrap_or(0.0);
        return Ok(Speed::of(way, gflops, gflops));
    }
    // In the same run, under the same conditions.
    let ways = [Lanes { lanes: 1, ..way }, way];
    let speeds = worker::benchmark(program, &ways, BUDGET).await?;
    let of = |at: usize| speeds.get(at).copied().unwrap_or(0.0);
    Ok(Speed::of(way, of(0), of(1)))
}

/// The ways to divide this many thousandths of a processor: whole ones only, from one forward that
/// has them all to one for each.
fn ways(cpu_millis: u64) -> Vec<Lanes> {
    let processors = u32::try_from(cpu_millis / 1000).unwrap_or(u32::MAX).max(1);
    let doubled = std::iter::successors(Some(1_u32), |lanes| lanes.checked_mul(2));
    let most = processors.min(MOST_LANES);
    let lanes = doubled.take_while(|lanes| *lanes < most).chain([most]);
    let way = |lanes| Lanes {
        lanes,
        threads: processors / lanes,
    };
    lanes.map(way).collect()
}

/// The way to use, out of `ways` (fewest lanes first) with the throughput of each.
fn best(ways: &[Lanes], together: &[f64]) -> Lanes {
    let most = together.iter().copied().fold(0.0, f64::max);
    let mut all = ways.iter().zip(together);
    let good = all.find(|(_, speed)| **speed >= most * GOOD);
    good.map_or(
        Lanes {
            lanes: 1,
            threads: 1,
        },
        |(way, _)| *way,
    )
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
    let Capacity { gflops, lanes, .. } = remembered.capacity;
    let is_sound = remembered.version == env!("CARGO_PKG_VERSION")
        && gflops.is_finite()
        && gflops > 0.0
        // A file of an agent that always had one lane.
        && lanes > 0;
    is_sound.then_some(remembered.capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Lanes = Lanes {
        lanes: 1,
        threads: 1,
    };

    #[test]
    fn a_host_is_measured_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        assert_eq!(read(&path), None);
        let first = measure::capacity(Speed::of(ONE, 3.25, 3.25));
        assert!(first.memory_bytes > 0);
        remember(&path, first).unwrap();
        assert_eq!(read(&path), Some(first));
        remember(&path, measure::capacity(Speed::NONE)).unwrap();
        assert_eq!(read(&path), None);
        std::fs::write(&path, b"{}").unwrap();
        assert_eq!(read(&path), None);
    }

    fn told(cpu_millis: u64) -> Vec<(u32, u32)> {
        let ways = ways(cpu_millis).into_iter();
        ways.map(|way| (way.lanes, way.threads)).collect()
    }

    #[test]
    fn whole_processors_are_shared_out() {
        assert_eq!(told(225), [(1, 1)]);
        assert_eq!(told(1900), [(1, 1)]);
        assert_eq!(told(2000), [(1, 2), (2, 1)]);
        assert_eq!(told(6500), [(1, 6), (2, 3), (4, 1), (6, 1)]);
        let large = [(1, 64), (2, 32), (4, 16), (8, 8), (16, 4)];
        assert_eq!(told(64_000), large);
        assert_eq!(told(u64::MAX).len(), 5);
    }

    #[test]
    fn the_fewest_lanes_that_compute_nearly_all_are_taken() {
        let ways = ways(4000);
        let lanes = |speeds: [f64; 3]| best(&ways, &speeds).lanes;
        assert_eq!(lanes([10.0, 11.0, 11.0]), 1);
        assert_eq!(lanes([7.0, 10.0, 11.0]), 2);
        assert_eq!(lanes([5.0, 7.0, 11.0]), 4);
        assert_eq!(lanes([5.0, 4.0, 3.0]), 1);
        assert_eq!(lanes([0.0, 0.0, 0.0]), 1);
        assert_eq!(best(&ways, &[]), ONE);
    }

    #[test]
    fn forwards_that_slow_each_other_count_for_less() {
        let way = Lanes {
            lanes: 4,
            threads: 1,
        };
        let capacity = |alone, together| {
            let capacity = measure::capacity(Speed::of(way, alone, together));
            (capacity.concurrency, capacity.gflops)
        };
        assert_eq!(capacity(10.0, 39.0), (4, 10.0));
        assert_eq!(capacity(10.0, 24.0), (2, 10.0));
        assert_eq!(capacity(10.0, 5.0), (1, 10.0));
        assert_eq!(capacity(10.0, 900.0), (4, 10.0));
        assert_eq!(capacity(0.0, 0.0), (1, 0.0));
    }
}
