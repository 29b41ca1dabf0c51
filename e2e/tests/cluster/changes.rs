//! Deliberate changes by an administrator.

use super::MODEL;
use crate::load::settle;
use anyhow::{Context, Result, ensure};
use lamina_e2e::scene::{SYSTEM, Step, objects, poll};
use lamina_e2e::site::{ENTRY, RELEASE, Site};
use lamina_e2e::workload::{Line, Photograph};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const OPERATOR: &str = "app.kubernetes.io/component=operator";
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const AGENT: &str = "app.kubernetes.io/component=agent";
/// The operator runs on the entry, which no case here takes down.
pub(crate) const OPERATOR_PLACE: &str = "operator.nodeSelector.kubernetes\\.io/hostname=cam-1";

/// Installs into a namespace that enforces the restricted standard, up to the first answers.
pub(crate) async fn install(site: &Site) -> Result<String> {
    let begin = Instant::now();
    let seconds = || begin.elapsed().as_secs_f64();
    let namespace = ["create", "namespace", SYSTEM];
    site.cluster.kubectl(&namespace).await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    site.cluster
        .kubectl(&["label", "namespace", SYSTEM, restricted])
        .await?;
    site.install(&["--set", OPERATOR_PLACE]).await?;
    let installed = seconds();
    objects::wait_nodes(&site.cluster.client(), 3, Duration::from_secs(120)).await?;
    let hosts = seconds();
    // With three nodes and a compiler on two processors, a profile may leave no capacity for a
    // declared rate.
    let example = site.example(MODEL)?;
    let undeclared = example.replace("    requestsPerSecond: 3\n", "");
    ensure!(undeclared != example, "the example declares another rate");
    site.cluster.apply(&undeclared).await?;
    settle(site).await?;
    let ready = seconds();
    answers(site).await?;
    Ok(format!(
        "installed after {installed:.1} s, three hosts Ready after {hosts:.1} s, \
         model Ready after {ready:.1} s, first answers after {:.1} s",
        seconds()
    ))
}

/// Three photographs, named as PyTorch names them.
pub(crate) async fn answers(site: &Site) -> Result<()> {
    let client = site.client("photographs", MODEL, &[]).await?;
    let lines = client.finish(Duration::from_secs(90)).await?;
    let is_right = |p: &Photograph| p.label == p.torch_label && p.max_abs_diff <= 1e-4;
    let right = lines.iter().filter(|line| match line {
        Line::Photograph(p) => is_right(p),
        _ => false,
    });
    ensure!(right.count() == 3, "not the three right answers: {lines:?}");
    Ok(())
}

/// The host of the last segment, other than the entry.
pub(crate) async fn host_on_path(site: &Site) -> Result<String> {
    let placement = objects::placement(&site.cluster.client(), MODEL).await?;
    let status = placement.and_then(|p| p.status).context("no placement")?;
    let segments = status.active.context("nothing serves")?.segments;
    let host = segments.last().context("no segment")?.host.node.clone();
    ensure!(host != ENTRY, "the last segment is on the entry");
    Ok(host)
}

pub(crate) async fn operator_pod_deleted(site: &mut Site) -> Result<String> {
    let arguments = ["delete", "pod", "-n", SYSTEM, "-l", OPERATOR];
    site.cluster.kubectl(&arguments).await?;
    rolled_out(site, "deployment/lamina-operator").await
}

pub(crate) async fn pod_deleted_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    let field = format!("spec.nodeName={host}");
    let arguments = [
        "delete",
        "pod",
        "-n",
        SYSTEM,
        "-l",
        AGENT,
        "--field-selector",
    ];
    let arguments = [arguments.as_slice(), &[field.as_str()]].concat();
    site.cluster.kubectl(&arguments).await?;
    rolled_out(site, "daemonset/lamina-agent").await?;
    Ok(format!("on {host}"))
}

