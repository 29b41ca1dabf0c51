//! Plugins in Python, as processes over real sockets: the example solves, and others that die or
//! send garbage are survived.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

mod common;

use common::{Process, plugin, problem, python, question, root};
use lamina_placement::{Ctx, Parameters, Problem, SolveOptions, Status, solve_checked, strategy};
use lamina_plugin_host::Solved;
use prost::Message;
use prost_types::FileDescriptorProto;
use std::process::Command;

fn best(problem: &Problem) -> f64 {
    let optimal = strategy("optimal", &Parameters::new()).unwrap();
    let options = SolveOptions::default();
    let found = solve_checked(problem, optimal.as_ref(), &options, &Ctx::unlimited()).unwrap();
    found.metrics.unwrap().objective
}

fn value(solved: &Solved) -> f64 {
    solved.solution.metrics.as_ref().unwrap().objective
}

fn example(listen: &str) -> Process {
    let script = root().join("examples/plugins/python/random_restart.py");
    Process::start(python().arg(script).args(["--listen", listen]))
}

fn rogue(deed: &str) -> Process {
    let script = root().join("plugin-host/tests/rogue.py");
    Process::start(python().arg(script).arg(deed))
}

#[tokio::test]
async fn the_example_places_a_chain_over_tcp() {
    let process = example("127.0.0.1:0");
    let plugin = plugin("random-restart", &process.address, 20.0);
    let solved = plugin.solve(&question(problem()), &Ctx::unlimited()).await;
    let solved = solved.unwrap();
    assert!(solved.trouble.is_none(), "{}", solved.trouble.unwrap());
    assert_eq!(solved.solution.strategy, "plugin/random-restart");
    assert_eq!(solved.solution.certificate.status, Status::Feasible);
    assert!((value(&solved) - best(&problem())).abs() < 1e-9);
}

#[tokio::test]
async fn the_example_listens_on_a_unix_socket_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}", folder.path().join("plugin.sock").display());
    let process = example(&listen);
    let plugin = plugin("random-restart", &process.address, 20.0);
    let mut asked = question(problem());
    asked.parameters.insert("restarts".into(), 5.into());
    let solved = plugin.solve(&asked, &Ctx::unlimited()).await.unwrap();
    assert!(solved.trouble.is_none(), "{}", solved.trouble.unwrap());
    // An unknown parameter, and a problem without a host for a block.
    asked.parameters.insert("steps".into(), 5.into());
    let text = trouble(plugin.solve(&asked, &Ctx::unlimited()).await.unwrap());
    assert!(
        text.ends_with("refused: unknown parameter `steps`; it takes `restarts`"),
        "{text}"
    );
    let mut stuck = problem();
    stuck.nodes[1].excluded = Some("cordoned".into());
    let solved = plugin
        .solve(&question(stuck), &Ctx::unlimited())
        .await
        .unwrap();
    assert_eq!(solved.solution.certificate.status, Status::Infeasible);
    assert!(trouble(solved).ends_with("refused: no node may run block 2"));
}

fn trouble(solved: Solved) -> String {
    let trouble = solved.trouble.expect("something is wrong");
    assert_eq!(solved.solution.strategy == "optimal", trouble.fell_back);
    trouble.to_string()
}

#[tokio::test]
async fn one_that_dies_leaves_its_last_good_answer() {
    let mut process = rogue("dies-late");
    let plugin = plugin("rogue", &process.address, 20.0);
    let solved = plugin.solve(&question(problem()), &Ctx::unlimited()).await;
    let solved = solved.unwrap();
    assert_eq!(solved.solution.placements[0].path(), "cam-1[0-1]→edge-1[2]");
    let text = trouble(solved);
    assert!(
        text.starts_with(
            "the last good answer of strategy plugin/rogue is used: the plugin at http://127.0.0.1:"
        ),
        "{text}"
    );
    assert!(text.contains("broke off"), "{text}");
    // It stops completely, once its last socket is closed.
    process.wait();
    let again = plugin.solve(&question(problem()), &Ctx::unlimited()).await;
    let text = trouble(again.unwrap());
    let refused =
        "cannot be reached: transport error: tcp connect error: Connection refused (os error 111)";
    assert!(text.ends_with(refused), "{text}");
}

#[tokio::test]
async fn one_that_dies_before_it_answered_is_replaced() {
    let process = rogue("dies-early");
    let plugin = plugin("rogue", &process.address, 20.0);
    let solved = plugin.solve(&question(problem()), &Ctx::unlimited()).await;
    let solved = solved.unwrap();
    assert!((value(&solved) - best(&problem())).abs() < 1e-9);
    let text = trouble(solved);
    assert!(
        text.starts_with("strategy plugin/rogue fell back to optimal: the plugin at http://"),
        "{text}"
    );
    assert!(text.contains("broke off"), "{text}");
}

#[tokio::test]
async fn bytes_that_are_no_message_are_no_answer() {
    let process = rogue("babbles");
    let plugin = plugin("rogue", &process.address, 20.0);
    let solved = plugin.solve(&question(problem()), &Ctx::unlimited()).await;
    let text = trouble(solved.unwrap());
    assert!(text.contains("broke off (Internal): "), "{text}");
}

/// Python's descriptor matches the .proto file.
#[test]
fn the_generated_python_is_up_to_date() {
    let read =
        "import strategy_pb2, sys; sys.stdout.buffer.write(strategy_pb2.DESCRIPTOR.serialized_pb)";
    let output = python().args(["-c", read]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let python = FileDescriptorProto::decode(output.stdout.as_slice()).unwrap();
    let compiled = protox::compile(["strategy.proto"], [root().join("proto/proto")]).unwrap();
    let [mut ours] = <[_; 1]>::try_from(compiled.file).unwrap();
    ours.source_code_info = None;
    without_json_names(&mut ours.message_type);
    assert_eq!(
        python, ours,
        "generate it anew as examples/plugins/python/README.md says"
    );
}

fn without_json_names(messages: &mut [prost_types::DescriptorProto]) {
    for message in messages {
        for field in &mut message.field {
            field.json_name = None;
        }
        without_json_names(&mut message.nested_type);
    }
}

#[test]
fn the_example_explains_itself() {
    let script = root().join("examples/plugins/python/random_restart.py");
    let help: &mut Command = &mut python();
    let output = help.arg(script).arg("--help").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("--listen"));
}
