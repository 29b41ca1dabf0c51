//! The program itself: exit codes, streams, colours.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::process::{Command, Output};

fn run(options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kubectl-lamina"))
        .args(["plan", "--profile", "tests/files/model.yaml"])
        .args(["--topology", "tests/files/world.yaml"])
        .args(options)
        .output()
        .unwrap()
}

#[test]
fn a_placement_is_success() {
    let output = run(&["--strategy", "optimal"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("STRATEGY"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours into a pipe: {text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn no_placement_is_one() {
    let output = run(&["--slo", "1ms", "--strategy", "optimal"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("no placement")
    );
}

#[test]
fn bad_input_is_two_and_on_the_error_stream() {
    let output = run(&["--entry", "mars"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--entry mars")
    );
}

#[test]
fn json_can_be_read_by_programs() {
    let output = run(&["--json", "--strategy", "optimal", "--explain"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["apiVersion"], "plan.lamina.dev/v1");
    assert_eq!(json["strategies"][0]["certificate"]["status"], "optimal");
    assert!(json["explanation"]["workloads"][0]["stretches"].is_array());
}

#[test]
fn a_deadline_of_nothing_still_ends_with_an_answer() {
    let output = run(&["--deadline", "0s", "--strategy", "optimal"]);
    let code = output.status.code();
    assert!(code == Some(0) || code == Some(1), "{output:?}");
}
