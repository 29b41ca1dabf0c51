use super::*;
use crate::blobs::testing::Store;
use crate::blobs::{BlobOptions, Blobs};
use crate::net::OperatorEndpoint;
use crate::telemetry::Telemetry;
use crate::testing::{models, worker_program};
use lamina_model::{Digest, Manifest, Probe};
use lamina_proto::control::prepare_update::Update;
use lamina_proto::control::{Prepare, PrepareFailed, PrepareProgress};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const INPUTS: &str = r#"[{"value":{"name":"x","datatype":"FP32","shape":[-1,8]},"range":null}]"#;

/// A store, a web server and the tools for preparing.
struct Lab {
    folder: TempDir,
    store: Store,
    web: String,
    tools: Tools,
}

impl Lab {
    /// With the built worker as the child.
    async fn new() -> Self {
        Self::with_program(worker_program(), tempfile::tempdir().unwrap()).await
    }

    /// With a shell script as the child.
    async fn with_script(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Self::with_program(program, folder).await
    }

    async fn with_program(program: PathBuf, folder: TempDir) -> Self {
        let store = Store::default();
        let (address, _) = store.serve().await;
        let endpoint = OperatorEndpoint::default();
        endpoint.set(&address);
        let cache = folder.path().join("cache");
        let options = BlobOptions {
            dir: cache,
            limit_bytes: 1 << 30,
            token_file: None,
        };
        let blobs = Blobs::open(options, endpoint, Telemetry::default()).unwrap();
        let work = folder.path().join("work");
        let program = Program::new(program, LimitArgs::default());
        let tools = Tools::new(Arc::new(blobs), program, work, sources()).unwrap();
        let web = serve_files(folder.path().join("web")).await;
        Self {
            folder,
            store,
            web,
            tools,
        }
    }

    fn publish(&self, name: &str, content: &[u8]) {
        std::fs::write(self.folder.path().join("web").join(name), content).unwrap();
    }

    fn job(&self, name: &str, sha256: &str) -> Prepare {
        Prepare {
            job: "uid/hash".into(),
            uri: format!("http://{}/{name}", self.web),
            sha256: sha256.into(),
            inputs_json: INPUTS.into(),
            ..Prepare::default()
        }
    }

    /// The progress and the result of `job`; none of its files may be left.
    async fn run(&self, job: Prepare) -> (Vec<PrepareProgress>, Update) {
        let (sender, mut receiver) = mpsc::channel(1000);
        run_job(job, self.tools.clone(), sender, CancellationToken::new()).await;
        let mut progress = Vec::new();
        let mut end = None;
        while let Some(update) = receiver.recv().await {
            assert_eq!(update.job, "uid/hash");
            assert_eq!(end, None, "the last message is the last");
            match update.update.unwrap() {
                Update::Progress(step) => progress.push(step),
                other => end = Some(other),
            }
        }
        self.assert_clean();
        (progress, end.unwrap())
    }

    async fn fail(&self, job: Prepare) -> PrepareFailed {
        match self.run(job).await.1 {
            Update::Failed(failed) => failed,
            other => panic!("{other:?}"),
        }
    }

    fn assert_clean(&self) {
        let left = std::fs::read_dir(self.folder.path().join("work")).unwrap();
        assert_eq!(left.count(), 0, "files of the job are left");
    }
}

/// Tests fetch from this machine.
fn sources() -> SourceArgs {
    SourceArgs {
        source_allow: vec!["127.0.0.0/8".parse().unwrap()],
        ..SourceArgs::default()
    }
}

