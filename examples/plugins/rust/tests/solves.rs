//! The example as a process, called over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_placement::{Ctx, Parameters, Problem, SolveOptions};
use lamina_plugin_host::{PluginConfig, Plugins, Question, Solved};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const EXAMPLE: &str = include_str!("../../problem.json");

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start() -> (Process, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina-plugin-one-cut"));
    command.args(["--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap();
    (Process(child), format!("http://{address}"))
}

fn question(parameters: &[(&str, &str)]) -> Question {
    let mut problem: Problem = serde_json::from_str(EXAMPLE).unwrap();
    let workload = &mut problem.workloads[0];
    workload.exits.clear();
    workload.constraints.min_accuracy = None;
    let given = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    Question {
        problem: Arc::new(problem),
        parameters: given.collect::<Parameters>(),
        options: SolveOptions::default(),
    }
}

#[tokio::test]
async fn the_example_finds_the_best_cut() {
    let (_process, address) = start();
    let plugins = Plugins::new(vec![PluginConfig {
        name: "one-cut".into(),
        address,
        timeout_seconds: 20.0,
    }]);
    let plugin = plugins.unwrap().get("plugin/one-cut").unwrap();
    let ask = async |parameters: &[(&str, &str)]| -> Solved {
        let solved = plugin.solve(&question(parameters), &Ctx::unlimited()).await;
        solved.unwrap()
    };
    let solved = ask(&[]).await;
    assert!(solved.trouble.is_none(), "{}", solved.trouble.unwrap());
    assert_eq!(solved.solution.strategy, "plugin/one-cut");
    assert_eq!(solved.solution.placements[0].path(), "cam-1[0]→edge-1[1-2]");
    for (parameter, refusal) in [
        (
            "to",
            "refused: `to` names moon; known are cam-1, edge-1, cloud-1",
        ),
        (
            "from",
            "refused: unknown parameter `from`; it takes `to`, the node behind the cut",
        ),
    ] {
        let trouble = ask(&[(parameter, "moon")]).await.trouble.unwrap();
        assert!(trouble.fell_back);
        assert!(trouble.to_string().ends_with(refusal), "{trouble}");
    }
    // The camera cannot run the last block: no placement, and the fallback answers.
    let solved = ask(&[("to", "cam-1")]).await;
    assert_eq!(solved.solution.strategy, "optimal");
    let trouble = solved.trouble.unwrap().to_string();
    assert!(trouble.ends_with("ended without a placement"), "{trouble}");
}
