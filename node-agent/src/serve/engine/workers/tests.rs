//! Real workers with harmful models. They need the built `lamina-worker` and a Python with torch.

use super::*;
use crate::serve::deadline::Deadline;
use crate::serve::engine::fake::fp32;
use crate::testing::{models, worker_program};
use lamina_model::{DataType, Manifest};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;
use tempfile::TempDir;

const INPUTS: &str =
    r#"[{"value":{"name":"x","datatype":"FP32","shape":[1,8]},"range":{"min":0.0,"max":1.0}}]"#;

/// The block files of `model`, prepared as by agents.
fn blocks(model: &str, out: &Path) -> Vec<PathBuf> {
    let out = out.join(model);
    let mut command = Command::new(worker_program());
    command
        .arg("prepare")
        .arg(models().join(format!("{model}.pt")))
        .arg("--out")
        .arg(&out)
        .arg(format!("--inputs={INPUTS}"))
        .args(["--memory-limit=2147483648", "--cpu-limit=60"])
        .arg("--file-limit=67108864");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let manifest = last
        .strip_prefix(r#"{"manifest":"#)
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or_else(|| panic!("{model}: {last}"));
    let manifest: Manifest = serde_json::from_str(manifest).unwrap();
    let files = manifest.blocks.iter();
    files
        .map(|block| out.join(format!("{}.pt", block.digest)))
        .collect()
}

struct Bench {
    workers: Workers,
    folder: TempDir,
}

impl Bench {
    fn new(sharing: Sharing) -> Self {
        Self::with(sharing, |_| {})
    }

    fn with(sharing: Sharing, change: impl FnOnce(&mut WorkerOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = WorkerOptions {
            program: worker_program(),
            folder: folder.path().join("workers"),
            lanes: LANES,
            threads: 1,
            warmup_runs: 1,
            memory_bytes: Some(1 << 30),
            memory_free_bytes: || 8 << 30,
            answer_bytes: 1 << 30,
            allow_unsandboxed: false,
        };
        change(&mut options);
        let workers = Workers::new(options, sharing, Arc::default()).unwrap();
        Self { workers, folder }
    }

    /// `namespace/kind`, loaded.
    async fn load(&self, model: &str) -> Arc<dyn Segment> {
        let kind = model.split_once('/').unwrap().1;
        let inputs = vec![ValueSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: vec![1, 8],
            sizes: Vec::new(),
        }];
        let blocks = blocks(kind, self.folder.path());
        let loaded = self.workers.load(model, blocks, inputs).await.unwrap();
        assert!(loaded.run_seconds > 0.0 && loaded.resident_bytes > 0);
        loaded.segment
    }

    fn workers(&self) -> u32 {
        self.workers.vitals().workers
    }

    async fn wait_for_workers(&self, count: u32) {
        for _ in 0..1000 {
            if self.workers() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} workers, not {count}", self.workers());
    }
}

/// Each of these tests needs other runs in parallel.
const LANES: u32 = 2;

/// Alone, without a time limit.
fn patient() -> Terms {
    Terms {
        deadline: Deadline::after(Duration::from_secs(600)),
        together: None,
    }
}

fn x(value: f32) -> Vec<Tensor> {
    vec![fp32(&[1, 8], &[value; 8])]
}

/// A client that never stops; returns its number of answers.
struct Client {
    end: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    fn of(segment: &Arc<dyn Segment>) -> Self {
        let (end, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (segment, ended) = (Arc::clone(segment), Arc::clone(&end));
        let count: Arc<AtomicU32> = Arc::clone(&answered);
        let task = tokio::spawn(async move {
            let first = segment.run(x(1.0), patient()).await.unwrap().outputs;
            while !ended.load(Ordering::SeqCst) {
                let run = segment.run(x(1.0), patient()).await.unwrap();
                assert_eq!(run.outputs, first);
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self {
            end,
            answered,
            task,
        }
    }

    async fn has_lost_nothing(self) {
        let before = self.answered.load(Ordering::SeqCst);
        while !self.task.is_finished() && self.answered.load(Ordering::SeqCst) < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.end.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_model_that_crashes_on_request_costs_others_nothing() {
    let bench = Bench::new(Sharing::PerNamespace);
    let wild = bench.load("a/wild").await;
    let neighbour = bench.load("a/good").await;
    let stranger = bench.load("b/good").await;
    assert_eq!(bench.workers(), 2);
    let clients = [Client::of(&neighbour), Client::of(&stranger)];
    let mut refused = 0;
    loop {
        match wild.run(x(2000.0), patient()).await.unwrap_err() {
            EngineError::Crashed(cause) => assert_eq!(cause, "SIGSEGV"),
            EngineError::Quarantined { .. } => break,
            other => panic!("{other}"),
        }
        refused += 1;
        if refused == 1 {
            // It answers harmless requests.
            assert_eq!(
                wild.run(x(1.0), patient()).await.unwrap().outputs,
                neighbour.run(x(1.0), patient()).await.unwrap().outputs
            );
        }
    }
    let error = wild.run(x(1.0), patient()).await.unwrap_err();
    assert!(matches!(error, EngineError::Quarantined { .. }), "{error}");
    let crashes = bench.workers.crashes();
    assert_eq!(crashes.len(), 1, "{crashes:?}");
    assert_eq!(crashes[0].model, "a/wild");
    // If others ran beside it, the culprit is unknown; then it runs alone.
    assert!((2..=3).contains(&refused), "{refused}");
    assert!(crashes[0].count >= 4, "{crashes:?}");
    assert_eq!(bench.workers.vitals().crashes, 2 * refused);
    for client in clients {
        client.has_lost_nothing().await;
    }
    // It has run alone since the second.
    bench.wait_for_workers(2).await;
    let group = |model: &str| lock(&bench.workers.shared.records).group_of(model);
    assert_eq!(group("a/wild"), "a/wild");
    assert_eq!(group("a/good"), "a/good");
}

#[tokio::test]
async fn a_run_that_never_ends_is_ended_and_costs_others_nothing() {
    let bench = Bench::new(Sharing::One);
    let endless = bench.load("a/endless").await;
    let neighbour = bench.load("b/good").await;
    assert_eq!(bench.workers(), 1);
    let client = Client::of(&neighbour);
    let begin = Instant::now();
    let error = endless.run(x(2000.0), patient()).await.unwrap_err();
    assert!(matches!(error, EngineError::Stuck(_)), "{error}");
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    client.has_lost_nothing().await;
    assert!(bench.workers.is_alive());
    let crashes = bench.workers.crashes();
    assert!(
        crashes[0].cause.contains("did not end within"),
        "{crashes:?}"
    );
    assert!(endless.run(x(1.0), patient()).await.is_ok());
}

#[tokio::test]
async fn while_one_lane_computes_another_one_does_too() {
    let bench = Bench::new(Sharing::One);
    let endless = bench.load("a/endless").await;
    let neighbour = bench.load("b/good").await;
    let long = tokio::spawn(async move { endless.run(x(2000.0), patient()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..3 {
        assert!(neighbour.run(x(1.0), patient()).await.is_ok());
    }
    assert!(!long.is_finished(), "nothing ran beside it");
    assert_eq!(bench.workers.vitals().crashes, 0);
    long.abort();
}

#[tokio::test]
async fn memory_runs_out_for_the_request_that_wants_it() {
    let bench = Bench::new(Sharing::One);
    let greedy = bench.load("a/greedy").await;
    let gluttonous = bench.load("a/gluttonous").await;
    let neighbour = bench.load("b/good").await;
    let client = Client::of(&neighbour);
    for segment in [&greedy, &gluttonous] {
        let error = segment.run(x(2000.0), patient()).await.unwrap_err();
        assert!(matches!(error, EngineError::Memory(_)), "{error}");
        assert!(segment.run(x(1.0), patient()).await.is_ok());
    }
    client.has_lost_nothing().await;
}

#[tokio::test]
async fn what_others_have_taken_since_it_started_a_worker_may_not_take() {
    static FREE: AtomicU64 = AtomicU64::new(8 << 30);
    let bench = Bench::with(Sharing::PerModel, |options| {
        options.memory_free_bytes = || FREE.load(Ordering::SeqCst);
    });
    let hungry = bench.load("a/hungry").await;
    let neighbour = bench.load("b/good").await;
    let client = Client::of(&neighbour);
    assert!(hungry.run(x(200.0), patient()).await.is_ok());
    FREE.store(32 << 20, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = hungry.run(x(200.0), patient()).await.unwrap_err();
    assert!(matches!(error, EngineError::Memory(_)), "{error}");
    assert!(hungry.run(x(1.0), patient()).await.is_ok());
    FREE.store(8 << 30, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(hungry.run(x(200.0), patient()).await.is_ok());
    assert_eq!(bench.workers.vitals().crashes, 0);
    client.has_lost_nothing().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_loses_no_request() {
    let bench = Bench::new(Sharing::One);
    let good = bench.load("a/good").await;
    let client = Client::of(&good);
    for _ in 0..3 {
        let worker = bench.workers.shared.living().pop().unwrap();
        let kill = |pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        worker.with_process(kill).unwrap().unwrap();
        assert!(worker.over().await.starts_with("SIGKILL"));
        assert!(good.run(x(1.0), patient()).await.is_ok());
    }
    client.has_lost_nothing().await;
}

#[tokio::test]
async fn a_worker_ends_with_its_last_slice() {
    let bench = Bench::new(Sharing::PerModel);
    let (one, two) = (bench.load("a/good").await, bench.load("b/good").await);
    assert_eq!(bench.workers(), 2);
    assert!(bench.workers.vitals().resident_bytes > 40 << 20);
    drop(one);
    bench.wait_for_workers(1).await;
    assert!(two.run(x(1.0), patient()).await.is_ok());
    drop(two);
    bench.wait_for_workers(0).await;
    let folders = || {
        fs::read_dir(bench.folder.path().join("workers"))
            .unwrap()
            .count()
    };
    for _ in 0..500 {
        if folders() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(folders(), 0);
    assert_eq!(bench.workers.vitals().crashes, 0);
}

#[tokio::test]
async fn what_is_no_block_is_refused_and_costs_no_worker() {
    let bench = Bench::new(Sharing::One);
    let good = bench.load("a/good").await;
    let file = bench.folder.path().join("block.pt");
    fs::write(&file, "no block at all").unwrap();
    let error = bench.workers.load("a/bad", vec![file], Vec::new()).await;
    let error = error.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("TorchScript"), "{error}");
    assert!(good.run(x(1.0), patient()).await.is_ok());
    assert_eq!(bench.workers.vitals().crashes, 0);
}

#[tokio::test]
async fn a_block_that_reaches_outside_is_refused_whoever_prepared_it() {
    let bench = Bench::new(Sharing::One);
    let good = bench.load("a/good").await;
    // Like a host that stores files without checking them.
    let file = models().join("saves.pt");
    let error = bench.workers.load("a/bad", vec![file], Vec::new()).await;
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("save"), "{error}");
    assert!(good.run(x(1.0), patient()).await.is_ok());
    assert_eq!(bench.workers.vitals().crashes, 0);
}

#[tokio::test]
async fn without_a_program_there_is_trouble() {
    let bench = Bench::with(Sharing::One, |options| {
        options.program = "/nowhere/lamina-worker".into();
    });
    let error = bench
        .workers
        .load("a/m", vec!["block.pt".into()], Vec::new())
        .await;
    let error = error.map(|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::NoWorker(_)), "{error}");
    assert!(bench.workers.trouble().is_some());
}

#[test]
fn this_process_has_no_libtorch() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libtorch"), "{maps}");
}
