//! Starts a program inside a host: in its control groups, its network namespace, and its own
//! process group.

use std::path::{Path, PathBuf};

/// The shell words that put a process into a host, followed by the program and its arguments. `sh`
/// joins the groups (before a new mount namespace hides them) and is then replaced.
pub(crate) fn enter(join_files: &[PathBuf], namespace: Option<&Path>) -> Vec<String> {
    let mut script = join(join_files);
    script.push_str("exec ");
    if let Some(namespace) = namespace {
        script.push_str(&format!("nsenter --net={} -- ", quote(namespace)));
    }
    script.push_str("\"$@\"");
    vec!["sh".to_owned(), "-c".to_owned(), script, "lab".to_owned()]
}

/// Shell commands that put the shell into control groups.
pub(crate) fn join(join_files: &[PathBuf]) -> String {
    join_files
        .iter()
        .map(|file| format!("echo $$ > {} || exit 125; ", quote(file)))
        .collect()
}

/// A path or word quoted for a POSIX shell.
pub(crate) fn quote(word: impl AsRef<std::ffi::OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_the_shell() {
        let nasty = "it's $HOME `x` \"y\" \\ *";
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("printf %s {}", quote(nasty))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), nasty);
    }

    #[test]
    fn the_host_is_entered_before_the_program() {
        assert_eq!(
            enter(
                &["/cg/cgroup.procs".into()],
                Some(Path::new("/run/netns/a"))
            ),
            [
                "sh",
                "-c",
                "echo $$ > '/cg/cgroup.procs' || exit 125; \
                 exec nsenter --net='/run/netns/a' -- \"$@\"",
                "lab"
            ]
        );
    }
}
