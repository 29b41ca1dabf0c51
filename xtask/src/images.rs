//! Container images of both programs, built without a registry: buildah follows the Dockerfiles in
//! docker/, and the stages that would pull a base are made here and passed to it as named build
//! contexts.

mod budget;
mod catalogue;
mod sbom;

use crate::run::{logged, output};
use crate::setup::{Kit, TORCH, cache_folder, cached, hash_of};
use anyhow::{Context, Result, bail};
use catalogue::{Image, NODE_AGENT, OPERATOR, PAUSE};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use catalogue::{VERSION, architecture};

#[derive(clap::Args)]
pub(crate) struct ImagesArgs {
    /// Build with the lab's profile instead of the release profile: faster, and larger.
    #[arg(long)]
    dev: bool,
    /// Output folder for the archives; target/images by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As for the lab's tests.
    Dev,
    /// As released.
    Release,
}

impl Profile {
    /// The release profile, unless the lab's own is good enough.
    pub(crate) const fn release_unless(is_dev: bool) -> Self {
        if is_dev { Self::Dev } else { Self::Release }
    }
}

/// The files for an image, in a folder of the cache.
const CONTENT: &str = "content";

/// `cargo xtask images`.
pub(crate) fn run(kit: &Kit, args: &ImagesArgs) -> Result<()> {
    let profile = Profile::release_unless(args.dev);
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| kit.target.join("images"));
    shipped(kit, profile, &out)?;
    Ok(())
}

/// Builds the released images into `out`: an OCI archive and an SBOM for each. Returns the files.
pub(crate) fn shipped(kit: &Kit, profile: Profile, out: &Path) -> Result<Vec<PathBuf>> {
    let builder = Builder::new(kit, profile)?;
    println!(
        "building the images of Lamina {VERSION} for {}:",
        architecture()
    );
    builder.programs()?;
    let mut files = Vec::new();
    let mut sizes = Vec::new();
    for image in [OPERATOR, NODE_AGENT] {
        let built = builder.image(image, out)?;
        let list = built.archive.with_extension("cdx.json");
        sbom::write(kit, image, &built.rootfs, &list)?;
        let libtorch = built.libtorch.as_deref();
        sizes.push(budget::measure(
            image.name,
            &built.size,
            &built.archive,
            libtorch,
        )?);
        files.extend([built.archive, list]);
    }
    print!("{}", budget::table(&sizes));
    if profile == Profile::Release {
        budget::check(&sizes)?;
    }
    Ok(files)
}

/// Archives for the tests' cluster, including `pause`. Returns their folder.
pub(crate) fn for_cluster(kit: &Kit, profile: Profile) -> Result<PathBuf> {
    let builder = Builder::new(kit, profile)?;
    println!("building the images:");
    builder.programs()?;
    let out = kit.target.join("cluster-images");
    // All archives of the folder go into the nodes' stores: remove those of an earlier version.
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    for image in [PAUSE, OPERATOR, NODE_AGENT] {
        builder.image(image, &out)?;
    }
    Ok(out)
}

/// A built image.
struct Built {
    archive: PathBuf,
    rootfs: PathBuf,
    libtorch: Option<PathBuf>,
    /// From buildah.
    size: String,
}

struct Builder<'a> {
    kit: &'a Kit,
    profile: Profile,
    /// buildah's storage.
    store: PathBuf,
    cache: PathBuf,
}

impl<'a> Builder<'a> {
    fn new(kit: &'a Kit, profile: Profile) -> Result<Self> {
        if output(Command::new("buildah").arg("--version")).is_none() {
            bail!("buildah is missing: install it (Debian: apt-get install buildah)");
        }
        Ok(Self {
            kit,
            profile,
            store: kit.target.join("buildah"),
            cache: cache_folder()?,
        })
    }

    fn programs_folder(&self) -> PathBuf {
        self.kit.target.join("image-programs")
    }

    /// Builds the programs and puts stripped copies into a folder.
    fn programs(&self) -> Result<()> {
        let folder = self.programs_folder();
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut cargo = self.kit.cargo();
        let (built, time) = match self.profile {
            // The whole workspace, as the lab builds it: nothing is built twice.
            Profile::Dev => {
                cargo.args(["build", "--workspace", "--bins"]);
                ("debug", "8 minutes")
            }
            Profile::Release => {
                cargo.args(["build", "--release", "--locked"]);
                for program in [OPERATOR, NODE_AGENT].iter().flat_map(|i| i.programs) {
                    cargo.args(["--package", program]);
                }
                ("release", "20 minutes")
            }
        };
        let what = format!("cargo build (the first time about {time} on 2 cores)");
        logged(&what, &mut cargo, &self.kit.log("images-build"))?;
        for program in [OPERATOR, NODE_AGENT].iter().flat_map(|i| i.programs) {
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(folder.join(program));
            strip.arg(self.kit.target.join(built).join(program));
            logged(
                &format!("strip {program}"),
                &mut strip,
                &self.kit.log("strip"),
            )?;
        }
        let mut cc = Command::new("cc");
        cc.args(["-Os", "-static", "-s", "-o"])
            .arg(folder.join("pause"))
            .arg(self.kit.root.join("docker/pause.c"));
        logged("cc pause.c", &mut cc, &self.kit.log("pause"))
    }

