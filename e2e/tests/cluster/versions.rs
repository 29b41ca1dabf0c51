//! Other versions: of the chart and its images, and of helm.
//!
//! The earlier version is that of `LAMINA_EARLIER`, which `cargo xtask test --only cluster
//! --earlier REVISION` builds; without it, the images of this build under another tag.

use crate::changes::{OPERATOR_PLACE, all_rolled_out, answers, gone};
use crate::load::settle;
use anyhow::{Context as _, Result, ensure};
use lamina_e2e::scene::SYSTEM;
use lamina_e2e::site::{ENTRY, RELEASE, Site, archives};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Tag of another build's images.
const EARLIER: &str = "earlier";
/// Tag under which this build's images replace them.
const STAND_IN: &str = "0.0.9";
const NODES: [&str; 3] = [ENTRY, "edge-1", "cloud-1"];

/// An earlier version, with its images in the nodes' stores.
struct Earlier {
    chart: PathBuf,
    tag: &'static str,
}

impl Earlier {
    async fn bring(site: &Site) -> Result<Self> {
        let Some(folder) = std::env::var_os("LAMINA_EARLIER").map(PathBuf::from) else {
            return Self::stand_in(site).await;
        };
        let archives = archives(&folder.join("images"))?;
        ensure!(!archives.is_empty(), "no archives in {}", folder.display());
        site.cluster.import(&archives).await?;
        Ok(Self {
            chart: folder.join("source/charts/lamina"),
            tag: EARLIER,
        })
    }

    async fn stand_in(site: &Site) -> Result<Self> {
        tag_as(site, STAND_IN).await?;
        Ok(Self {
            chart: earlier_chart(site)?,
            tag: STAND_IN,
        })
    }
}

/// Adds another tag to the images of this build.
async fn tag_as(site: &Site, other: &str) -> Result<()> {
    for node in NODES {
        for image in ["operator", "node-agent"] {
            let name = |version| format!("docker.io/lamina/{image}:{version}");
            let mut tag = site.cluster.command(node, "ctr")?;
            tag.args(["--namespace=k8s.io", "images", "tag", "--force"]);
            tag.args([name(VERSION), name(other)]);
            ensure!(tag.output().await?.status.success(), "no second tag");
        }
    }
    Ok(())
}

/// From the earlier version to this one, and back by `helm rollback`.
pub(crate) async fn upgraded_and_rolled_back(site: &mut Site) -> Result<String> {
    let begin = Instant::now();
    let mut times = Vec::new();
    let Earlier { chart, tag } = Earlier::bring(site).await?;
    let chart = chart.to_string_lossy();
    let tagged = format!("image.tag={tag}");
    let install = [
        "upgrade",
        RELEASE,
        &chart,
        "--namespace",
        SYSTEM,
        "--reset-values",
        "--set",
        OPERATOR_PLACE,
        "--set",
        &tagged,
    ];
    site.cluster.helm(&install).await?;
    runs(site, tag).await?;
    times.push(begin.elapsed().as_secs());
    site.install(&["--set", OPERATOR_PLACE]).await?;
    runs(site, VERSION).await?;
    times.push(begin.elapsed().as_secs());
    let rollback = ["rollback", RELEASE, "--namespace", SYSTEM];
    site.cluster.helm(&rollback).await?;
    runs(site, tag).await?;
    times.push(begin.elapsed().as_secs());
    site.install(&["--set", OPERATOR_PLACE]).await?;
    runs(site, VERSION).await?;
    Ok(format!(
        "{tag} at {} s, {VERSION} at {} s, rolled back at {} s",
        times[0], times[1], times[2]
    ))
}

/// Waits until the pods run this version.
async fn runs(site: &Site, version: &str) -> Result<()> {
    all_rolled_out(site).await?;
    settle(site).await?;
    let images = "jsonpath={.items[*].spec.template.spec.containers[*].image}";
    let get = ["get", "deployments,daemonsets", "-n", SYSTEM, "-o", images];
    let images = site.cluster.kubectl(&get).await?;
    let tag = format!(":{version}");
    let is_it = images.split_whitespace().all(|image| image.ends_with(&tag));
    ensure!(is_it, "{images} are not of {version}");
    Ok(())
}

/// A copy of the chart with the earlier version's number.
fn earlier_chart(site: &Site) -> Result<PathBuf> {
    let folder = site.cluster.dir().join("earlier-chart");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    copy(site.chart(), &folder)?;
    let file = folder.join("Chart.yaml");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace(VERSION, STAND_IN))?;
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// helm 3 uninstalls a release of helm 4 and reinstalls it, and helm 4 upgrades that.
pub(crate) async fn taken_over_by_helm_3(site: &mut Site) -> Result<String> {
    let begin = Instant::now();
    let here = ["--namespace", SYSTEM];
    let uninstall = ["uninstall", RELEASE, "--wait"];
    let helm3 = &site.cluster;
    helm3.helm3(&[uninstall.as_slice(), &here].concat()).await?;
    gone(site).await?;
    let chart = site.chart().to_string_lossy().into_owned();
    let install = ["install", RELEASE, &chart, "--set", OPERATOR_PLACE];
    helm3.helm3(&[install.as_slice(), &here].concat()).await?;
    all_rolled_out(site).await?;
    settle(site).await?;
    answers(site).await?;
    let installed = begin.elapsed().as_secs_f64();
    let test = ["test", RELEASE, "--timeout=150s"];
    helm3.helm3(&[test.as_slice(), &here].concat()).await?;
    site.install(&["--set", OPERATOR_PLACE, "--set", "logFormat=text"])
        .await
        .context("helm 4 after helm 3")?;
    all_rolled_out(site).await?;
    settle(site).await?;
    Ok(format!("served again by helm 3 after {installed:.1} s"))
}
