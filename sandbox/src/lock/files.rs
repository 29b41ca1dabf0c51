//! Landlock: which files this process can reach.

use super::{Cell, Missing};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictSelfAttr, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The first kernel with Landlock (5.13) restricts everything important; later features are used if
/// available. The gap of the first two versions, emptying a file by opening it, is closed by
/// seccomp.
const LEAST: ABI = ABI::V1;
const NEWEST: ABI = ABI::V7;

/// Files that libtorch reads about processors and its own stacks.
const SYSTEM: [&str; 6] = [
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/dev/urandom",
];

/// Restricts this process to the files of `cell`, its libraries, and a few of the system's.
pub(super) fn confine(cell: &Cell) -> Result<(), Missing> {
    let restricted = restrict(cell).map_err(|e| missing(with_causes(&e)))?;
    let threads = threads();
    if restricted.ruleset == RulesetStatus::NotEnforced {
        return Err(missing("the kernel does not enforce it".into()));
    }
    if threads != 1 && !restricted.all_threads {
        return Err(missing(format!(
            "it holds for one thread, the process has {threads}"
        )));
    }
    Ok(())
}

fn restrict(cell: &Cell) -> Result<landlock::RestrictionStatus, RulesetError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let mut ruleset = ruleset.set_compatibility(CompatLevel::BestEffort);
    let system = SYSTEM.iter().map(PathBuf::from);
    let readable = system.chain(libraries()).chain(cell.read.iter().cloned());
    for path in readable {
        ruleset = allow(ruleset, &path, AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    if let Some(folder) = &cell.write {
        ruleset = allow(ruleset, folder, own_folder())?;
    }
    ruleset.all_threads(true)?.restrict_self()
}

/// Reading, writing and removing plain files; no devices, sockets or links.
fn own_folder() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile
}

/// A missing file cannot be reached anyway.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(descriptor) = PathFd::new(path) else {
        return Ok(ruleset);
    };
    let access = if path.is_dir() {
        access
    } else {
        access & AccessFs::from_file(NEWEST)
    };
    ruleset.add_rule(PathBeneath::new(descriptor, access))
}

/// The folders of this process's libraries, for those that they load on first use.
fn libraries() -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    folders_of_libraries(&maps)
}

fn folders_of_libraries(maps: &str) -> BTreeSet<PathBuf> {
    let files = maps.lines().filter_map(|line| {
        // address perms offset device inode path
        let path = line.splitn(6, ' ').nth(5)?.trim_start();
        let name = Path::new(path).file_name()?.to_str()?;
        let is_library = path.starts_with('/') && name.contains(".so");
        is_library.then(|| Path::new(path).parent())?
    });
    files.map(Path::to_owned).collect()
}

fn threads() -> usize {
    // If they cannot be counted, assume several.
    fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count)
}

fn missing(why: String) -> Missing {
    Missing {
        what: "Landlock",
        why,
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_maps() {
        let maps = "\
7f01-7f02 r-xp 00000000 fe:00 42                         /opt/torch/lib/libtorch_cpu.so\n\
7f03-7f04 r--p 00000000 fe:00 43                         /usr/lib/libc.so.6\n\
7f05-7f06 rw-p 00000000 00:00 0 \n\
7f07-7f08 rw-p 00000000 00:00 0                          [heap]\n\
7f09-7f0a r-xp 00000000 fe:00 44                         /usr/bin/lamina-node-agent\n";
        let want = ["/opt/torch/lib", "/usr/lib"].map(PathBuf::from);
        assert_eq!(folders_of_libraries(maps), BTreeSet::from(want));
    }
}
