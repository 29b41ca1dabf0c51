//! Runs other programs with progress on the terminal and their output in a log.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Runs `command` to its end with its output in `log`, telling every ten seconds
/// that it still works, and how far it is where it says so. On failure the log's
/// last lines are in the error.
pub(crate) fn logged(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let err = out.try_clone()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    println!("  {what} …");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if told.elapsed() >= Duration::from_secs(10) {
            let seconds = start.elapsed().as_secs();
            match fs::read(log).ok().and_then(|text| counted(&text)) {
                Some((done, all)) => println!("  {what} … {seconds} s, {done} of {all} steps"),
                None => println!("  {what} … {seconds} s"),
            }
            told = Instant::now();
        }
        sleep(Duration::from_millis(100));
    };
    if !status.success() {
        bail!(
            "{what} failed ({status}); the end of {}:\n{}",
            log.display(),
            tail(log, 25)
        );
    }
    println!("  {what}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    // Of a line that was written over, its last state.
    let last = |line: &str| line.rsplit('\r').next().unwrap_or_default().to_owned();
    let all: Vec<String> = text.lines().map(last).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Has cargo say how far it is, though nobody looks at its output.
pub(crate) fn counting(cargo: &mut Command) -> &mut Command {
    cargo
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "80")
}

/// The last `] 12/345` of cargo's progress.
fn counted(log: &[u8]) -> Option<(u32, u32)> {
    let tail = &log[log.len().saturating_sub(4096)..];
    let tail = String::from_utf8_lossy(tail);
    let counts = tail.split("] ").skip(1).filter_map(|rest| {
        let (done, rest) = rest.split_once('/')?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        Some((done.parse().ok()?, rest[..digits].parse().ok()?))
    });
    counts.last()
}

/// Standard output of `command`, trimmed; `None` where it cannot be run or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_cargo_is_is_read() {
        let log = "   Compiling tokio v1.54.1\n\
                   \r    Building [===>   ] 12/345: serde, kube\
                   \r    Building [===>   ] 13/345: kube";
        assert_eq!(counted(log.as_bytes()), Some((13, 345)));
        assert_eq!(counted(b"[notice] a/b [x] 3/ of"), None);
        assert_eq!(counted(b""), None);
    }
}
