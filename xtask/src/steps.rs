//! Everything that CI runs, in order of cost, with a final count.

use crate::images::Profile;
use crate::setup::Kit;
use crate::{build, cluster, deny, earlier, tidy};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

/// Tests seen so far, and the steps that failed.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    broken: Vec<String>,
}

const DEPENDENCIES: &str = "dependencies: licences, bans and sources";

/// Runs the steps whose name contains `only`, all by default. Clusters are upgraded from the
/// revision `from`, if given.
pub(crate) fn test(kit: &Kit, only: Option<&str>, from: Option<&str>) -> Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    let wanted = |name: &str| only.is_none_or(|o| name.contains(o));
    let mut all = steps(kit);
    if wanted(DEPENDENCIES) {
        all.push((DEPENDENCIES, deny::command(kit)?));
    }
    if wanted("sdk") {
        all.extend(sdk_steps(kit)?);
    }
    if wanted("coverage") {
        all.extend(coverage_steps(kit)?);
    }
    for (name, mut command) in all {
        if wanted(name) {
            step(name, &mut command, &mut tally)?;
        }
    }
    if wanted("tidy") {
        println!("\n=== tidy");
        match tidy::check() {
            Ok(()) => tally.passed += 1,
            Err(error) => {
                println!("{error:#}");
                tally.failed += 1;
                tally.broken.push("tidy".to_owned());
            }
        }
    }
    if wanted("lab") {
        build::binaries(kit)?;
        let mut lab = kit.cargo();
        lab.args(["test", "--workspace", "--no-fail-fast", "--test", "*"])
            .env("LAMINA_BIN", kit.target.join("debug"));
        step("integration and lab tests", &mut lab, &mut tally)?;
    }
    // Separately: it takes half as long as the rest, and much more of the machine.
    if only == Some("cluster") {
        cluster_step(kit, from, &mut tally)?;
    }
    println!("\n{} minutes", start.elapsed().as_secs() / 60);
    for name in &tally.broken {
        println!("FAILED: {name}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.ignored
    );
    Ok(if tally.failed == 0 && tally.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The tests on real kubelets.
fn cluster_step(kit: &Kit, from: Option<&str>, tally: &mut Tally) -> Result<()> {
    let earlier = from.map(|from| earlier::prepare(kit, from)).transpose()?;
    let env = cluster::prepare(kit, Profile::Dev)?;
    let mut suite = kit.cargo();
    suite.args(["test", "--workspace", "--test", "cluster"]);
    suite.envs(env);
    suite.envs(earlier.map(|folder| ("LAMINA_EARLIER", folder)));
    step("cluster: life on real kubelets", &mut suite, tally)
}

/// Commands that need no lab. A command without its own tests counts as one.
fn steps(kit: &Kit) -> Vec<(&'static str, Command)> {
    let cargo = |args: &[&str]| {
        let mut c = kit.cargo();
        c.args(args);
        c
    };
    let helm = |args: &[&str]| {
        let mut c = Command::new(kit.tool("helm"));
        c.current_dir(&kit.root).args(args).arg("charts/lamina");
        c
    };
    let mut documentation = cargo(&["doc", "--workspace", "--no-deps"]);
    documentation.env(
        "RUSTDOCFLAGS",
        "--deny warnings --allow rustdoc::private-intra-doc-links",
    );
    vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        (
            "clippy",
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                // Else nothing notices that the fuzz targets cannot be built any more.
                "--features",
                "lamina-node-agent/fuzzing,lamina-operator/fuzzing",
                "--",
                "--deny",
                "warnings",
            ]),
        ),
        (
            // The agent's tests start its workers.
            "programs of the unit tests",
            cargo(&["build", "--workspace", "--bins"]),
        ),
        (
            "unit and property tests",
            cargo(&["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]),
        ),
        (
            "examples in the documentation",
            cargo(&["test", "--workspace", "--doc"]),
        ),
        ("documentation", documentation),
        ("chart: helm lint", helm(&["lint", "--strict"])),
        (
            "chart: helm lint, every flag",
            helm(&[
                "lint",
                "--strict",
                "--values",
                "charts/lamina/ci/all-values.yaml",
            ]),
        ),
        (
            "chart: helm template",
            helm(&["template", "lamina", "--namespace", "lamina-system"]),
        ),
    ]
}

/// The Python package: style, types, tests and its wheel.
fn sdk_steps(kit: &Kit) -> Result<Vec<(&'static str, Command)>> {
    let program = kit.sdk_python()?;
    let wheels = kit.target.join("sdk");
    let python = |args: &[&str]| {
        let mut c = Command::new(&program);
        c.current_dir(kit.root.join("sdk"))
            .env("OMP_NUM_THREADS", "1")
            .args(args);
        c
    };
    let style = "--config=pyproject.toml";
    let bench = "../placement/bench/python";
    // gRPC's names do not follow Python's style, and it has no types.
    let example = [
        "-m",
        "ruff",
        "check",
        "--ignore",
        "N802,ANN401",
        "--config",
        "pyproject.toml",
        "../examples/plugins/python/random_restart.py",
    ];
    let mut wheel = python(&["-m", "build", "--wheel", "--no-isolation", "--outdir"]);
    wheel.arg(&wheels);
    Ok(vec![
        ("sdk: lint", python(&["-m", "ruff", "check", "."])),
        (
            "sdk: format",
            python(&["-m", "ruff", "format", "--check", "."]),
        ),
        (
            "sdk: lint of the benchmarks' scripts",
            python(&["-m", "ruff", "check", style, bench]),
        ),
        (
            "sdk: format of the benchmarks' scripts",
            python(&["-m", "ruff", "format", "--check", style, bench]),
        ),
        ("sdk: lint of the plugin example", python(&example)),
        ("sdk: types", python(&["-m", "mypy"])),
        ("sdk: tests", python(&["-m", "pytest", "-q"])),
        ("sdk: wheel", wheel),
    ])
}

/// The program of the coverage table: style, and tests of its checker. The table itself is `cargo
/// xtask coverage`; a dozen of its rows are among the tests.
fn coverage_steps(kit: &Kit) -> Result<Vec<(&'static str, Command)>> {
    let program = kit.sdk_python()?;
    let python = |args: &[&str]| {
        let mut c = Command::new(&program);
        c.current_dir(kit.root.join("torchscript/coverage"))
            .env("OMP_NUM_THREADS", "1")
            .args(args);
        c
    };
    Ok(vec![
        ("coverage: lint", python(&["-m", "ruff", "check", "."])),
        (
            "coverage: format",
            python(&["-m", "ruff", "format", "--check", "."]),
        ),
        ("coverage: tests", python(&["-m", "pytest", "-q", "tests"])),
    ])
}

/// Runs one step, forwarding its output and counting its test results.
fn step(name: &str, command: &mut Command, tally: &mut Tally) -> Result<()> {
    println!("\n=== {name}");
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (passed_before, failed_before) = (tally.passed, tally.failed);
    let quiet = name.starts_with("chart: helm template");
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).lines() {
            let line = line?;
            count(&line, tally);
            if !quiet {
                println!("{line}");
            }
        }
    }
    let status = child.wait()?;
    let counted = (tally.passed, tally.failed) != (passed_before, failed_before);
    if status.success() {
        tally.passed += u64::from(!counted);
    } else {
        tally.broken.push(name.to_owned());
        // A crash or a compile error fails without a failed test.
        tally.failed += u64::from(tally.failed == failed_before);
    }
    println!(
        "--- {name}: {} in {:.0} s",
        if status.success() { "ok" } else { "FAILED" },
        start.elapsed().as_secs_f64()
    );
    std::io::stdout().flush()?;
    Ok(())
}

