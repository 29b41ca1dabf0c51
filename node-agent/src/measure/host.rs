use crate::worker::Lanes;
use lamina_crds::compute_node::Capacity;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Share of the machine's processors that this process may use when no control
/// group limits it, in thousandths of a processor.
fn all_cpu_millis() -> u64 {
    std::thread::available_parallelism().map_or(1000, |n| n.get() as u64 * 1000)
}

/// The speed of this host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Speed {
    /// How forwards run.
    way: Lanes,
    /// GFLOP/s of one forward alone.
    alone: f64,
    /// GFLOP/s of all lanes together.
    together: f64,
}

impl Speed {
    /// Not measured.
    pub(crate) const NONE: Self = Self::of(
        Lanes {
            lanes: 1,
            threads: 1,
        },
        0.0,
        0.0,
    );

    /// Forwards that run in `way` compute `alone` GFLOP/s, and `together` if each lane has one.
    pub(crate) const fn of(way: Lanes, alone: f64, together: f64) -> Self {
        Self {
            way,
            alone,
            together,
        }
    }

    /// Number of concurrent forwards without mutual slowdown that would compute the same.
    fn concurrency(&self) -> u32 {
        if self.alone <= 0.0 {
            return 1;
        }
        let forwards = (self.together / self.alone).round();
        // Between one and the lanes.
        forwards.clamp(1.0, f64::from(self.way.lanes.max(1))) as u32
    }
}

/// This host, with the measured `speed`.
pub(crate) fn capacity(speed: Speed) -> Capacity {
    Capacity {
        gflops: speed.alone,
        lanes: speed.way.lanes,
        threads: speed.way.threads,
        concurrency: speed.concurrency(),
        cpu_millis: cpu_quota_millis().unwrap_or_else(all_cpu_millis),
        memory_bytes: memory_limit_bytes().unwrap_or_else(|| meminfo_bytes("MemTotal:")),
    }
}

/// Memory that this process may still take, in bytes.
pub fn memory_free_bytes() -> u64 {
    let free = meminfo_bytes("MemAvailable:");
    match (memory_limit_bytes(), memory_used_bytes()) {
        (Some(limit), Some(used)) => free.min(limit.saturating_sub(used)),
        _ => free,
    }
}

/// Folders of this process's control groups for `controller`: version 1 with its
/// own hierarchy, then version 2.
pub(super) fn groups(controller: &str) -> Vec<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups_in(&own, controller)
}

fn groups_in(proc_self_cgroup: &str, controller: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut found = Vec::new();
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            // In a container the group is mounted at the root.
            found.extend([root.join(path), root.to_owned()]);
        } else if controllers.split(',').any(|c| c == controller) {
            found.extend([root.join(controller).join(path), root.join(controller)]);
        }
    }
    found
}

fn read_number(path: &Path) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The processor quota, in thousandths of a processor; `None` without a limit.
fn cpu_quota_millis() -> Option<u64> {
    groups("cpu").iter().find_map(|group| {
        let v2 = fs::read_to_string(group.join("cpu.max")).ok();
        let (quota, period) = match v2 {
            Some(text) => parse_cpu_max(&text)?,
            None => (
                read_number(&group.join("cpu.cfs_quota_us"))?,
                read_number(&group.join("cpu.cfs_period_us"))?,
            ),
        };
        millis(quota, period)
    })
}

fn parse_cpu_max(text: &str) -> Option<(i64, i64)> {
    let mut words = text.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn millis(quota_us: i64, period_us: i64) -> Option<u64> {
    if quota_us <= 0 || period_us <= 0 {
        return None;
    }
    u64::try_from(quota_us.saturating_mul(1000) / period_us).ok()
}

fn memory_limit_bytes() -> Option<u64> {
    let total = meminfo_bytes("MemTotal:");
    groups("memory")
        .iter()
        .flat_map(|g| [g.join("memory.max"), g.join("memory.limit_in_bytes")])
        .find_map(|file| u64::try_from(read_number(&file)?).ok())
        // Without a limit version 1 shows a huge number.
        .filter(|&limit| limit < total)
}

/// The working set, as the kubelet counts it: without pages of files that the kernel drops when
/// memory is wanted. Reading a model fills the whole limit with those.
fn memory_used_bytes() -> Option<u64> {
    let groups = groups("memory");
    let used = |group: &PathBuf| working_set_bytes(group);
    groups.iter().find_map(used)
}

/// Of the group in `folder`, of version 2 or 1; both with the groups in it.
fn working_set_bytes(folder: &Path) -> Option<u64> {
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let names = [
        ("memory.current", "inactive_file "),
        ("memory.usage_in_bytes", "total_inactive_file "),
    ];
    names.into_iter().find_map(|(file, field)| {
        let used = u64::try_from(read_number(&folder.join(file))?).ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix(field));
        let cached = line.and_then(|text| text.trim().parse().ok());
        Some(used.saturating_sub(cached.unwrap_or(0)))
    })
}

