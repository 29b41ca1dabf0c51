//! A cluster of real kubelets on this machine: its requirements besides the lab's kit, and the
//! program that runs it.

use crate::images::{self, Profile};
use crate::run::{logged, output};
use crate::setup::{self, KUBERNETES, Kit, cache_folder, cached};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const KINE: &str = "0.17.5";
/// The older helm in use; the lab's own is helm 4.
const HELM3: &str = "3.22.0";
/// Programs, and their Debian packages.
const PROGRAMS: [(&str, &str); 4] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("buildah", "buildah"),
];

#[derive(clap::Args)]
pub(crate) struct ClusterArgs {
    /// Leave everything running at the end and print how to look at it.
    #[arg(long)]
    keep: bool,
    /// Build the images with the release profile instead of the lab's.
    #[arg(long)]
    release: bool,
}

/// `cargo xtask cluster`.
pub(crate) fn run(kit: &Kit, args: &ClusterArgs) -> Result<ExitCode> {
    let profile = Profile::release_unless(!args.release);
    let env = prepare(kit, profile)?;
    crate::build::binaries(kit)?;
    let mut program = Command::new(kit.target.join("debug/lamina-cluster"));
    program.current_dir(&kit.root).envs(kit.env()).envs(env);
    if args.keep {
        program.arg("--keep");
    }
    let status = program.status().context("cannot start the cluster")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the programs and images that a cluster needs. Returns the environment that
/// names them.
pub(crate) fn prepare(kit: &Kit, profile: Profile) -> Result<Vec<(&'static str, PathBuf)>> {
    require_programs()?;
    let tools = tools(kit)?;
    let images = images::for_cluster(kit, profile)?;
    Ok(vec![
        ("LAMINA_CLUSTER_TOOLS", tools),
        ("LAMINA_IMAGES", images),
    ])
}

/// An error that names the Debian packages to install.
fn require_programs() -> Result<()> {
    let is_missing = |program: &str| output(Command::new(program).arg("--version")).is_none();
    let missing: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| is_missing(program))
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "missing: {0}; install them (Debian: apt-get install --no-install-recommends {0} containernetworking-plugins)",
        missing.join(" ")
    );
}

/// kubelet, kube-proxy, kine and helm 3, built from their Go modules and cached by version.
fn tools(kit: &Kit) -> Result<PathBuf> {
    let folder = cache_folder()?.join(format!(
        "cluster-tools-k8s{KUBERNETES}-kine{KINE}-helm{HELM3}"
    ));
    cached(&folder, |folder| {
        setup::check_go()?;
        println!(
            "building kubelet, kube-proxy, kine and helm 3 (about 6 minutes on 2 cores, once):"
        );
        let mut build = setup::go_build(&kit.root.join("e2e/tools/kube"), folder);
        build.arg("-ldflags").arg(setup::kubernetes_stamp());
        build.args([
            "k8s.io/kubernetes/cmd/kubelet",
            "k8s.io/kubernetes/cmd/kube-proxy",
        ]);
        let what = format!("kubelet and kube-proxy {KUBERNETES}");
        logged(&what, &mut build, &kit.log("kubelet"))?;
        let mut build = setup::go_build(&kit.root.join("e2e/tools/kine"), &folder.join("kine"));
        // SQLite is written in C.
        build.env("CGO_ENABLED", "1");
        build.args(["-ldflags", "-s -w", "github.com/k3s-io/kine"]);
        logged(&format!("kine {KINE}"), &mut build, &kit.log("kine"))?;
        let mut install = setup::go_install("helm.sh/helm/v3/cmd/helm", HELM3, folder);
        let what = format!("helm {HELM3}");
        logged(&what, &mut install, &kit.log("helm3"))?;
        // Not the name of the lab's own.
        fs::rename(folder.join("helm"), folder.join("helm3")).context("cannot name helm 3")
    })?;
    Ok(folder)
}
