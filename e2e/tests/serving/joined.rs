//! A machine without a kubelet: a process in its own network, which joins by a token, serves beside
//! the agents of Nodes, recovers after restarts, and is removed.

use crate::good::named;
use anyhow::{Context as _, Result, ensure};
use kube::{Api, ResourceExt as _};
use lamina_crds::conditions::{READY, is_true};
use lamina_crds::{ComputeNode, DnnModel};
use lamina_e2e::scene::{CLOUD, MACHINE, Scene, Step, poll};
use lamina_e2e::workload::Line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const MODEL: &str = "on-the-roof";
const NETWORK: &str = "mobilenet-v2";
const SOON: Duration = Duration::from_secs(60);
/// Time for the model to be prepared, and for a plan with the machine in it.
const PATIENCE: Duration = Duration::from_secs(180);
const OPERATOR_PORT: u16 = 9000;

/// A program of this build.
fn binary(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("LAMINA_BIN").context("LAMINA_BIN is not set")?;
    Ok(PathBuf::from(folder).join(name))
}

/// Runs `kubectl lamina join` as a user does, and returns the file.
async fn token(scene: &Scene, host: &str, folder: &Path) -> Result<PathBuf> {
    let kubectl = scene.lab.tool("kubectl")?;
    let tools = kubectl.parent().context("kubectl lies nowhere")?;
    let file = folder.join(format!("{host}.join"));
    let operator = format!("{}:{OPERATOR_PORT}", scene.lab.address(CLOUD)?);
    let output = Command::new(binary("kubectl-lamina")?)
        .args(["join", host, "--operator", &operator])
        .args(["--tier", "device", "--label", "site=roof", "--out"])
        .arg(&file)
        .env("PATH", tools)
        .env("KUBECONFIG", scene.lab.kubeconfig())
        .env("HOME", folder)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(file)
}

/// The agent as the machine's own process.
struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it on `machine` with its join file; it keeps its state in `cache`.
    fn start(scene: &Scene, machine: &str, join: &Path, cache: &Path) -> Result<Self> {
        Self::start_with(scene, machine, join, cache, &[])
    }

    fn start_with(
        scene: &Scene,
        machine: &str,
        join: &Path,
        cache: &Path,
        more: &[&str],
    ) -> Result<Self> {
        std::fs::create_dir_all(cache)?;
        let log = cache.with_extension("log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)?;
        let child = scene
            .lab
            .command(machine, binary("lamina-node-agent")?)?
            .args(["run", "--log-format", "text", "--join"])
            .arg(join)
            .arg("--cache-dir")
            .arg(cache)
            .args(more)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, log })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log has `text`.
    async fn says(&self, text: &str) -> Result<()> {
        let what = format!("`{text}` in the log");
        let said = poll(&what, SOON, async || {
            let log = self.log();
            Ok(if log.contains(text) {
                Step::Done(())
            } else {
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                Step::NotYet(last.join("\n"))
            })
        });
        Ok(said.await?)
    }

    async fn end(mut self, signal: Signal) -> Result<()> {
        let id = self.child.id().context("it has ended")?;
        kill(Pid::from_raw(id.try_into()?), signal)?;
        timeout(SOON, self.child.wait()).await??;
        Ok(())
    }
}

async fn host(scene: &Scene) -> Result<Option<ComputeNode>> {
    let api: Api<ComputeNode> = Api::all(scene.lab.client());
    Ok(api.get_opt(MACHINE).await?)
}

/// Waits until condition Ready of the machine is as `wanted`, and its message has `text`.
async fn ready(scene: &Scene, wanted: bool, text: &str) -> Result<()> {
    let what = format!("{MACHINE} Ready={wanted} with `{text}`");
    let found = poll(&what, SOON, async || {
        let object: Api<ComputeNode> = Api::all(scene.lab.client());
        let object = object.get_opt(MACHINE).await?;
        let status = object.and_then(|o| o.status).unwrap_or_default();
        let is_it = is_true(&status.conditions, READY) == wanted;
        let message = status.conditions.iter().find(|c| c.type_ == READY);
        let message = message.map_or("", |c| &c.message);
        Ok(if is_it && message.contains(text) {
            Step::Done(())
        } else {
            Step::NotYet(format!("{:?}", status.conditions))
        })
    });
    Ok(found.await?)
}

/// MobileNetV2 for requests at the machine, with its first blocks pinned there.
fn model(scene: &Scene) -> Result<String> {
    let text = scene.example("mobilenet-v2")?;
    let text = text.replace("name: mobilenet-v2\n", &format!("name: {MODEL}\n"));
    let text = text.replace("kubernetes.io/hostname: cam-1", "site: roof");
    ensure!(
        text.contains("site: roof") && text.contains(MODEL),
        "{text}"
    );
    Ok(text)
}

/// A second machine uses the token of the first one.
async fn nobody_else_joins_by_it(scene: &Scene, join: &Path, folder: &Path) -> Result<()> {
    // Beside the agent of a Node, which has the usual ports.
    let ports = ["--port=18001", "--rest-port=0", "--admin-port=19091"];
    let thief = Agent::start_with(scene, "cam-2", join, &folder.join("thief"), &ports)?;
    let said = thief.says("another machine has joined").await;
    thief.end(Signal::SIGKILL).await?;
    said
}

