//! Errors shown to users: each with its file, line and field, all at once, and never a panic or a
//! wrong answer.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

mod common;

use insta::assert_snapshot;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

const MODEL: &str = "input: 10KB\nblocks:\n- {time: 1ms, weights: 1KB, output: 1KB}\n- {time: 1ms, weights: 1KB, output: 1KB}\n";
const WORLD: &str = "nodes:\n- {name: cam, tier: device, speed: 1, memory: 1MB}\n- {name: edge, tier: edge, speed: 2, memory: 1MB}\ntierLinks:\n- {between: [device, edge], latency: 1ms, bandwidth: 1Mbit}\n";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The error, without the folder's name.
    fn refusal(&self, options: &str) -> String {
        let folder = self.0.path().display().to_string();
        let options = options.replace("DIR", &folder);
        let message = common::report(&options).unwrap_err().to_string();
        message.replace(&format!("{folder}/"), "")
    }
}

fn refused(model: &str, world: &str, options: &str) -> String {
    let files = Files::new();
    files.write("model.yaml", model);
    files.write("world.yaml", world);
    files.refusal(&format!(
        "--profile DIR/model.yaml --topology DIR/world.yaml {options}"
    ))
}

#[test]
fn negative_times_and_nan_are_named_all_at_once() {
    let model = "\
input: -1KB
blocks:
- {time: -1ms, weights: 1KB, output: 1KB}
- {time: .nan, weights: .inf, output: 1KB}
- {time: nan ms, weights: .inf, output: 1KB, cutPenalty: -2us}
- {times: {edge: -3ms}, weights: 1KB, output: 1 parsec}
- {weights: 1KB}
";
    let world = "\
nodes:
- {name: cam, tier: device, speed: -1, memory: -2GiB}
- {name: edge, tier: edge, speed: 0, gflops: 3, memory: 1MB, load: 120%, cap: 0}
- {name: edge, tier: edge, memory: lots}
links:
- {between: [cam, edge], latency: -1ms, bandwidth: 50}
- {from: cam, latency: 1ms, bandwidth: 0Mbit}
";
    assert_snapshot!(refused(model, world, ""));
}

#[test]
fn unknown_nodes() {
    let model =
        "input: 1KB\nblocks:\n- {time: 1ms, times: {mars: 1ms}, weights: 1KB, output: 1KB}\n";
    assert_snapshot!(refused(model, WORLD, ""));
    let world = format!(
        "{WORLD}links:\n- {{between: [cam, mars], latency: 1ms, bandwidth: 1Mbit}}\n- {{from: cam, to: cam, latency: 1ms, bandwidth: 1Mbit}}\nentry: venus\n"
    );
    assert_snapshot!(refused(MODEL, &world, ""));
    assert_snapshot!(refused(MODEL, WORLD, "--entry pluto"));
    assert_snapshot!(refused(MODEL, WORLD, "--pin 0=pluto"));
}

#[test]
fn an_empty_model() {
    assert_snapshot!(refused("input: 1KB\nblocks: []\n", WORLD, ""));
    assert_snapshot!(refused("", WORLD, ""));
}

#[test]
fn an_empty_topology() {
    assert_snapshot!(refused(MODEL, "nodes: []\n", ""));
}

#[test]
fn contradictory_pins() {
    assert_snapshot!(refused(MODEL, WORLD, "--pin 0-1=cam --pin 1=edge"));
    assert_snapshot!(refused(
        MODEL,
        WORLD,
        "--entry-blocks 1 --pin 0=edge --pin 7=cam"
    ));
    assert_snapshot!(refused(MODEL, WORLD, "--entry-blocks 1 --pin 0=edge"));
    assert_snapshot!(refused(MODEL, WORLD, "--entry-blocks 9"));
}

#[test]
fn a_hundred_thousand_nodes() {
    let mut world = "nodes:\n".to_owned();
    for i in 0..100_000 {
        world += &format!("- {{name: n{i}, tier: edge, speed: 1, memory: 1GiB}}\n");
    }
    world += "tierLinks:\n- {between: [edge, edge], latency: 1ms, bandwidth: 1Mbit}\n";
    assert_snapshot!(refused(MODEL, &world, "--entry n0"));
}

