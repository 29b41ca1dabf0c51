//! Failures.

use crate::changes::{AGENT, OPERATOR_PLACE, all_rolled_out, host_on_path, rolled_out};
use crate::load::settle;
use anyhow::{Context, Result, ensure};
use lamina_e2e::Signal;
use lamina_e2e::scene::{SYSTEM, Step, poll};
use lamina_e2e::site::{ENTRY, Site};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::time::sleep;

/// Seconds until another operator leads after the first one's node is lost.
const LED_WITHIN: f64 = 20.0;

pub(crate) async fn container_killed_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    kill_agent(&host)?;
    // Before that, the loss is not noticed yet.
    sleep(Duration::from_secs(3)).await;
    Ok(format!("on {host}"))
}

pub(crate) async fn container_killed_at_the_entry(site: &mut Site) -> Result<String> {
    let before = container(site, ENTRY).await?;
    kill_agent(ENTRY)?;
    // Before the kubelet has noticed it, everything looks well.
    let begin = Instant::now();
    loop {
        let (restarts, is_ready) = container(site, ENTRY).await?;
        if restarts != before.0 && is_ready {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "no restart");
        sleep(Duration::from_millis(200)).await;
    }
    // kube-proxy hears of it last.
    sleep(Duration::from_secs(1)).await;
    Ok(format!("on {ENTRY}"))
}

/// How often the agent's container on `node` was restarted, and whether it is ready, as its
/// kubelet says.
async fn container(site: &Site, node: &str) -> Result<(String, bool)> {
    let on_node = format!("spec.nodeName={node}");
    let status = ".items[*].status.containerStatuses[*]";
    let wanted = format!("jsonpath={{{status}.restartCount}} {{{status}.ready}}");
    let query = ["get", "pods", "-n", SYSTEM, "-l", AGENT];
    let more = ["--field-selector", &on_node, "-o", &wanted];
    let said = site.cluster.kubectl(&[&query[..], &more].concat()).await?;
    let (restarts, is_ready) = said.split_once(' ').context("no container")?;
    Ok((restarts.to_owned(), is_ready.trim() == "true"))
}

/// Both daemons of a node, which pods outlive.
pub(crate) async fn kubelet_and_containerd_killed(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    for daemon in ["kubelet", "containerd"] {
        let kill = format!("kill -KILL $(cat /run/{daemon}.pid)");
        let killed = site
            .cluster
            .command(&host, "sh")?
            .args(["-c", &kill])
            .status();
        ensure!(killed.await?.success(), "{daemon} of {host} was not killed");
        sleep(Duration::from_secs(5)).await;
    }
    Ok(format!("on {host}"))
}

/// Both killed, and away for 10 s.
pub(crate) async fn api_server_and_datastore_killed(site: &mut Site) -> Result<String> {
    site.cluster
        .restart_api_server(Duration::from_secs(10))
        .await?;
    Ok("away for 10 s".to_owned())
}

/// Off for 20 s, then on again with its disk.
pub(crate) async fn power_failure_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    site.cluster.power_off(&host).await?;
    sleep(Duration::from_secs(20)).await;
    site.cluster.power_on(&host).await?;
    sleep(Duration::from_secs(5)).await;
    Ok(format!("{host} off for 20 s"))
}

/// As by the kernel: without a signal that the agent could catch.
fn kill_agent(node: &str) -> Result<()> {
    let pid = agent(node).with_context(|| format!("no agent runs on {node}"))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(())
}

/// The process id of a node's agent on this machine.
fn agent(node: &str) -> Option<i32> {
    let name = format!("--node-name={node}");
    let entries = fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        let is_agent = words.next()?.ends_with("lamina-node-agent") && words.next()? == "run";
        (is_agent && words.any(|word| word == name)).then_some(pid)
    })
}

/// A process outside the agent uses up the memory of the container's group: the kernel kills what
/// it chooses, as when a model uses too much.
pub(crate) async fn memory_used_up_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    let pid = agent(&host).with_context(|| format!("no agent runs on {host}"))?;
    let group = MemoryGroup::of(pid)?;
    let limit = group.narrow(128 << 20)?;
    let join = format!("echo $$ > {} && exec tail /dev/zero", group.processes());
    let mut glutton = Command::new("sh")
        .args(["-c", &join])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let kills = group.kills();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(15) && agent(&host) == Some(pid) {
        sleep(Duration::from_millis(200)).await;
    }
    let is_restarted = agent(&host) != Some(pid);
    let kills = group.kills().saturating_sub(kills);
    glutton.kill().await?;
    if !is_restarted {
        group.widen(&limit)?;
    }
    ensure!(is_restarted || kills > 0, "nothing was ended");
    let what = if is_restarted {
        "the agent was ended"
    } else {
        "a worker was ended"
    };
    Ok(format!("on {host}: {what}"))
}

/// The control group of a container, for its memory.
struct MemoryGroup {
    folder: PathBuf,
    is_unified: bool,
}