/// Every photograph at the machine is named as PyTorch names it, by blocks there and elsewhere.
async fn answers(scene: &Scene) -> Result<()> {
    for photograph in named(scene, MACHINE, MODEL, NETWORK).await? {
        let computed = photograph.timing.iter().filter(|hop| hop.compute_us > 0);
        let hosts: Vec<&str> = computed.map(|hop| hop.node.as_str()).collect();
        ensure!(hosts.contains(&MACHINE), "computed on {hosts:?}");
        ensure!(hosts.len() >= 2, "computed on {hosts:?}");
    }
    Ok(())
}

async fn joins_and_serves(scene: &Scene, folder: &Path) -> Result<()> {
    // The name of a Node cannot be used.
    let Err(refused) = token(scene, "cam-1", folder).await else {
        anyhow::bail!("a Node's name is given to a machine");
    };
    ensure!(
        refused.to_string().contains("a Node is called"),
        "{refused}"
    );

    let join = token(scene, MACHINE, folder).await?;
    ready(scene, false, "a machine may join as this host until").await?;
    let cache = folder.join("cache");
    let agent = Agent::start(scene, MACHINE, &join, &cache)?;
    ready(scene, true, "GFLOP/s measured").await?;
    let object = host(scene).await?.context("no ComputeNode")?;
    ensure!(object.owner_references().is_empty(), "{object:?}");
    let status = object.status.clone().unwrap_or_default();
    let address = format!("{}:8001", scene.lab.address(MACHINE)?);
    ensure!(status.address == address, "{}", status.address);
    nobody_else_joins_by_it(scene, &join, folder).await?;

    // Prepared by a host of the cluster, computed by all.
    scene.apply(&model(scene)?).await?;
    scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await?;
    answers(scene).await?;

    // Power failure: the machine has its certificate and its last wish.
    agent.end(Signal::SIGKILL).await?;
    ready(scene, false, "no heartbeat").await?;
    let agent = Agent::start(scene, MACHINE, &join, &cache)?;
    ready(scene, true, "GFLOP/s measured").await?;
    scene.wait_ready(MODEL, PATIENCE, &mut |_| ()).await?;
    answers(scene).await?;

    // The operator is replaced under a load at the machine.
    let load = ["--rate=2", "--seconds=20", "--deadline=20", "--images=60"];
    let load = [&load[..], &["--reference=mobilenet-v2"]].concat();
    let load: Vec<String> = load.into_iter().map(str::to_owned).collect();
    let client = scene.client(MACHINE, "load", MODEL, &load)?;
    scene.kill("operator", None, Signal::SIGKILL).await?;
    let lines = client.finish(PATIENCE).await?;
    let summary = lines.into_iter().find_map(|line| match line {
        Line::Summary(summary) => Some(summary),
        _ => None,
    });
    let summary = summary.context("the client gave no summary")?;
    ensure!(
        summary.sent > 0 && summary.correct == summary.sent,
        "{summary:?}"
    );
    ready(scene, true, "GFLOP/s measured").await?;
    answers(scene).await?;

    // It is removed: its certificate is no longer accepted.
    let delete = ["delete", "computenode", MACHINE, "--wait=true"];
    scene.lab.kubectl(&delete).await?;
    agent.says("counts no more").await?;
    let model = poll("the model without its entry", SOON, async || {
        let api: Api<DnnModel> = Api::namespaced(scene.lab.client(), "default");
        let status = api.get(MODEL).await?.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == READY);
        Ok(match ready {
            Some(c) if c.status == "False" => Step::Done(()),
            other => Step::NotYet(format!("{other:?}")),
        })
    });
    model.await?;
    ensure!(host(scene).await?.is_none(), "it is there again");
    agent.end(Signal::SIGTERM).await?;

    // Its old file is refused, and a new one admits the same machine.
    let agent = Agent::start(scene, MACHINE, &join, &folder.join("old"))?;
    agent.says("is not to join by this token").await?;
    agent.end(Signal::SIGKILL).await?;
    let join = token(scene, MACHINE, folder).await?;
    let agent = Agent::start(scene, MACHINE, &join, &cache)?;
    ready(scene, true, "GFLOP/s measured").await?;
    agent.end(Signal::SIGKILL).await
}

pub(crate) async fn a_machine_without_a_kubelet_joins_serves_and_leaves(
    scene: &Scene,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let outcome = joins_and_serves(scene, folder.path()).await;
    if outcome.is_err() {
        for log in ["cache.log", "thief.log", "old.log"] {
            let log = folder.path().join(log);
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(20).collect();
            println!("{}:\n{}", log.display(), last.join("\n"));
        }
    }
    for object in [["dnn", MODEL], ["computenode", MACHINE]] {
        let delete = [
            &["delete"][..],
            &object,
            &["--ignore-not-found", "--wait=true"],
        ];
        scene.lab.kubectl(&delete.concat()).await?;
    }
    scene.wait_nodes(5, SOON).await?;
    outcome
}
