//! Processor share and memory limit of each host, by control groups of
//! either version.
//!
//! A process joins its group before it starts its program: `ip netns exec`
//! and a new mount namespace may hide the group's files afterwards.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Period of the processor quota. Short, so that a slow host is evenly slow and does not stall for
/// tens of milliseconds.
const PERIOD_US: u64 = 5_000;
/// The kernel refuses a quota below this.
const SMALLEST_QUOTA_US: u64 = 1_000;
/// The kernel accepts no longer period.
const LONGEST_PERIOD_US: u64 = 1_000_000;
/// The weight of one host relative to an ordinary process.
const WEIGHT_PER_HOST: u64 = 1_024;
/// How long killed processes may take to end.
const GONE: Duration = Duration::from_secs(5);

/// Why hosts cannot be limited.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither version is mounted with a processor controller.
    #[error("no control group file system with the cpu controller is mounted under /sys/fs/cgroup")]
    NotMounted,
    /// A file or folder could not be written.
    #[error(
        "cannot write {path}: the lab must be root and may not run in a container without control groups of its own"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// Processes survived the kill.
    #[error("processes in {0} did not end when killed")]
    Stuck(PathBuf),
}

/// Where the kernel keeps control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    /// One tree per controller.
    V1 {
        cpu: PathBuf,
        memory: Option<PathBuf>,
    },
    /// One tree for all.
    V2(PathBuf),
}

/// The control groups of one lab: one group per host below one for the lab.
#[derive(Debug)]
pub(crate) struct Cgroups {
    hierarchy: Hierarchy,
    lab: String,
}

impl Cgroups {
    /// Makes the lab's group, after killing leftovers of an earlier lab of this index.
    pub(crate) fn create(index: u8, hosts: usize) -> Result<Self, CgroupError> {
        let groups = Self::of(index)?;
        groups.remove_all()?;
        let weight = WEIGHT_PER_HOST * (hosts as u64 + 1);
        match &groups.hierarchy {
            Hierarchy::V1 { cpu, memory } => {
                let lab = make(&cpu.join(&groups.lab))?;
                write(&lab.join("cpu.shares"), &weight.to_string())?;
                if let Some(memory) = memory {
                    make(&memory.join(&groups.lab))?;
                }
            }
            Hierarchy::V2(root) => {
                write(&root.join("cgroup.subtree_control"), "+cpu +memory")?;
                let lab = make(&root.join(&groups.lab))?;
                write(&lab.join("cgroup.subtree_control"), "+cpu +memory")?;
                // Weights range from 1 to 10 000, with 100 as the default.
                let weight = (weight * 100 / WEIGHT_PER_HOST).min(10_000);
                write(&lab.join("cpu.weight"), &weight.to_string())?;
            }
        }
        Ok(groups)
    }

    /// Kills the processes in the groups of a lab of this index and removes the groups.
    pub(crate) fn remove_leftovers(index: u8) -> Result<(), CgroupError> {
        Self::of(index)?.remove_all()
    }

    fn of(index: u8) -> Result<Self, CgroupError> {
        Ok(Self {
            hierarchy: Hierarchy::detect()?,
            lab: format!("lamina{index}"),
        })
    }

    /// Makes a host's group. Without limits it only groups processes.
    pub(crate) fn add_host(
        &self,
        host: &str,
        cpu_millis: Option<u64>,
        memory_bytes: Option<u64>,
    ) -> Result<(), CgroupError> {
        match &self.hierarchy {
            Hierarchy::V1 { cpu, memory } => {
                let group = make(&cpu.join(&self.lab).join(host))?;
                if let Some(millis) = cpu_millis {
                    let (quota, period) = quota(millis);
                    write(&group.join("cpu.cfs_period_us"), &period.to_string())?;
                    write(&group.join("cpu.cfs_quota_us"), &quota.to_string())?;
                }
                if let Some(memory) = memory {
                    let group = make(&memory.join(&self.lab).join(host))?;
                    if let Some(bytes) = memory_bytes {
                        write(&group.join("memory.limit_in_bytes"), &bytes.to_string())?;
                    }
                }
            }
            Hierarchy::V2(root) => {
                let group = make(&root.join(&self.lab).join(host))?;
                if let Some(millis) = cpu_millis {
                    let (quota, period) = quota(millis);
                    write(&group.join("cpu.max"), &format!("{quota} {period}"))?;
                }
                if let Some(bytes) = memory_bytes {
                    write(&group.join("memory.max"), &bytes.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// The files into which a process writes its id to join a host.
    pub(crate) fn join_files(&self, host: &str) -> Vec<PathBuf> {
        self.trees()
            .into_iter()
            .map(|tree| tree.join(&self.lab).join(host).join("cgroup.procs"))
            .collect()
    }

    /// Kills every process of the lab and removes its groups.
    pub(crate) fn remove_all(&self) -> Result<(), CgroupError> {
        for tree in self.trees() {
            let lab = tree.join(&self.lab);
            let Ok(entries) = fs::read_dir(&lab) else {
                continue;
            };
            for host in entries.flatten().map(|entry| entry.path()) {
                if host.is_dir() {
                    remove(&host)?;
                }
            }
            remove(&lab)?;
        }
        Ok(())
    }

    fn trees(&self) -> Vec<&Path> {
        match &self.hierarchy {
            Hierarchy::V1 { cpu, memory } => std::iter::once(cpu.as_path())
                .chain(memory.as_deref())
                .collect(),
            Hierarchy::V2(root) => vec![root],
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let Err(error) = self.remove_all() {
            tracing::warn!(%error, "control groups are left over, the next lab removes them");
        }
    }
}

impl Hierarchy {
    fn detect() -> Result<Self, CgroupError> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let controllers_of =
            |root: &Path| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        Self::parse(
            &read("/proc/self/mounts"),
            &read("/proc/self/cgroup"),
            controllers_of,
        )
        .ok_or(CgroupError::NotMounted)
    }

    /// Reads the kernel's tables. In version 1 the lab's groups are in this process's own group, so
    /// that a limit on the whole run still holds; version 2 allows no groups beside processes, so
    /// there they are at the root.
    fn parse(mounts: &str, own: &str, controllers_of: impl Fn(&Path) -> String) -> Option<Self> {
        let v1 = |controller: &str| {
            let mount = mounts.lines().find_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
                let has = options.split(',').any(|option| option == controller);
                (kind == "cgroup" && has).then(|| PathBuf::from(path))
            })?;
            let own = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let has = controllers.split(',').any(|name| name == controller);
                has.then(|| path.trim_start_matches('/'))
            });
            let nested = mount.join(own.unwrap_or_default());
            Some(if nested.is_dir() { nested } else { mount })
        };
        if let Some(cpu) = v1("cpu") {
            return Some(Self::V1 {
                cpu,
                memory: v1("memory"),
            });
        }
        mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (path, kind) = (fields.next()?, fields.next()?);
                (kind == "cgroup2").then(|| PathBuf::from(path))
            })
            .find(|root| {
                controllers_of(root)
                    .split_whitespace()
                    .any(|name| name == "cpu")
            })
            .map(Self::V2)
    }
}

