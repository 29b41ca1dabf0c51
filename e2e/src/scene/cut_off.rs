//! A network with early exits, and a camera that loses every link under load.

use super::{AGENT_PORT, Result, Scene, SceneError};
use crate::workload::Finding;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::{sleep, timeout};

/// The model, as `examples/digits.yaml` names it.
pub const MODEL: &str = "digits";
/// Where requests originate.
const ENTRY: &str = "cam-1";
/// Requests per second.
const RATE: u32 = 20;
/// Duration before, during and after the cut.
const PHASE: Duration = Duration::from_secs(8);
/// Time for Python to import PyTorch and scikit-learn, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The client's counts, from start to end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Number of requests.
    pub sent: u64,
    /// Digits classified correctly.
    pub right: u64,
    /// Answers marked as cut off.
    pub cut_off: u64,
    /// The longest time of an answer.
    pub longest_seconds: f64,
    /// Answers by exit and host.
    pub by_node: BTreeMap<String, u64>,
    /// Answers that differ from PyTorch's at that exit, or that left at another exit than PyTorch's
    /// without being cut off.
    pub wrong: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// The first few of both.
    pub faults: Vec<String>,
}

/// Sends the camera one digit after the other, cuts it off from all hosts and from the
/// control plane, and restores its links.
///
/// # Errors
/// The client failed.
pub async fn run(scene: &Scene, told: &mut (dyn FnMut(&str) + Send)) -> Result<Seen> {
    let mut client = start(scene)?;
    let said = client.stdout.take().ok_or_else(|| failed("no output"))?;
    let mut lines = BufReader::new(said).lines();
    next(&mut lines).await?;
    told(&format!("{RATE} digits/s to {ENTRY}"));
    sleep(PHASE).await;
    scene.lab.partition(ENTRY)?;
    told(&format!("{ENTRY} loses every link"));
    sleep(PHASE).await;
    scene.lab.heal(ENTRY)?;
    told("the links are back");
    let seen = next(&mut lines).await?;
    serde_json::from_str(&seen).map_err(|e| failed(&format!("{e}: {seen}")))
}

fn start(scene: &Scene) -> Result<Child> {
    let url = format!("{}:{AGENT_PORT}", scene.lab.address(ENTRY)?);
    let seconds = (3 * PHASE).as_secs();
    scene
        .script(ENTRY, "digits_client.py")?
        .args(["stream", "--url", &url])
        .arg(format!("--rate={RATE}"))
        .arg(format!("--seconds={seconds}"))
        .arg("--file")
        .arg(scene.models.join(format!("{MODEL}.pt")))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(&e.to_string()))
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<String> {
    let line = timeout(PATIENCE, lines.next_line()).await;
    let line = line.map_err(|_| failed("it says nothing"))?;
    let line = line.map_err(|e| failed(&e.to_string()))?;
    line.ok_or_else(|| failed("it ended"))
}

fn failed(why: &str) -> SceneError {
    SceneError::Io(format!("the client of {MODEL}: {why}"))
}

/// The checks of a run.
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let answered = seen.sent.saturating_sub(seen.lost);
    let share = |count: u64| 100.0 * count as f64 / answered.max(1) as f64;
    let hosts: Vec<String> = seen
        .by_node
        .iter()
        .map(|(place, count)| format!("{:.0} % {place}", share(*count)))
        .collect();
    vec![
        Finding {
            passed: seen.sent > 0 && seen.lost == 0 && seen.wrong == 0,
            text: format!(
                "exits: {} requests sent while the camera lost every link, {} lost, {} wrong; the longest took {:.1} s{}",
                seen.sent,
                seen.lost,
                seen.wrong,
                seen.longest_seconds,
                seen.faults
                    .iter()
                    .map(|f| format!("\n       {f}"))
                    .collect::<String>()
            ),
        },
        Finding {
            passed: seen.by_node.len() > 1 && seen.cut_off > 0,
            text: format!(
                "exits: {:.0} % of the digits named right; answered {}; {} were cut off and say so",
                share(seen.right),
                hosts.join(", "),
                seen.cut_off
            ),
        },
    ]
}
