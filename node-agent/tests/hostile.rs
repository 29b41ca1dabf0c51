//! Files that harm careless readers, given to the real program and to the agent's job around it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test as a whole

use lamina_node_agent::blobs::{BlobOptions, Blobs};
use lamina_node_agent::net::OperatorEndpoint;
use lamina_node_agent::prepare::{LimitArgs, Program, SourceArgs, Tools, run_job};
use lamina_node_agent::telemetry::Telemetry;
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{Prepare, PrepareFailed};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hostile.py");
const INPUTS: &str = r#"[{"value":{"name":"x","datatype":"FP32","shape":[-1,8]},"range":null}]"#;
const CPU_SECONDS: u64 = 5;
const MEMORY_BYTES: u64 = 2 << 30;
/// Far beyond what any of them takes here, and never above a minute.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The files, and the folder into which they try to write.
struct Corpus {
    files: PathBuf,
    loot: PathBuf,
}

/// Made once for all tests: the script takes seconds.
static CORPUS: LazyLock<Corpus> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    let _ = fs::remove_dir_all(&folder);
    let (files, loot) = (folder.join("files"), folder.join("loot"));
    fs::create_dir_all(&loot).unwrap();
    let python = std::env::var_os("LAMINA_PYTHON");
    let python = python.expect("LAMINA_PYTHON names no Python with torch: run `cargo xtask test`");
    let output = Command::new(python)
        .args(["-W", "ignore", SCRIPT])
        .args([&files, &loot])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    Corpus { files, loot }
});

impl Corpus {
    fn names(&self, beginning: &str) -> Vec<String> {
        let files = fs::read_dir(&self.files).unwrap();
        let names = files.map(|f| f.unwrap().path().file_stem().unwrap().to_owned());
        let names = names.map(|n| n.into_string().unwrap());
        names.filter(|n| n.starts_with(beginning)).collect()
    }

    fn assert_nothing_taken(&self) {
        let taken: Vec<_> = fs::read_dir(&self.loot).unwrap().collect();
        assert!(taken.is_empty(), "{taken:?}");
    }
}

fn cell() -> LimitArgs {
    LimitArgs {
        allow_unsandboxed: false,
        memory_limit: Some(MEMORY_BYTES),
        cpu_limit: CPU_SECONDS,
    }
}

/// An agent's jobs with the real program as the child process.
struct Agent {
    folder: tempfile::TempDir,
    tools: Tools,
    web: String,
}