impl MemoryGroup {
    /// That of a process.
    fn of(pid: i32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let of_tree = |name: &str| {
            let line = text.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (trees, path) = rest.split_once(':')?;
                trees.split(',').any(|t| t == name).then_some(path)
            });
            line.map(|path| path.trim_start_matches('/').to_owned())
        };
        let root = Path::new("/sys/fs/cgroup");
        let (folder, is_unified) = match of_tree("memory") {
            Some(path) => (root.join("memory").join(path), false),
            None => {
                let path = of_tree("").context("the agent is in no control group")?;
                (root.join(path), true)
            }
        };
        ensure!(folder.exists(), "no {}", folder.display());
        Ok(Self { folder, is_unified })
    }

    fn processes(&self) -> String {
        self.folder.join("cgroup.procs").display().to_string()
    }

    fn limit_file(&self) -> PathBuf {
        let name = if self.is_unified {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        self.folder.join(name)
    }

    /// Limits the group to `bytes` beyond its usage. Returns the former limit.
    fn narrow(&self, bytes: u64) -> Result<String> {
        let name = if self.is_unified {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let used: u64 = fs::read_to_string(self.folder.join(name))?.trim().parse()?;
        let before = fs::read_to_string(self.limit_file())?;
        fs::write(self.limit_file(), (used + bytes).to_string())?;
        Ok(before.trim().to_owned())
    }

    fn widen(&self, limit: &str) -> Result<()> {
        Ok(fs::write(self.limit_file(), limit)?)
    }

    /// Number of processes killed by the kernel for lack of memory.
    fn kills(&self) -> u64 {
        let name = if self.is_unified {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

/// The cache's volume exceeds its limit: kubelet evicts the pod, and its volume is removed with it.
pub(crate) async fn cache_over_its_limit_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    let pod = agent_pod(site, &host).await?;
    let volume = format!("nodes/{host}/kubelet/pods/{pod}/volumes/kubernetes.io~empty-dir/cache");
    let file = site.cluster.dir().join(volume).join("filler");
    let fill = Command::new("fallocate")
        .args(["--length", "5GiB"])
        .arg(&file)
        .status();
    ensure!(fill.await?.success(), "{} cannot be filled", file.display());
    let begin = Instant::now();
    poll("the pod's eviction", Duration::from_secs(150), async || {
        let now = agent_pod(site, &host).await;
        Ok(match now {
            Ok(now) if now != pod => Step::Done(()),
            now => Step::NotYet(format!("{now:?}")),
        })
    })
    .await?;
    let seconds = begin.elapsed().as_secs_f64();
    rolled_out(site, "daemonset/lamina-agent").await?;
    Ok(format!("on {host}, evicted after {seconds:.0} s"))
}

/// The UID of the newest agent's pod of a node that has not ended.
async fn agent_pod(site: &Site, node: &str) -> Result<String> {
    let field = format!("spec.nodeName={node},status.phase=Running");
    let what = "jsonpath={.items[*].metadata.uid}";
    let get = ["get", "pods", "-n", SYSTEM, "-l", AGENT, "--field-selector"];
    let get = [get.as_slice(), &[field.as_str(), "-o", what]].concat();
    let said = site.cluster.kubectl(&get).await?;
    let uid = said.split_whitespace().next();
    Ok(uid
        .with_context(|| format!("no agent on {node}"))?
        .to_owned())
}

/// With two operators, the leader is lost with its node.
pub(crate) async fn power_failure_at_the_leader(site: &mut Site) -> Result<String> {
    const PLACE: &str = "operators=here";
    for node in ["edge-1", "cloud-1"] {
        let label = ["label", "node", node, PLACE, "--overwrite"];
        site.cluster.kubectl(&label).await?;
    }
    let place = format!("operator.nodeSelector.{PLACE}");
    site.install(&["--set", "operator.replicas=2", "--set", &place])
        .await?;
    all_rolled_out(site).await?;
    settle(site).await?;
    // A former leader frees the lease, and this one may just have acquired it.
    sleep(Duration::from_secs(5)).await;
    let pod = leader(site).await?;
    let node = "jsonpath={.spec.nodeName}";
    let get = ["get", "pod", "-n", SYSTEM, &pod, "-o", node];
    let node = site.cluster.kubectl(&get).await?;
    site.cluster.power_off(&node).await?;
    let begin = Instant::now();
    poll("another leader", Duration::from_secs(60), async || {
        Ok(match leader(site).await {
            Ok(now) if now != pod => Step::Done(()),
            now => Step::NotYet(format!("{now:?}")),
        })
    })
    .await?;
    let seconds = begin.elapsed().as_secs_f64();
    site.cluster.power_on(&node).await?;
    site.wait_kubelets(3).await?;
    site.install(&["--set", OPERATOR_PLACE]).await?;
    all_rolled_out(site).await?;
    ensure!(
        seconds <= LED_WITHIN,
        "another one led after {seconds:.1} s"
    );
    Ok(format!("{node} off, another one led after {seconds:.1} s"))
}

/// The holder of the lease.
async fn leader(site: &Site) -> Result<String> {
    let holder = "jsonpath={.spec.holderIdentity}";
    let get = ["get", "lease", "-n", SYSTEM, "lamina-operator"];
    let get = [get.as_slice(), &["-o", holder]].concat();
    let holder = site.cluster.kubectl(&get).await?;
    ensure!(!holder.is_empty(), "nobody leads");
    Ok(holder)
}
