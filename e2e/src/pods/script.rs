//! The shell script that becomes a container's process: private mounts,
//! control groups, network namespace, user, program.
//!
//! There are no images, so the root file system is the machine's own with the
//! pod's volumes mounted into it, in a private mount namespace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::launch::{join, quote};

/// A volume, or a part of one, with its path in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// The process's user if it is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct User {
    pub(crate) user: Option<i64>,
    pub(crate) group: Option<i64>,
    /// Whether the process is barred from gaining rights by exec.
    pub(crate) no_new_privileges: bool,
}

/// Parameters of the script.
pub(crate) struct Start<'a> {
    pub(crate) join_files: &'a [PathBuf],
    pub(crate) namespace: Option<&'a Path>,
    pub(crate) mounts: &'a [Mount],
    /// An empty folder of this container for folders hidden by its mounts.
    pub(crate) stash: &'a Path,
    pub(crate) read_only_root: bool,
    pub(crate) user: User,
    pub(crate) working_directory: Option<&'a str>,
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
}

/// Mounts a memory file system over a folder and fills it with symbolic links to the folder's
/// content: new mount points can then be made without writing to the machine. The folder itself
/// stays reachable at `$2`.
const SHADOW: &str = r#"shadow() {
  mount --rbind "$1" "$2"
  mount -t tmpfs -o mode=755 tmpfs "$1"
  for entry in "$2"/* "$2"/.[!.]*; do
    if [ -e "$entry" ] || [ -L "$entry" ]; then ln -s "$entry" "$1/"; fi
  done
}
"#;

/// The same for `/`, over which nothing can be mounted: a new root that binds every top-level
/// folder, read-only if `$2` is `ro`, except the kernel's.
const NEW_ROOT: &str = r#"new_root() {
  mount -t tmpfs -o mode=755 tmpfs "$1"
  for entry in /* /.[!.]*; do
    if [ -L "$entry" ]; then cp -P "$entry" "$1/"
    elif [ -d "$entry" ]; then
      mkdir "$1$entry"
      mount --rbind "$entry" "$1$entry"
      case "$2$entry" in
        ro/proc|ro/sys|ro/dev|ro/run) ;;
        ro*) mount -o remount,bind,ro "$1$entry" ;;
      esac
    elif [ -e "$entry" ]; then touch "$1$entry"; mount --bind "$entry" "$1$entry"
    fi
  done
}
"#;

/// The script; it is run by `unshare --mount --propagation private sh`.
pub(crate) fn script(start: &Start<'_>) -> String {
    let mut hidden = hidden_folders(start.mounts);
    let new_root = hidden.remove(Path::new("/"));
    let mut script = String::from("set -e\n");
    for number in 0..=hidden.len() {
        script.push_str(&format!("mkdir -p {}\n", quote(stash(start, number))));
    }
    let inner = inner_script(start, &hidden);
    if !new_root {
        return script + &inner;
    }
    let root = quote(stash(start, hidden.len()));
    let mode = if start.read_only_root { "ro" } else { "rw" };
    script.push_str(NEW_ROOT);
    script.push_str(&format!("new_root {root} {mode}\n"));
    script.push_str(&format!("exec chroot {root} sh -c {}\n", quote(inner)));
    script
}

fn stash(start: &Start<'_>, number: usize) -> PathBuf {
    start.stash.join(number.to_string())
}

/// The script's part that runs once `/` is the container's root.
fn inner_script(start: &Start<'_>, hidden: &BTreeSet<PathBuf>) -> String {
    let mut script = format!("set -e\n{SHADOW}");
    // Inner folders first: they move along with outer ones.
    for (number, folder) in hidden.iter().enumerate().rev() {
        let aside = quote(stash(start, number));
        script.push_str(&format!("shadow {} {aside}\n", quote(folder)));
    }
    let mut mounts: Vec<&Mount> = start.mounts.iter().collect();
    // A volume mounted inside another one comes after it.
    mounts.sort_by_key(|mount| mount.target.components().count());
    for mount in mounts {
        // A volume over a folder that contains the lab itself (`/tmp`, often) would hide the
        // program and the other volumes: the machine's folder stays.
        let needed = [start.program, start.stash];
        let hides = needed.iter().any(|path| path.starts_with(&mount.target));
        let source = if hides { &mount.target } else { &mount.source };
        script.push_str(&mount_commands(source, &mount.target, mount.read_only));
    }
    if start.read_only_root {
        script.push_str("mount -o remount,bind,ro /\n");
    }
    script.push_str(&join(start.join_files));
    script.push('\n');
    script.push_str(&exec(start));
    script
}

fn mount_commands(source: &Path, target: &Path, read_only: bool) -> String {
    let (source, target) = (quote(source), quote(target));
    // Always explicit: a folder bound to itself keeps its mode.
    let mode = if read_only { "ro" } else { "rw" };
    // The type of mount point follows the source.
    format!(
        "if [ -d {source} ]; then mkdir -p {target}; else mkdir -p \"$(dirname {target})\"; \
         [ -e {target} ] || touch {target}; fi\n\
         mount --rbind {source} {target}\n\
         mount -o remount,bind,{mode} {target}\n"
    )
}

fn exec(start: &Start<'_>) -> String {
    let mut words: Vec<String> = vec!["exec".to_owned()];
    if let Some(namespace) = start.namespace {
        words.push(format!("nsenter --net={}", quote(namespace)));
    }
    words.push(format!(
        "env --chdir={}",
        quote(start.working_directory.unwrap_or("/"))
    ));
    words.extend(setpriv(start.user));
    words.push(quote(start.program));
    words.extend(start.arguments.iter().map(quote));
    words.join(" ") + "\n"
}

/// Switches to another user. It keeps the right to read everything: in an image all can read the
/// program and its libraries, here they may be in the developer's home. Write access depends on the
/// user alone.
fn setpriv(user: User) -> Option<String> {
    if user == User::default() {
        return None;
    }
    let mut words = "setpriv".to_owned();
    if user.no_new_privileges {
        words.push_str(" --no-new-privs");
    }
    if let Some(group) = user.group.or(user.user) {
        words.push_str(&format!(" --regid={group} --clear-groups"));
    }
    if let Some(user) = user.user.filter(|user| *user != 0) {
        words.push_str(&format!(
            " --reuid={user} --inh-caps=-all,+dac_read_search \
             --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search"
        ));
    }
    Some(words)
}

/// Existing folders of the machine that lack mount points.
fn hidden_folders(mounts: &[Mount]) -> BTreeSet<PathBuf> {
    let inside_another = |target: &Path| {
        mounts
            .iter()
            .any(|other| other.target != target && target.starts_with(&other.target))
    };
    mounts
        .iter()
        .map(|mount| mount.target.as_path())
        .filter(|target| !inside_another(target) && !target.exists())
        .filter_map(|target| target.ancestors().skip(1).find(|path| path.is_dir()))
        .map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn start<'a>(mounts: &'a [Mount], stash: &'a Path, program: &'a Path) -> Start<'a> {
        Start {
            join_files: &[],
            namespace: None,
            mounts,
            stash,
            read_only_root: false,
            user: User::default(),
            working_directory: None,
            program,
            arguments: &[],
        }
    }

    /// Runs a shell command in a container whose volume `v` holds one file.
    fn run(target: &str, change: impl Fn(&mut Start<'_>), command: &str) -> (bool, String) {
        run_at(&[target], change, command)
    }

    /// The same with that volume at several places.
    fn run_at(targets: &[&str], change: impl Fn(&mut Start<'_>), command: &str) -> (bool, String) {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("file"), "content").unwrap();
        let mount = |target: &&str| Mount {
            source: volume.clone(),
            target: target.into(),
            read_only: false,
        };
        let mounts: Vec<Mount> = targets.iter().map(mount).collect();
        let stash = folder.path().join("stash");
        let arguments = ["-c".to_owned(), command.to_owned()];
        let mut start = start(&mounts, &stash, Path::new("/bin/sh"));
        start.arguments = &arguments;
        change(&mut start);
        let output = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c"])
            .arg(script(&start))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.trim().to_owned())
    }

    #[test]
    fn volumes_appear_where_the_machine_has_no_such_folder() {
        for target in [
            "/lamina-test-volume",
            "/var/run/secrets/lamina-test/one",
            "/etc/lamina-test",
            "/mnt",
        ] {
            let command = format!("cat {target}/file && ls /etc/passwd /proc/self/status");
            let (ok, text) = run(target, |_| {}, &command);
            assert!(ok, "{target}: {text}");
            assert!(text.starts_with("content"), "{target}: {text}");
            let left = Path::new(target).join("file");
            assert!(!left.exists(), "{target} is seen outside");
        }
    }

    #[test]
    fn volumes_at_several_places_do_not_hide_each_other() {
        let targets = [
            "/lamina-test-volume",
            "/etc/lamina-test",
            "/var/run/secrets/lamina-test",
            "/etc/lamina-test/inner",
        ];
        let command = "cat /lamina-test-volume/file /etc/lamina-test/file \
                       /var/run/secrets/lamina-test/file /etc/lamina-test/inner/file \
                       && head -c 4 /etc/passwd && ls /etc/ssl/ /proc/self >/dev/null";
        let (ok, text) = run_at(&targets, |start| start.read_only_root = true, command);
        assert!(ok, "{text}");
        assert_eq!(text, "contentcontentcontentcontentroot");
    }

    #[test]
    fn another_user_reads_everything_and_writes_its_volumes_only() {
        let become_user = |start: &mut Start<'_>| {
            start.user = User {
                user: Some(65_532),
                group: None,
                no_new_privileges: true,
            };
        };
        let (ok, text) = run(
            "/lamina-test-volume",
            become_user,
            "id -u; id -g; cat /etc/shadow >/dev/null && echo read",
        );
        assert!(ok, "{text}");
        assert_eq!(text, "65532\n65532\nread");
        let (ok, text) = run(
            "/lamina-test-volume",
            become_user,
            "echo x > /etc/lamina-test-file",
        );
        assert!(!ok, "{text}");
    }

    #[test]
    fn a_read_only_root_leaves_volumes_writable() {
        for target in ["/lamina-test-volume", "/var/lib/lamina-test"] {
            let command = format!("echo x > {target}/new && ! touch /usr/lamina-test-file");
            let (ok, text) = run(target, |start| start.read_only_root = true, &command);
            assert!(ok, "{text}");
        }
        assert!(!Path::new("/usr/lamina-test-file").exists());
    }
}