fn meminfo_bytes(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse_meminfo(&text, field).unwrap_or(0)
}

fn parse_meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// CPU load of this process and its workers relative to its share.
#[derive(Debug)]
pub struct CpuMeter {
    share: f64,
    last: Option<(Instant, f64)>,
}

impl CpuMeter {
    /// A meter for a share of `cpu_millis` thousandths of a processor.
    pub fn new(cpu_millis: u64) -> Self {
        Self {
            share: (cpu_millis as f64 / 1000.0).max(1e-3),
            last: None,
        }
    }

    /// Load since the last call, 0 to 1.
    pub fn sample(&mut self) -> f64 {
        let now = Instant::now();
        let used = cpu_seconds().unwrap_or(0.0);
        let load = self.last.map_or(0.0, |(then, before)| {
            let wall = (now - then).as_secs_f64().max(1e-3);
            (used - before) / wall / self.share
        });
        self.last = Some((now, used));
        load.clamp(0.0, 1.0)
    }
}

/// Processor time of this process and its workers so far, in seconds.
fn cpu_seconds() -> Option<f64> {
    let own = ticks_of("self")?;
    let workers: u64 = children().iter().filter_map(|pid| ticks_of(pid)).sum();
    Some((own + workers) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn ticks_of(pid: &str) -> Option<u64> {
    parse_stat_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Running child processes; empty if the kernel does not report them.
fn children() -> Vec<String> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// User and system ticks of the process and of its ended children: from the 12th field after the
/// name, which may contain spaces and parentheses.
fn parse_stat_ticks(stat: &str) -> Option<u64> {
    let behind = &stat[stat.rfind(')')? + 1..];
    let fields = behind.split_whitespace().skip(11).take(4);
    fields.map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn quotas_of_both_versions_are_read() {
        assert_eq!(parse_cpu_max("50000 100000\n"), Some((50_000, 100_000)));
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(millis(500, 5000), Some(100));
        assert_eq!(millis(-1, 5000), None);
    }

    #[test]
    fn own_groups_are_found() {
        let v1 = "4:memory:/a/b\n3:cpu,cpuacct:/x\n0::/\n";
        assert_eq!(groups_in(v1, "cpu")[0], Path::new("/sys/fs/cgroup/cpu/x"));
        assert_eq!(
            groups_in(v1, "memory")[0],
            Path::new("/sys/fs/cgroup/memory/a/b")
        );
        let v2 = "0::/kubepods/pod1\n";
        assert_eq!(
            groups_in(v2, "cpu")[0],
            Path::new("/sys/fs/cgroup/kubepods/pod1")
        );
    }

    #[test]
    fn cached_files_are_not_taken_memory() {
        let of = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(folder.path().join(name), text).unwrap();
            }
            working_set_bytes(folder.path())
        };
        let stat = "anon 40\nfile 900\ninactive_file 700\nactive_file 100\n";
        let second = [("memory.current", "1000\n"), ("memory.stat", stat)];
        assert_eq!(of(&second), Some(300));
        let stat = "cache 900\ninactive_file 5\ntotal_inactive_file 700\n";
        let first = [("memory.usage_in_bytes", "1000\n"), ("memory.stat", stat)];
        assert_eq!(of(&first), Some(300));
        assert_eq!(of(&second[..1]), Some(1000));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn proc_files_are_parsed() {
        assert_eq!(
            parse_meminfo("MemTotal: 2 kB\nMemAvailable: 1 kB\n", "MemAvailable:"),
            Some(1024)
        );
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 0";
        assert_eq!(parse_stat_ticks(stat), Some(127));
    }

    #[test]
    fn a_busy_process_shows_load() {
        let mut meter = CpuMeter::new(1000);
        meter.sample();
        let end = Instant::now() + Duration::from_millis(200);
        let mut x = 0_u64;
        while Instant::now() < end {
            x = std::hint::black_box(x + 1);
        }
        assert!(meter.sample() > 0.05);
    }
}
