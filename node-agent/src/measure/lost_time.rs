//! CPU time that this process was denied: a host short of CPU sends and receives late, and
//! its links look slower than they are.

use super::host::groups;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Time that the calling thread was runnable but did not run, since its start, because of other
/// processes or its control group's quota. `None` if the system does not count it.
pub(super) fn thread_waited() -> Option<Duration> {
    parse_schedstat(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Time that the process's control group was throttled, and that the hypervisor took the machine's
/// processors, since they started.
pub(super) fn process_denied() -> Duration {
    throttled().unwrap_or_default() + stolen().unwrap_or_default()
}

fn throttled() -> Option<Duration> {
    static FILES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let files = FILES.get_or_init(|| groups("cpu").iter().map(|g| g.join("cpu.stat")).collect());
    let mut texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.find_map(|text| parse_throttled(&text))
}

fn stolen() -> Option<Duration> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks = parse_stolen_ticks(&text)?;
    let processors = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let second = rustix::param::clock_ticks_per_second() as f64;
    Some(Duration::from_secs_f64(ticks as f64 / second / processors))
}

/// Second number, in nanoseconds.
fn parse_schedstat(text: &str) -> Option<Duration> {
    let nanos = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Microseconds in version 2, nanoseconds in version 1.
fn parse_throttled(text: &str) -> Option<Duration> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let v2 = value("throttled_usec ").map(Duration::from_micros);
    v2.or_else(|| value("throttled_time ").map(Duration::from_nanos))
}

/// Eighth number of the line for all processors.
fn parse_stolen_ticks(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("cpu "))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_parsed() {
        let waited = parse_schedstat("1200 84677 3\n");
        assert_eq!(waited, Some(Duration::from_nanos(84_677)));
        let v2 = "usage_usec 5\nnr_throttled 2\nthrottled_usec 1500\n";
        assert_eq!(parse_throttled(v2), Some(Duration::from_micros(1500)));
        let v1 = "nr_periods 9\nnr_throttled 2\nthrottled_time 1500000\n";
        assert_eq!(parse_throttled(v1), Some(Duration::from_micros(1500)));
        assert_eq!(parse_throttled("usage_usec 5\n"), None);
        let stat = "cpu  209913 33035 38712 57790 1415 0 321 583 0 0\ncpu0 1 2\n";
        assert_eq!(parse_stolen_ticks(stat), Some(583));
        assert_eq!(parse_stolen_ticks("intr 1\n"), None);
    }

    #[test]
    fn a_thread_that_shares_its_processor_waits() {
        let Some(before) = thread_waited() else {
            return; // a system that does not count it
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        let threads = 4 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let end = std::time::Instant::now() + Duration::from_millis(300);
            while std::time::Instant::now() < end {
                std::hint::spin_loop();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let waited = thread_waited().map(|now| now.saturating_sub(before));
        assert!(waited > Some(Duration::from_millis(30)), "{waited:?}");
    }
}