/// Quota and period in microseconds for a share of the processors.
fn quota(cpu_millis: u64) -> (u64, u64) {
    let millis = cpu_millis.max(1);
    // A small share gets a longer period, because the quota has a minimum.
    let period = PERIOD_US.max((SMALLEST_QUOTA_US * 1000).div_ceil(millis));
    let period = period.min(LONGEST_PERIOD_US);
    ((period * millis / 1000).max(SMALLEST_QUOTA_US), period)
}

fn make(path: &Path) -> Result<PathBuf, CgroupError> {
    fs::create_dir_all(path)
        .map(|()| path.to_owned())
        .map_err(|source| CgroupError::Write {
            path: path.to_owned(),
            source,
        })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Kills the members once.
fn kill_members(procs: &Path) {
    let members = fs::read_to_string(procs).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        // The process may have ended already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Ends all members of a group without subgroups and removes it.
fn remove(group: &Path) -> Result<(), CgroupError> {
    let begin = Instant::now();
    loop {
        kill_members(&group.join("cgroup.procs"));
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Busy: members are still ending.
            Err(_) if begin.elapsed() < GONE => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => return Err(CgroupError::Stuck(group.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::IndexLock;
    use std::process::Command;

    #[test]
    fn what_a_killed_lab_left_running_is_ended() {
        let lock = IndexLock::first_free().unwrap();
        let groups = Cgroups::create(lock.index(), 1).unwrap();
        groups.add_host("cam-1", Some(100), Some(64 << 20)).unwrap();
        let mut words = crate::launch::enter(&groups.join_files("cam-1"), None);
        words.extend(["sleep".to_owned(), "1000".to_owned()]);
        let mut child = Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
        let procs = &groups.join_files("cam-1")[0];
        let begin = Instant::now();
        while fs::read_to_string(procs).unwrap().trim() != child.id().to_string() {
            assert!(begin.elapsed() < GONE, "the process did not join");
            std::thread::sleep(Duration::from_millis(10));
        }
        // A killed run does not drop anything.
        std::mem::forget(groups);
        Cgroups::remove_leftovers(lock.index()).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn shares_have_short_periods_as_far_as_the_kernel_allows() {
        assert_eq!(quota(1000), (5_000, 5_000));
        assert_eq!(quota(250), (1_250, 5_000));
        assert_eq!(quota(4000), (20_000, 5_000));
        assert_eq!(quota(100), (1_000, 10_000));
        assert_eq!(quota(0), (1_000, 1_000_000));
    }

    #[test]
    fn version_one_is_found_by_its_controllers() {
        let mounts = "cgroup /nowhere/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n\
                      cgroup /nowhere/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /nowhere/unified cgroup2 rw 0 0\n";
        let own = "4:memory:/one/two\n1:cpu,cpuacct:/\n0::/\n";
        assert_eq!(
            Hierarchy::parse(mounts, own, |_| String::new()),
            Some(Hierarchy::V1 {
                cpu: "/nowhere/cpu".into(),
                memory: Some("/nowhere/memory".into()),
            })
        );
    }

    #[test]
    fn version_two_needs_the_processor_controller() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(
            Hierarchy::parse(mounts, "0::/", |_| "cpuset cpu memory\n".to_owned()),
            Some(Hierarchy::V2("/sys/fs/cgroup".into()))
        );
        assert_eq!(
            Hierarchy::parse(mounts, "0::/", |_| "hugetlb\n".to_owned()),
            None
        );
    }
}