/// Cordoned and drained as before maintenance, and restored once no block is left.
pub(crate) async fn node_drained_on_the_path(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    let begin = Instant::now();
    let drain = [
        "drain",
        &host,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
    ];
    let timeout = ["--timeout=60s"];
    site.cluster
        .kubectl(&[drain.as_slice(), &timeout].concat())
        .await?;
    poll("the host's blocks elsewhere", PATIENCE, async || {
        let now = host_on_path(site).await;
        Ok(match now {
            Ok(now) if now != host => Step::Done(()),
            _ => Step::NotYet(format!("{now:?}")),
        })
    })
    .await?;
    let emptied = begin.elapsed().as_secs_f64();
    site.cluster.kubectl(&["uncordon", &host]).await?;
    Ok(format!("{host}, emptied in {emptied:.1} s"))
}

/// Removed from the cluster with its blocks; a machine of the same name joins later.
pub(crate) async fn node_deleted_and_replaced(site: &mut Site) -> Result<String> {
    let host = host_on_path(site).await?;
    site.cluster.kubectl(&["delete", "node", &host]).await?;
    site.cluster.power_off(&host).await?;
    sleep(Duration::from_secs(15)).await;
    site.cluster.power_on(&host).await?;
    site.wait_kubelets(3).await?;
    Ok(format!("{host} away for 15 s"))
}

pub(crate) async fn agents_restarted_one_by_one(site: &mut Site) -> Result<String> {
    let restart = ["rollout", "restart", "-n", SYSTEM, "daemonset/lamina-agent"];
    site.cluster.kubectl(&restart).await?;
    rolled_out(site, "daemonset/lamina-agent").await
}

/// Operator and agents both get a new pod template.
pub(crate) async fn chart_upgraded(site: &mut Site) -> Result<String> {
    site.install(&["--set", OPERATOR_PLACE, "--set", "logFormat=text"])
        .await?;
    all_rolled_out(site).await
}

/// Models outlive the chart, and are served again by the next one.
pub(crate) async fn uninstalled_and_installed_again(site: &mut Site) -> Result<String> {
    let begin = Instant::now();
    let seconds = || begin.elapsed().as_secs_f64();
    let uninstall = ["uninstall", RELEASE, "--namespace", SYSTEM, "--wait"];
    site.cluster.helm(&uninstall).await?;
    gone(site).await?;
    let uninstalled = seconds();
    site.install(&["--set", OPERATOR_PLACE]).await?;
    let installed = seconds();
    all_rolled_out(site).await?;
    settle(site).await?;
    let served = seconds();
    answers(site).await?;
    Ok(format!(
        "uninstalled in {uninstalled:.1} s, installed at {installed:.1} s, served at {served:.1} s"
    ))
}

/// After an uninstall: waits until the chart's pods are gone; the model must remain.
pub(crate) async fn gone(site: &Site) -> Result<()> {
    let pods = ["wait", "--for=delete", "pod", "--timeout=60s", "-n", SYSTEM];
    // A test's pod stays, as with every chart.
    let ours = ["-l", "app.kubernetes.io/component in (operator,agent)"];
    site.cluster
        .kubectl(&[pods.as_slice(), &ours].concat())
        .await?;
    let model = objects::model(&site.cluster.client(), MODEL).await?;
    ensure!(model.is_some(), "the model went with the chart");
    Ok(())
}

/// Operator and agents run what was installed last.
pub(crate) async fn all_rolled_out(site: &Site) -> Result<String> {
    rolled_out(site, "deployment/lamina-operator").await?;
    rolled_out(site, "daemonset/lamina-agent").await
}

/// Waits for kubectl's own verdict on a rollout.
pub(crate) async fn rolled_out(site: &Site, what: &str) -> Result<String> {
    let begin = Instant::now();
    let status = ["rollout", "status", "-n", SYSTEM, "--timeout=120s", what];
    site.cluster.kubectl(&status).await?;
    Ok(format!(
        "rolled out in {:.1} s",
        begin.elapsed().as_secs_f64()
    ))
}
