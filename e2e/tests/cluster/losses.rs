//! What breaks.

use crate::changes::host_on_path;
use anyhow::{Context, Result, ensure};
use lamina_e2e::Signal;
use lamina_e2e::site::{ENTRY, Site};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;
use tokio::time::sleep;

pub(crate) async fn container_killed_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    kill_agent(&host)?;
    // Before that, nobody has noticed yet.
    sleep(Duration::from_secs(3)).await;
    Ok(format!("on {host}"))
}

pub(crate) async fn container_killed_at_the_entry(_site: &mut Site) -> Result<String> {
    kill_agent(ENTRY)?;
    sleep(Duration::from_secs(3)).await;
    Ok(format!("on {ENTRY}"))
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

/// As the kernel would: no signal that the agent could catch.
fn kill_agent(node: &str) -> Result<()> {
    let pid = agent(node).with_context(|| format!("no agent runs on {node}"))?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(())
}

/// The process of a node's agent, as this machine numbers it.
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
