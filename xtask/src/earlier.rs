//! Images and chart of an earlier revision, from which the tests' cluster is upgraded to this one
//! and rolled back: only this tests whether two builds understand each other.

use crate::images::architecture;
use crate::run::{logged, output};
use crate::setup::{Kit, cache_folder, cached};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Tag of its images, whatever its version, which may be the present one.
const TAG: &str = "earlier";
const IMAGES: [&str; 2] = ["operator", "node-agent"];

/// Builds `revision` with its own `cargo xtask images`, once for each commit. Returns a folder with
/// its archives (`images`) and its checkout (`source`).
pub(crate) fn prepare(kit: &Kit, revision: &str) -> Result<PathBuf> {
    let mut find = Command::new("git");
    let named = format!("{revision}^{{commit}}");
    find.current_dir(&kit.root)
        .args(["rev-parse", "--verify", &named]);
    let commit = output(&mut find).with_context(|| format!("git knows no revision {revision}"))?;
    let short = commit.get(..12).unwrap_or(&commit);
    let folder = cache_folder()?.join(format!("earlier-{short}"));
    let source = folder.join("source");
    cached(&source, |source| export(kit, &commit, source))?;
    cached(&folder.join("images"), |images| {
        println!("building the images of {short} (as long as a first build):");
        let target = folder.join("target");
        let mut build = kit.cargo();
        build
            .current_dir(&source)
            // A separate target: cargo confuses equal crates of two folders.
            .env("CARGO_TARGET_DIR", &target)
            .args(["run", "--quiet", "--package", "xtask", "--", "images"])
            .args(["--dev", "--out"])
            .arg(folder.join("built"));
        logged("its images", &mut build, &kit.log("earlier"))?;
        let version = version(&source)?;
        for image in IMAGES {
            retag(kit, &target.join("buildah"), image, &version, images)?;
        }
        Ok(())
    })?;
    Ok(folder)
}

/// The files of `commit`.
fn export(kit: &Kit, commit: &str, into: &Path) -> Result<()> {
    let mut archive = Command::new("git");
    archive.current_dir(&kit.root).args(["archive", commit]);
    let mut archive = archive
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start git")?;
    let files = archive.stdout.take().context("git gives no files")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--directory"])
        .arg(into)
        .stdin(files)
        .status()
        .context("cannot start tar")?;
    if !archive.wait()?.success() || !unpacked.success() {
        bail!("the files of {commit} could not be exported");
    }
    Ok(())
}

/// The version of its chart, and so of its images.
fn version(source: &Path) -> Result<String> {
    let chart = source.join("charts/lamina/Chart.yaml");
    let text =
        fs::read_to_string(&chart).with_context(|| format!("cannot read {}", chart.display()))?;
    let version = text.lines().find_map(|l| l.strip_prefix("appVersion:"));
    let version = version.context("its chart has no appVersion")?;
    Ok(version.trim().trim_matches('"').to_owned())
}

/// Writes the archive of `image` under [`TAG`] into the folder `images`.
fn retag(kit: &Kit, store: &Path, image: &str, version: &str, images: &Path) -> Result<()> {
    let reference = |tag: &str| format!("docker.io/lamina/{image}:{tag}");
    let archive = images.join(format!("lamina-{image}-{TAG}-{}.tar", architecture()));
    let mut push = Command::new("buildah");
    push.arg("--root")
        .arg(store)
        .arg("--runroot")
        .arg(store.with_extension("run"))
        .args(["push", "--quiet", "--disable-compression"])
        .arg(reference(version))
        .arg(format!(
            "oci-archive:{}:{}",
            archive.display(),
            reference(TAG)
        ));
    let log = kit.log(&format!("earlier-{image}"));
    logged(&format!("archive of its lamina/{image}"), &mut push, &log)
}
