//! `cargo xtask random`: random small networks are cut and answer like their files.

use crate::setup::Kit;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

/// Networks of one process: its start takes as long as a few dozen of them.
const RANGE: u64 = 250;
const TEST: &str = "random_graphs::random_networks_are_never_cut_into_something_else";

/// The arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct RandomArgs {
    /// Networks to try.
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    /// The first one's number, from which it is made.
    #[arg(long, default_value_t = 1000)]
    first: u64,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// What became of networks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    cut: u64,
    whole: u64,
    unprepared: u64,
    answered: u64,
    refused: u64,
    wrong: u64,
    crashed: u64,
}

impl Tally {
    const fn tried(&self) -> u64 {
        self.cut + self.whole + self.unprepared + self.wrong + self.crashed
    }
}

/// Where all processes stand.
struct Shared {
    next: u64,
    end: u64,
    tally: Tally,
    faults: Vec<String>,
}

/// Prepares `count` networks, in `jobs` processes, and compares their answers. A process that ends
/// with a network is a fault of it, and the ones after it are tried by another. Fails if a network
/// is wrong.
pub(crate) fn run(kit: &Kit, args: &RandomArgs) -> Result<ExitCode> {
    let build = test(kit).arg("--no-run").status();
    if !build.context("cargo does not start")?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let start = Instant::now();
    let shared = Mutex::new(Shared {
        next: args.first,
        end: args.first.saturating_add(args.count),
        tally: Tally::default(),
        faults: Vec::new(),
    });
    let job = || -> Result<()> {
        while let Some((first, count)) = take(&shared) {
            range(kit, first, count, &shared)?;
            let Shared { tally, .. } = *locked(&shared);
            let (seconds, tried) = (start.elapsed().as_secs(), tally.tried());
            println!(
                "{tried} of {} networks, {seconds} s: {}",
                args.count,
                told(&tally)
            );
        }
        Ok(())
    };
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(job)).collect();
        jobs.into_iter().try_for_each(|job| {
            job.join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a job panicked")))
        })
    })?;
    let shared = locked(&shared);
    for fault in &shared.faults {
        println!("{fault}");
    }
    println!("{}", told(&shared.tally));
    Ok(if shared.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn test(kit: &Kit) -> Command {
    let mut cargo = kit.cargo();
    cargo.args(["test", "--quiet", "--package", "lamina-torchscript"]);
    cargo.args(["--test", "it"]);
    cargo
}

fn locked(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The first of the next networks, and their number.
fn take(shared: &Mutex<Shared>) -> Option<(u64, u64)> {
    let mut shared = locked(shared);
    let (first, count) = (shared.next, RANGE.min(shared.end - shared.next));
    shared.next += count;
    (count > 0).then_some((first, count))
}

/// Tries `count` networks from `first` on.
fn range(kit: &Kit, first: u64, count: u64, shared: &Mutex<Shared>) -> Result<()> {
    let end = first + count;
    let mut first = first;
    while first < end {
        let mut child = test(kit)
            .args(["--", "--exact", TEST, "--nocapture"])
            .env("LAMINA_RANDOM_GRAPHS", (end - first).to_string())
            .env("LAMINA_RANDOM_SEED", first.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cargo does not start")?;
        let errors = child.stderr.take();
        let errors = thread::spawn(move || {
            errors.map_or_else(String::new, |e| {
                std::io::read_to_string(e).unwrap_or_default()
            })
        });
        let mut begun = None;
        if let Some(out) = child.stdout.take() {
            for line in BufReader::new(out).lines() {
                heard(&line?, &mut begun, shared);
            }
        }
        let status = child.wait()?;
        let errors = errors.join().unwrap_or_default();
        if count == 1 {
            // With the network's text.
            println!("{errors}");
        }
        match begun {
            Some(number) => {
                let mut shared = locked(shared);
                shared.tally.crashed += 1;
                let fault = fault(number, &format!("the process ended: {}", last(&errors)));
                println!("{fault}");
                shared.faults.push(fault);
                first = number + 1;
            }
            // A network that is wrong fails the test, too, and was heard of.
            None if status.success() || errors.contains("network ") => return Ok(()),
            None => anyhow::bail!("the test does not run:\n{errors}"),
        }
    }
    Ok(())
}

/// Takes a line of the test; `begun` is the network that it has begun and not ended.
fn heard(line: &str, begun: &mut Option<u64>, shared: &Mutex<Shared>) {
    // The harness may have begun the line.
    let Some((_, line)) = line.split_once("network ") else {
        return;
    };
    let mut words = line.splitn(3, ' ');
    let (number, what) = (words.next().map(str::parse), words.next());
    let (Some(Ok(number)), Some(what)) = (number, what) else {
        return;
    };
    let rest = words.next().unwrap_or_default();
    let mut shared = locked(shared);
    let tally = &mut shared.tally;
    match what {
        "begins" => {
            *begun = Some(number);
            return;
        }
        "blocks" => {
            let numbers: Vec<u64> = rest.split(' ').filter_map(|w| w.parse().ok()).collect();
            let [blocks, answered, refused] = numbers[..] else {
                return;
            };
            *(if blocks > 1 {
                &mut tally.cut
            } else {
                &mut tally.whole
            }) += 1;
            tally.answered += answered;
            tally.refused += refused;
        }
        "unprepared" => tally.unprepared += 1,
        "wrong" => {
            tally.wrong += 1;
            let fault = fault(number, rest);
            println!("{fault}");
            shared.faults.push(fault);
        }
        _ => return,
    }
    *begun = None;
}

fn fault(number: u64, what: &str) -> String {
    format!("network {number}: {what}\n  again: cargo xtask random --first {number} --count 1")
}

/// The last line that says something.
fn last(text: &str) -> &str {
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("without a word")
}

fn told(tally: &Tally) -> String {
    let Tally {
        cut,
        whole,
        unprepared,
        answered,
        refused,
        wrong,
        crashed,
    } = tally;
    format!(
        "{cut} cut, {whole} whole, {unprepared} refused as models; {answered} answers right, \
         {refused} requests refused; {wrong} wrong, {crashed} crashed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_test_says_is_counted_and_an_unfinished_network_is_known() {
        let shared = Mutex::new(Shared {
            next: 0,
            end: 400,
            tally: Tally::default(),
            faults: Vec::new(),
        });
        assert_eq!(take(&shared), Some((0, 250)));
        assert_eq!(take(&shared), Some((250, 150)));
        assert_eq!(take(&shared), None);
        let mut begun = None;
        for line in [
            "test random_graphs::random … network 7 begins",
            "network 7 blocks 4 answered 90 refused 6",
            "network 8 begins",
            "network 8 blocks 1 answered 3 refused 0",
            "network 9 begins",
            "network 9 unprepared \"it depends on the request\"",
            "network 10 begins",
            "network 10 wrong \"chain of 3 blocks\"",
            "network 11 begins",
        ] {
            heard(line, &mut begun, &shared);
        }
        assert_eq!(begun, Some(11));
        let shared = locked(&shared);
        let want = Tally {
            cut: 1,
            whole: 1,
            unprepared: 1,
            answered: 93,
            refused: 6,
            wrong: 1,
            crashed: 0,
        };
        assert_eq!(shared.tally, want);
        assert_eq!(shared.tally.tried(), 4);
        assert!(shared.faults[0].starts_with("network 10: \"chain of 3 blocks\""));
    }
}
