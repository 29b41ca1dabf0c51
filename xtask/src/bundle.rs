//! Everything for an air-gapped site, in one folder and one archive: images, chart, CRDs, a
//! manifest for k3s, bills of materials, checksums.

use crate::images::{self, Profile, VERSION, architecture};
use crate::run::{logged, output};
use crate::setup::Kit;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUMS: &str = "SHA256SUMS";

#[derive(clap::Args)]
pub(crate) struct BundleArgs {
    /// Build the images with the lab's profile instead of the release profile.
    #[arg(long)]
    dev: bool,
    /// Output folder; target/bundle by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// `cargo xtask bundle`.
pub(crate) fn run(kit: &Kit, args: &BundleArgs) -> Result<()> {
    let profile = Profile::release_unless(args.dev);
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| kit.target.join("bundle"));
    let out = std::path::absolute(out)?;
    let name = format!("lamina-airgap-{VERSION}-{}", architecture());
    let folder = out.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let images = folder.join("images");
    let files = images::shipped(kit, profile, &images)?;
    let bills = folder.join("sbom");
    create(&bills)?;
    for bill in files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "json"))
    {
        let to = bills.join(bill.file_name().unwrap_or_default());
        fs::rename(bill, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    let chart = package_chart(kit, &folder.join("chart"))?;
    copy_crds(kit, &folder.join("crds"))?;
    let manifest = folder.join("k3s/lamina.yaml");
    create(&folder.join("k3s"))?;
    let content = encode(&chart)?;
    fs::write(&manifest, helm_chart(&content))
        .with_context(|| format!("cannot write {}", manifest.display()))?;
    write_sums(&folder)?;
    let archive = out.join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.args([
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
    ])
    .arg("--create")
    .arg("--file")
    .arg(&archive)
    .arg("--directory")
    .arg(&out)
    .arg(&name);
    logged("tar", &mut tar, &kit.log("bundle"))?;
    println!("bundle: {}", archive.display());
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// The chart as helm takes it. Returns the file.
fn package_chart(kit: &Kit, folder: &Path) -> Result<PathBuf> {
    create(folder)?;
    let mut helm = Command::new(kit.tool("helm"));
    helm.current_dir(&kit.root)
        .args(["package", "charts/lamina", "--destination"])
        .arg(folder);
    logged("helm package", &mut helm, &kit.log("helm-package"))?;
    Ok(folder.join(format!("lamina-{VERSION}.tgz")))
}

fn copy_crds(kit: &Kit, folder: &Path) -> Result<()> {
    create(folder)?;
    for name in ["computenodes", "dnnmodels", "placements"] {
        let file = format!("{name}.yaml");
        let (from, to) = (kit.root.join("crds").join(&file), folder.join(&file));
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// A file in base64, on one line.
fn encode(file: &Path) -> Result<String> {
    output(Command::new("base64").arg("--wrap=0").arg(file))
        .with_context(|| format!("base64 of {} failed", file.display()))
}

/// The manifest that k3s's helm-controller turns into an installed chart: it contains the chart, so
/// that no repository is needed.
fn helm_chart(content: &str) -> String {
    format!(
        "# For k3s: into /var/lib/rancher/k3s/server/manifests/ on a server.
apiVersion: v1
kind: Namespace
metadata:
  name: lamina-system
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: helm.cattle.io/v1
kind: HelmChart
metadata: {{name: lamina, namespace: kube-system}}
spec:
  targetNamespace: lamina-system
  # Values of the chart; a HelmChartConfig of the same name changes them later.
  valuesContent: |
    image: {{pullPolicy: IfNotPresent}}
  chartContent: {content}
"
    )
}

/// Checksums of all files of the folder, as `sha256sum --check` reads them.
fn write_sums(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let mut text = String::new();
    for file in files {
        let name = file.strip_prefix(folder).unwrap_or(&file);
        text += &format!("{}  {}\n", sum(&file)?, name.display());
    }
    let sums = folder.join(SUMS);
    fs::write(&sums, text).with_context(|| format!("cannot write {}", sums.display()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn sum(file: &Path) -> Result<String> {
    let unreadable = || format!("cannot read {}", file.display());
    let mut hash = Sha256::new();
    let mut content = File::open(file).with_context(unreadable)?;
    let mut part = vec![0; 1 << 20];
    loop {
        let read = content.read(&mut part).with_context(unreadable)?;
        if read == 0 {
            break;
        }
        hash.update(&part[..read]);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_what_sha256sum_checks() {
        let folder = std::env::temp_dir().join(format!("lamina-sums-{}", std::process::id()));
        create(&folder.join("images")).unwrap();
        fs::write(folder.join("images/a.tar"), "abc").unwrap();
        write_sums(&folder).unwrap();
        let mut check = Command::new("sha256sum");
        check
            .current_dir(&folder)
            .args(["--check", "--strict", SUMS]);
        let before = check.status().unwrap();
        fs::write(folder.join("images/a.tar"), "abd").unwrap();
        let after = check.status().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert!(before.success() && !after.success());
    }

    #[test]
    fn the_manifest_carries_the_chart() {
        let text = helm_chart("AAAA");
        assert!(text.contains("kind: HelmChart"));
        assert!(text.ends_with("  chartContent: AAAA\n"));
        assert!(!text.contains("{{"));
    }
}