/// The files of `dir` by http.
async fn serve_files(dir: PathBuf) -> String {
    std::fs::create_dir(&dir).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let file = async move |axum::extract::Path(name): axum::extract::Path<String>| {
        std::fs::read(dir.join(name)).map_err(|_| http::StatusCode::NOT_FOUND)
    };
    let app = axum::Router::new().route("/{name}", axum::routing::get(file));
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

fn small_model() -> Vec<u8> {
    std::fs::read(models().join("good.pt")).unwrap()
}

#[tokio::test]
async fn a_model_becomes_blocks_a_probe_and_a_manifest_in_the_store() {
    let lab = Lab::new().await;
    let model = small_model();
    lab.publish("small.pt", &model);
    let (progress, end) = lab
        .run(lab.job("small.pt", Digest::of(&model).as_str()))
        .await;
    let Update::Done(done) = end else {
        panic!("{end:?}");
    };
    let held = lab.store.0.lock().unwrap();
    let manifest = &held.blobs[&done.manifest_digest];
    let manifest: Manifest = serde_json::from_slice(manifest).unwrap();
    manifest.validate().unwrap();
    assert_eq!(manifest.source, Digest::of(&model));
    assert!(manifest.prepared_gflops > 0.0);
    for block in &manifest.blocks {
        let file = &held.blobs[block.digest.as_str()];
        assert_eq!(file.len() as u64, block.file_bytes);
    }
    let probe = Probe::from_bytes(&held.blobs[manifest.probe.as_str()]).unwrap();
    assert_eq!(probe.outputs[0].shape, [1, 8]);
    assert_eq!(held.put.last(), Some(&done.manifest_digest));
    let mut steps: Vec<&str> = progress.iter().map(|p| p.step.as_str()).collect();
    steps.dedup();
    let all = ["Fetching", "Slicing", "Checking", "Profiling", "Storing"];
    assert_eq!(steps, all);
    assert_eq!(progress[0].total, model.len() as u64);
    assert!(progress.iter().all(|p| p.bytes == (p.step == "Fetching")));
}

#[tokio::test]
async fn a_source_that_is_not_there_is_named_with_its_status() {
    let lab = Lab::new().await;
    let job = lab.job("none.pt", "");
    let failed = lab.fail(job.clone()).await;
    assert_eq!(failed.reason, "FetchFailed");
    assert!(failed.retryable);
    assert!(failed.message.contains(&job.uri), "{}", failed.message);
    assert!(failed.message.contains("404"), "{}", failed.message);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let lab = Lab::new().await;
    let mut job = lab.job("m.pt", "");
    job.uri = "http://127.0.0.1:1/m.pt".into();
    let failed = lab.fail(job.clone()).await;
    assert_eq!(failed.reason, "FetchFailed");
    assert!(failed.retryable);
    assert!(failed.message.contains(&job.uri), "{}", failed.message);
}

#[tokio::test]
async fn another_file_than_the_declared_one_is_refused() {
    let lab = Lab::new().await;
    lab.publish("m.pt", b"other");
    let declared = Digest::of(b"this");
    let failed = lab.fail(lab.job("m.pt", declared.as_str())).await;
    assert_eq!(failed.reason, "ChecksumMismatch");
    assert!(!failed.retryable);
    let said = failed.message;
    assert!(
        said.contains("another SHA-256 than spec.source.sha256"),
        "{said}"
    );
    // The response must not be revealed.
    assert!(!said.contains(Digest::of(b"other").as_str()), "{said}");
}

#[tokio::test]
async fn a_file_that_is_no_torchscript_is_an_invalid_model() {
    let lab = Lab::new().await;
    lab.publish("m.pt", b"not a zip archive at all");
    let job = lab.job("m.pt", "");
    let failed = lab.fail(job.clone()).await;
    assert_eq!(failed.reason, "InvalidModel", "{}", failed.message);
    assert!(!failed.retryable);
    assert!(failed.message.contains("TorchScript"), "{}", failed.message);
    assert!(failed.message.contains(&job.uri), "{}", failed.message);
}

#[tokio::test]
async fn inputs_that_do_not_fit_are_named() {
    let lab = Lab::new().await;
    lab.publish("small.pt", &small_model());
    let mut job = lab.job("small.pt", "");
    job.inputs_json = INPUTS
        .replace("[-1,8]", "[-1,7]")
        .replace("\"x\"", "\"row\"");
    let failed = lab.fail(job).await;
    assert_eq!(failed.reason, "InputMismatch", "{}", failed.message);
    assert!(!failed.retryable);
    assert!(failed.message.contains("row"), "{}", failed.message);
}

/// A safetensors file with two requests of eight floats, `width` of them declared.
fn samples(width: usize) -> Vec<u8> {
    let bytes = 4 * width;
    let head = format!(
        r#"{{"0.x":{{"dtype":"F32","shape":[1,{width}],"data_offsets":[0,{bytes}]}},"1.x":{{"dtype":"F32","shape":[1,{width}],"data_offsets":[{bytes},{}]}}}}"#,
        2 * bytes
    );
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head.as_bytes());
    for number in [0.25_f32, -3.5] {
        file.extend(std::iter::repeat_n(number.to_le_bytes(), width).flatten());
    }
    file
}

impl Lab {
    fn job_with(&self, samples: &[u8]) -> Prepare {
        self.publish("small.pt", &small_model());
        self.publish("samples.safetensors", samples);
        Prepare {
            samples_uri: format!("http://{}/samples.safetensors", self.web),
            samples_sha256: Digest::of(samples).to_string(),
            ..self.job("small.pt", "")
        }
    }
}