/// Adds up `test result: ok. 12 passed; 0 failed; 1 ignored; …`, and pytest's `1 failed, 150
/// passed, 2 skipped in 40.12s`.
fn count(line: &str, tally: &mut Tally) {
    let Some(rest) = line.strip_prefix("test result: ").or_else(|| pytests(line)) else {
        return;
    };
    for part in rest.split([';', '.', ',']) {
        let mut words = part.split_whitespace();
        let (Some(number), Some(kind)) = (
            words.next().and_then(|n| n.parse::<u64>().ok()),
            words.next(),
        ) else {
            continue;
        };
        match kind {
            "passed" => tally.passed += number,
            "failed" => tally.failed += number,
            "ignored" | "skipped" => tally.ignored += number,
            _ => {}
        }
    }
}

/// The counts in pytest's last line.
fn pytests(line: &str) -> Option<&str> {
    let (counts, seconds) = line.trim_matches(['=', ' ']).split_once(" in ")?;
    let is_time = seconds.starts_with(|c: char| c.is_ascii_digit());
    let is_count = counts.starts_with(|c: char| c.is_ascii_digit());
    (is_time && is_count).then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_added_up() {
        let mut tally = Tally::default();
        count(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            &mut tally,
        );
        count(
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured",
            &mut tally,
        );
        count("test tests::a ... ok", &mut tally);
        count("1 failed, 4 passed, 2 skipped in 40.12s", &mut tally);
        count("waited 3 s in all", &mut tally);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (19, 3, 3));
    }
}
