//! The control groups of the kubelets' pods. Kubelets create groups below their own and leave them
//! behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::files::CGROUP;

const ROOT: &str = "/sys/fs/cgroup";

/// Creates the group of a node in every tree, empty: a freshly booted machine has no groups of dead
/// containers, which kubelet would inspect at length.
pub(super) fn create(node: &str) -> io::Result<()> {
    for tree in trees()? {
        let ours = tree.join(CGROUP);
        let group = ours.join(node);
        remove_below(&group);
        fs::create_dir_all(&group)?;
        // In version 1 a new group has no processors.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let Ok(all) = fs::read_to_string(tree.join(file)) else {
                continue;
            };
            for group in [&ours, &group] {
                let file = group.join(file);
                if file.exists() {
                    fs::write(file, all.trim())?;
                }
            }
        }
    }
    Ok(())
}

/// Creates a group for programs beside the nodes; returns the files that take a process id.
pub(super) fn control() -> io::Result<Vec<PathBuf>> {
    let Some(tree) = trees()?.into_iter().next() else {
        return Ok(Vec::new());
    };
    let group = tree.join(CGROUP).join("control");
    fs::create_dir_all(&group)?;
    Ok(vec![group.join("cgroup.procs")])
}

/// Kills the processes in the groups of a cluster and removes the groups.
pub(super) fn remove() {
    // Some runtimes use both versions.
    let unified = Path::new(ROOT).join("unified");
    for tree in trees().unwrap_or_default().into_iter().chain([unified]) {
        let group = tree.join(CGROUP);
        end(&group.join("control"));
        remove_below(&group);
    }
}

/// The roots of the groups: one folder per tree of version 1, or the one of version 2.
fn trees() -> io::Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut trees = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        // Names such as `cpu,cpuacct` come with symlinks for their parts.
        let is_tree = path.join("cgroup.procs").exists() && !path.is_symlink();
        if is_tree && !path.ends_with("unified") {
            trees.push(path);
        }
    }
    trees.sort();
    Ok(trees)
}

fn end(group: &Path) {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for process in processes.lines().filter_map(|pid| pid.parse().ok()) {
        // The process may have ended already.
        let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
    }
}

/// Removes a group and its children. The kernel refuses those with processes; the next start tries
/// again.
fn remove_below(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(group) {
        tracing::debug!(%error, group = %group.display(), "a control group stays");
    }
}