#[tokio::test]
async fn a_model_is_prepared_with_the_samples_of_its_user() {
    let lab = Lab::new().await;
    let (_, end) = lab.run(lab.job_with(&samples(8))).await;
    let Update::Done(done) = end else {
        panic!("{end:?}");
    };
    let held = lab.store.0.lock().unwrap();
    let manifest: Manifest = serde_json::from_slice(&held.blobs[&done.manifest_digest]).unwrap();
    let probe = Probe::from_bytes(&held.blobs[manifest.probe.as_str()]).unwrap();
    assert_eq!(probe.inputs[0].data[..], 0.25_f32.to_le_bytes().repeat(8));
}

#[tokio::test]
async fn samples_that_do_not_fit_or_are_others_are_named() {
    let lab = Lab::new().await;
    let job = lab.job_with(&samples(7));
    let failed = lab.fail(job.clone()).await;
    assert_eq!(failed.reason, "InputMismatch", "{}", failed.message);
    assert!(!failed.retryable);
    let expected = "request 0 does not fit the declared inputs";
    assert!(failed.message.contains(expected), "{}", failed.message);
    assert!(
        failed.message.contains(&job.samples_uri),
        "{}",
        failed.message
    );

    let mut job = lab.job_with(&samples(8));
    job.samples_sha256 = Digest::of(b"others").to_string();
    let failed = lab.fail(job.clone()).await;
    assert_eq!(failed.reason, "ChecksumMismatch", "{}", failed.message);
    assert!(
        failed.message.starts_with("spec.samples: "),
        "{}",
        failed.message
    );

    job.samples_uri.push('2');
    let failed = lab.fail(job).await;
    assert_eq!(failed.reason, "FetchFailed", "{}", failed.message);
    assert!(
        failed.message.contains("check spec.samples.uri"),
        "{}",
        failed.message
    );
}

#[tokio::test]
async fn a_child_that_dies_fails_the_job_with_its_last_words() {
    for (script, want) in [
        ("echo noise; echo 'it broke' >&2; exit 3", "it broke"),
        ("kill -9 $$", "memory"),
        ("kill -11 $$", "crashed"),
        ("exit 0", "crashed"),
    ] {
        let lab = Lab::with_script(script).await;
        lab.publish("m.pt", b"m");
        let failed = lab.fail(lab.job("m.pt", "")).await;
        assert_eq!(failed.reason, "PrepareFailed");
        assert!(failed.retryable);
        assert!(
            failed.message.contains(want),
            "{script}: {}",
            failed.message
        );
    }
}

#[tokio::test]
async fn a_child_that_fills_the_disk_is_ended() {
    let megabyte = "mkdir -p \"$4\"; s=$(head -c 1048576 /dev/zero | tr '\\0' x); i=0";
    for (endless, want) in [
        (
            "while :; do printf %s \"$s\" > \"$4/$i\"; i=$((i+1)); done",
            "take more than 64",
        ),
        (
            "exec 3> \"$4/a\"; rm \"$4/a\"; while :; do printf %s \"$s\" >&3; done",
            "take more than 64",
        ),
        (
            "while :; do : > \"$4/$i\"; i=$((i+1)); done",
            "more than 20000 files",
        ),
        // Finishes before it is checked.
        ("head -c 70000000 /dev/zero > \"$4/a\"", "take more than 64"),
    ] {
        let lab = Lab::with_script(&format!("{megabyte}; {endless}")).await;
        lab.publish("m.pt", b"m");
        let failed = lab.fail(lab.job("m.pt", "")).await;
        assert_eq!(failed.reason, "PrepareFailed");
        assert!(!failed.retryable, "another try would do the same");
        assert!(
            failed.message.contains(want),
            "{endless}: {}",
            failed.message
        );
    }
}

#[tokio::test]
async fn a_cancelled_job_leaves_no_process_and_no_file() {
    let lab = Lab::with_script("echo $$ > \"${0%program}pid\"; exec sleep 600").await;
    lab.publish("m.pt", b"m");
    let pid = lab.folder.path().join("pid");
    let (sender, mut receiver) = mpsc::channel(10);
    let cancel = CancellationToken::new();
    let job = run_job(
        lab.job("m.pt", ""),
        lab.tools.clone(),
        sender,
        cancel.clone(),
    );
    let job = tokio::spawn(job);
    let pid = wait_for_line(&pid).await;
    cancel.cancel();
    job.await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    lab.assert_clean();
    while let Some(update) = receiver.recv().await {
        assert!(matches!(update.update, Some(Update::Progress(_))));
    }
}

#[tokio::test]
async fn the_child_sees_nothing_of_the_environment() {
    let lab = Lab::with_script("env >&2; echo \"home:$HOME\" >&2").await;
    lab.publish("m.pt", b"m");
    let failed = lab.fail(lab.job("m.pt", "")).await;
    assert!(failed.message.ends_with("home:"), "{}", failed.message);
}

async fn wait_for_line(file: &Path) -> String {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match std::fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < end, "{} is missing", file.display()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
