//! A problem, and plugins as processes.

#![allow(dead_code)] // each test file uses its part

use lamina_placement::{Parameters, Problem, SolveOptions};
use lamina_plugin_host::{Plugin, PluginConfig, Plugins, Question};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

pub(crate) const EXAMPLE: &str = include_str!("../../../examples/plugins/problem.json");

/// The documented example.
pub(crate) fn example() -> Problem {
    serde_json::from_str(EXAMPLE).unwrap()
}

/// The same without side exits, which need thresholds.
pub(crate) fn problem() -> Problem {
    let mut problem = example();
    let workload = &mut problem.workloads[0];
    workload.exits.clear();
    workload.constraints.min_accuracy = None;
    problem
}

pub(crate) fn question(problem: Problem) -> Question {
    Question {
        problem: Arc::new(problem),
        parameters: Parameters::new(),
        options: SolveOptions::default(),
    }
}

/// The plugin with that name and address.
pub(crate) fn plugin(name: &str, address: &str, timeout_seconds: f64) -> Arc<Plugin> {
    let plugins = Plugins::new(vec![PluginConfig {
        name: name.to_owned(),
        address: address.to_owned(),
        timeout_seconds,
    }]);
    plugins.unwrap().get(&format!("plugin/{name}")).unwrap()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn python() -> Command {
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with grpcio: run `cargo xtask test`");
    let mut command = Command::new(python);
    command
        .env("PYTHONPATH", root().join("examples/plugins/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A plugin that runs until this is dropped.
pub(crate) struct Process {
    child: Child,
    /// Its reported address.
    pub(crate) address: String,
}

impl Process {
    /// Starts it, and waits until it listens.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let said = line.trim_end().strip_prefix("listening on ");
        let address = said.unwrap_or_else(|| panic!("it says {line:?}"));
        let address = match address.strip_prefix("port ") {
            Some(port) => format!("http://127.0.0.1:{port}"),
            None if address.starts_with("unix:") => address.to_owned(),
            None => format!("http://{address}"),
        };
        Self { child, address }
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) {
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