    /// One image as an OCI archive in `out`.
    fn image(&self, image: Image, out: &Path) -> Result<Built> {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        let mut contexts = vec![("programs", self.programs_folder())];
        let rootfs = self.rootfs(image)?;
        contexts.push(("rootfs", rootfs.clone()));
        let libtorch = image.has_libtorch.then(|| self.libtorch()).transpose()?;
        contexts.extend(libtorch.clone().map(|folder| ("libtorch", folder)));
        let archive = out.join(image.archive());
        self.build(image, &contexts)?;
        let size = self.push(image, &archive)?;
        Ok(Built {
            archive,
            rootfs,
            libtorch,
            size,
        })
    }

    fn buildah(&self) -> Command {
        let mut buildah = Command::new("buildah");
        buildah
            .current_dir(&self.kit.root)
            .arg("--root")
            .arg(&self.store)
            .arg("--runroot")
            .arg(self.store.with_extension("run"));
        buildah
    }

    fn build(&self, image: Image, contexts: &[(&str, PathBuf)]) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(&self.kit.root).args(["rev-parse", "HEAD"]);
        let revision = output(&mut git).unwrap_or_else(|| "unknown".to_owned());
        let mut build = self.buildah();
        // Nothing is run in the image, and its files have fixed times: the same inputs give the
        // same image.
        build.args([
            "build",
            "--quiet",
            "--isolation",
            "chroot",
            "--timestamp",
            "0",
        ]);
        for (name, folder) in contexts {
            build.arg("--build-context");
            build.arg(format!("{name}={}", folder.display()));
        }
        build
            .arg(format!("--build-arg=VERSION={VERSION}"))
            .arg(format!("--build-arg=REVISION={revision}"))
            .arg(format!("--tag={}", image.reference()))
            .arg(format!("--file=docker/{}.Dockerfile", image.name))
            .arg(".");
        let what = format!("image lamina/{}", image.name);
        logged(
            &what,
            &mut build,
            &self.kit.log(&format!("image-{}", image.name)),
        )
    }

    /// Writes the archive and returns the image's size.
    fn push(&self, image: Image, archive: &Path) -> Result<String> {
        // An existing file would be appended to.
        if archive.exists() {
            fs::remove_file(archive)
                .with_context(|| format!("cannot remove {}", archive.display()))?;
        }
        let reference = image.reference();
        let mut push = self.buildah();
        push.args(["push", "--quiet"]);
        if self.profile == Profile::Dev {
            push.arg("--disable-compression");
        }
        push.arg(&reference)
            .arg(format!("oci-archive:{}:{reference}", archive.display()));
        let what = format!("archive of lamina/{}", image.name);
        logged(
            &what,
            &mut push,
            &self.kit.log(&format!("push-{}", image.name)),
        )?;
        let mut list = self.buildah();
        list.args(["images", "--noheading", "--format", "{{.Size}}", &reference]);
        output(&mut list).context("buildah does not tell the image's size")
    }

    /// The root file system of an image, cached.
    fn rootfs(&self, image: Image) -> Result<PathBuf> {
        let script = self.kit.root.join("docker/rootfs.sh");
        let folder = self
            .cache
            .join(format!("rootfs-{}-{}", image.name, hash_of(&[&script])?));
        cached(&folder, |folder| {
            let root = folder.join(CONTENT);
            if image.debian.is_empty() {
                return fs::create_dir(&root).context("cannot create a folder in the cache");
            }
            let mut layout = Command::new("sh");
            layout.arg(&script).arg(&root).args(image.debian);
            let what = format!("root file system of lamina/{}", image.name);
            logged(&what, &mut layout, &self.kit.log("rootfs"))?;
            let writable = root.join(image.writable);
            let mut install = Command::new("install");
            install
                .args(["-d", "-o", "65532", "-g", "65532"])
                .arg(writable);
            logged("folder of its user", &mut install, &self.kit.log("install"))
        })?;
        Ok(folder.join(CONTENT))
    }

    /// PyTorch's libraries for the agent's image, cached.
    fn libtorch(&self) -> Result<PathBuf> {
        let script = self.kit.root.join("docker/libtorch.sh");
        let folder = self
            .cache
            .join(format!("libtorch-image-{TORCH}-{}", hash_of(&[&script])?));
        cached(&folder, |folder| {
            let mut layout = Command::new("sh");
            layout
                .arg(&script)
                .arg(self.kit.libtorch().join("lib"))
                .arg(folder.join(CONTENT));
            logged("stripping libtorch", &mut layout, &self.kit.log("libtorch"))
        })?;
        Ok(folder.join(CONTENT))
    }
}