impl Agent {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let operator = OperatorEndpoint::default();
        let cache = folder.path().join("cache");
        let options = BlobOptions {
            dir: cache,
            limit_bytes: 1 << 30,
            token_file: None,
        };
        let blobs = Blobs::open(options, operator, Telemetry::default()).unwrap();
        let agent = Path::new(env!("CARGO_BIN_EXE_lamina-node-agent"));
        let program = Program::new(agent.with_file_name("lamina-worker"), cell());
        let work = folder.path().join("work");
        let sources = SourceArgs {
            source_allow: vec!["127.0.0.0/8".parse().unwrap()],
            ..SourceArgs::default()
        };
        let tools = Tools::new(Arc::new(blobs), program, work, sources).unwrap();
        let web = serve(CORPUS.files.clone()).await;
        Self { folder, tools, web }
    }

    /// The failure of the job with this file, within the time limit and without leftovers.
    async fn failure(&self, name: &str) -> PrepareFailed {
        let job = Prepare {
            job: "uid/hash".into(),
            uri: format!("http://{}/{name}.pt", self.web),
            sha256: String::new(),
            inputs_json: INPUTS.into(),
            ..Prepare::default()
        };
        let (sender, mut updates) = mpsc::channel(1000);
        let begin = Instant::now();
        run_job(job, self.tools.clone(), sender, CancellationToken::new()).await;
        assert!(
            begin.elapsed() < TIME_LIMIT,
            "{name}: {:?}",
            begin.elapsed()
        );
        let work = fs::read_dir(self.folder.path().join("work")).unwrap();
        assert_eq!(work.count(), 0, "{name} left files");
        let left = processes_of(self.folder.path());
        assert!(left.is_empty(), "{name} left a process: {left:?}");
        CORPUS.assert_nothing_taken();
        loop {
            match updates.recv().await.unwrap().update.unwrap() {
                Update::Progress(_) => {}
                Update::Failed(failed) => {
                    println!("{name} {:.1?}: {}", begin.elapsed(), failed.message);
                    return failed;
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

/// The files of `dir` by http.
async fn serve(dir: PathBuf) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let file = async move |axum::extract::Path(name): axum::extract::Path<String>| {
        fs::read(dir.join(name)).map_err(|_| http::StatusCode::NOT_FOUND)
    };
    let app = axum::Router::new().route("/{name}", axum::routing::get(file));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// Processes, running or dead, whose arguments name `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let arguments = processes.filter_map(|p| fs::read_to_string(p.path().join("cmdline")).ok());
    arguments.filter(|a| a.contains(folder)).collect()
}

#[tokio::test]
async fn every_hostile_file_is_refused_with_its_cause() {
    let agent = Agent::new().await;
    for (name, cause) in [
        ("empty", "the file is empty"),
        ("random", "does not begin like one"),
        ("text", "does not begin like one"),
        ("truncated_10", "its end is missing"),
        ("truncated_50", "its end is missing"),
        ("truncated_99", "its end is missing"),
        ("plain_zip", "which torch.jit.save writes"),
        ("state_dict", "state_dict"),
        ("old_state_dict", "bare pickle"),
        ("os_system", "bare pickle"),
        ("os_system_inside", "posix.system"),
        ("memo_inside", "without having filled it"),
        ("bomb", "zip bomb"),
        ("traversal", "leaves the archive"),
        ("absolute", "absolute path"),
        ("twice", "ignores case"),
        (
            "save_in_forward",
            "`aten::save` in line 9, which writes any file",
        ),
        ("save_as_ops", "aten::save"),
        ("save_as_method", "aten::save"),
        ("save_renamed", "`torch` in line 9 without naming"),
        ("save_on_load", "`aten::save` in line 17"),
        ("from_file", "maps any file"),
    ] {
        let failed = agent.failure(name).await;
        assert!(failed.message.contains(cause), "{name}: {}", failed.message);
        assert!(failed.message.contains(&agent.web), "{}", failed.message);
        assert_eq!(failed.reason, "InvalidModel", "{name}");
        assert!(!failed.retryable, "{name}");
    }
}

#[tokio::test]
async fn what_a_model_uses_up_is_limited() {
    let agent = Agent::new().await;
    for (name, cause) in [
        ("endless", "computed for more than 5 s"),
        ("endless_on_load", "computed for more than 5 s"),
        ("huge", "needs more memory than the 2.0Gi"),
        ("greedy", "needs more memory than the 2.0Gi"),
    ] {
        let failed = agent.failure(name).await;
        assert_eq!(failed.reason, "PrepareFailed", "{name}");
        assert!(failed.message.contains(cause), "{name}: {}", failed.message);
    }
}

#[tokio::test]
async fn mutated_files_are_refused_or_ordinary() {
    let names = CORPUS.names("mutated");
    assert_eq!(names.len(), 24);
    for name in names {
        let folder = tempfile::tempdir().unwrap();
        let output = prepare(&name, folder.path(), &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        let last = said.lines().last().unwrap_or_default();
        let is_clear = last.starts_with(r#"{"error""#) || last.starts_with(r#"{"manifest""#);
        assert!(is_clear, "{name}: {:?} {last}", output.status);
        // With a correct checksum a changed byte may be another model.
        let is_inside = name.contains("inside");
        assert!(is_inside || !output.status.success(), "{name}: {last}");
        CORPUS.assert_nothing_taken();
    }
}

#[test]
fn good_models_are_prepared_as_ever() {
    for name in ["good", "loads"] {
        let folder = tempfile::tempdir().unwrap();
        let output = prepare(name, folder.path(), &[]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {said}");
        let made = fs::read_dir(folder.path().join("out")).unwrap().count();
        assert!(made >= 2, "blocks and a probe");
    }
}

/// The command's standard error and exit code.
fn tell_people(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lamina-node-agent"))
        .arg("prepare")
        .args(arguments)
        .current_dir(&CORPUS.files)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn people_are_told_why_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let file = folder.path().join("file").display().to_string();
    fs::write(&file, "").unwrap();
    for (arguments, cause) in [
        (["endless.pt", "--out", &out], "computed for more than 2 s"),
        ([".", "--out", &out], "`.` is no file"),
        (["none.pt", "--out", &out], "No such file"),
        (["good.pt", "--out", &file], "is no folder"),
    ] {
        let all = [&["--cpu-limit=2", "--input=x:FP32:-1x8"], &arguments[..]].concat();
        let (code, said) = tell_people(&all);
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("error: "), "{said}");
        assert!(said.contains(cause), "{said}");
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "half of the blocks");
}

#[test]
fn what_else_is_in_the_folder_takes_no_room_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    let film = fs::File::create(out.join("film")).unwrap();
    film.set_len(1 << 40).unwrap();
    let output = prepare("good", folder.path(), &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let files = fs::read_dir(&out).unwrap().map(|f| f.unwrap().path());
    let files: Vec<PathBuf> = files.collect();
    assert!(
        files.len() >= 3,
        "blocks, a probe and what was there: {files:?}"
    );
    assert!(files.iter().all(|f| f.is_file()), "{files:?}");
    assert!(files.contains(&out.join("film")), "{files:?}");
}

#[test]
fn the_process_that_opens_the_model_ends_with_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina-node-agent"))
        .arg("prepare")
        .arg(CORPUS.files.join("endless.pt"))
        .args(["--input=x:FP32:-1x8", "--cpu-limit=60", "--out"])
        .arg(folder.path().join("out"))
        .spawn()
        .unwrap();
    wait_for_processes(folder.path(), 2);
    command.kill().unwrap();
    command.wait().unwrap();
    wait_for_processes(folder.path(), 0);
}

fn wait_for_processes(folder: &Path, count: usize) {
    let end = Instant::now() + TIME_LIMIT / 2;
    while processes_of(folder).len() != count {
        assert!(
            Instant::now() < end,
            "not {count}: {:?}",
            processes_of(folder)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_shape_alone_is_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let (code, said) = tell_people(&["good.pt", "--input", "-1x8", "--out", &out]);
    assert_eq!(code, Some(0), "{said}");
}

/// Like [`prepare`] on a kernel without Landlock.
fn prepare_without_landlock(folder: &Path, more: &[&str]) -> Output {
    let rules = BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    std::thread::scope(|scope| {
        let run = || {
            // For this thread and what it starts.
            apply_filter(&program).unwrap();
            prepare("good", folder, more)
        };
        scope.spawn(run).join().unwrap()
    })
}

#[test]
fn a_kernel_without_landlock_is_refused_unless_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let output = prepare_without_landlock(folder.path(), &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("no Landlock ("), "{said}");
    assert!(said.contains("agent.allowUnsandboxed"), "{said}");
    let output = prepare_without_landlock(folder.path(), &["--allow-unsandboxed"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(
        said.starts_with(r#"{"warning":"the model is opened with no Landlock ("#),
        "{said}"
    );
}

fn prepare(name: &str, folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina-node-agent"));
    command
        .arg("prepare")
        .arg(CORPUS.files.join(format!("{name}.pt")))
        .args(["--json", "--input=x:FP32:-1x8", "--cpu-limit=20"])
        .arg("--out")
        .arg(folder.join("out"))
        .args(more);
    command.output().unwrap()
}