#[test]
fn a_hundred_thousand_nodes_in_a_problem() {
    let node = |i| format!("{{\"name\": \"n{i}\", \"tier\": \"edge\", \"memoryBytes\": 1}}");
    let nodes: Vec<String> = (0..100_000).map(node).collect();
    let files = Files::new();
    let problem = format!(
        "{{\"nodes\": [{}], \"links\": {{}}, \"workloads\": []}}",
        nodes.join(", ")
    );
    files.write("problem.json", &problem);
    assert_snapshot!(files.refusal("--problem DIR/problem.json"));
}

#[test]
fn a_hundred_thousand_blocks() {
    let mut model = "input: 1KB\nblocks:\n".to_owned();
    for _ in 0..100_000 {
        model += "- {time: 1ms, weights: 1KB, output: 1KB}\n";
    }
    assert_snapshot!(refused(&model, WORLD, ""));
}

#[test]
fn a_problem_is_validated_field_by_field() {
    let problem = "\
nodes:
- {name: a, tier: edge, memoryBytes: 10, loadShare: .nan}
links: {a: {b: {latencySeconds: -1, bytesPerSecond: 0}}}
workloads:
- name: w
  entry: c
  ratePerSecond: -4
  values: [{name: x, bytes: 1}]
  outputs: [y]
  blocks:
  - {inputs: [x], outputs: [z], memoryBytes: 1, sliceBytes: 1, costs: {a: {seconds: -.inf}, q: {seconds: 1}}}
  constraints: {pins: [{block: 0, node: a}, {block: 0, node: b}]}
";
    let files = Files::new();
    files.write("problem.yaml", problem);
    assert_snapshot!(files.refusal("--problem DIR/problem.yaml"));
}

#[test]
fn syntax_has_a_line() {
    assert_snapshot!(refused(
        MODEL,
        "nodes:\n- {name: cam, tier: device, sped: 1, memory: 1MB}\n",
        ""
    ));
    assert_snapshot!(refused(
        MODEL,
        "nodes:\n- {name: cam, tier: fog, speed: 1, memory: 1MB}\n",
        ""
    ));
    assert_snapshot!(refused("input: 1KB\nblocks:\n  - [\n", WORLD, ""));
    assert_snapshot!(refused(
        "{\"preparedGflops\": 3,\n \"version\": \"x\"}",
        WORLD,
        ""
    ));
}

#[test]
fn a_manifest_contradicts_itself() {
    let text = fs::read_to_string("../examples/plan/googlenet.json").unwrap();
    let at = text.find("\"p50\": ").unwrap() + "\"p50\": ".len();
    let broken = format!("{}-{}", &text[..at], &text[at..]);
    assert_snapshot!(refused(&broken, WORLD, ""));
}

#[test]
fn options_that_mean_nothing() {
    assert_snapshot!(refused(
        MODEL,
        WORLD,
        "--rate fast --slo=-3ms --strategy magic --pin cam --deadline soon"
    ));
    assert_snapshot!(refused(MODEL, WORLD, "--min-accuracy 80%"));
}

#[test]
fn the_entry_must_be_known() {
    let world = WORLD.replace("tier: device", "tier: edge");
    assert_snapshot!(refused(MODEL, &world, ""));
}

#[test]
fn speeds_that_cannot_be_compared() {
    let world = WORLD.replace("speed: 2", "gflops: 20");
    assert_snapshot!(refused(MODEL, &world, ""));
    let model = MODEL.replace("time: 1ms", "flops: 3M");
    assert_snapshot!(refused(&model, WORLD, ""));
}

#[test]
fn changes_that_cannot_be_made() {
    let said = |change: &str| refused(MODEL, WORLD, &format!("--what-if {change}"));
    let all = [
        "link.cam:mars.bandwidth=5Mbit",
        "link.cam:edge.bandwidth=5",
        "link.cam:edge.bandwidth=0Mbit",
        "link.cam:edge.colour=red",
        "link.cam:edge.latency",
        "node.edge.speed=2",
        "node.edge.memory=-1GiB",
        "node.edge.load=100%",
        "node.cam.gone",
        "node.edge.gone=yes",
        "weather=rain",
    ];
    assert_snapshot!(all.map(said).join("\n"));
    assert_snapshot!(refused(MODEL, WORLD, "--regions node.cam.memory"));
}

#[test]
fn files_that_are_not_there() {
    let files = Files::new();
    files.write("world.yaml", WORLD);
    let options = "--profile DIR/none.json --topology DIR/world.yaml --exits DIR/exits.yaml";
    assert_snapshot!(files.refusal(options));
}
