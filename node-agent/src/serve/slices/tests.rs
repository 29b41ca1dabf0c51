use super::*;
use crate::serve::engine::fake::{FakeBlock, FakeEngine, floats, fp32};
use crate::testing::{blob, slice};
use async_trait::async_trait;
use lamina_crds::compute_node::Blob;
use lamina_crds::dnn_model::Batching;
use std::sync::atomic::{AtomicBool, Ordering};

/// Blobs in a folder; `away` makes the store unreachable, `full` the disk.
struct Folder {
    dir: tempfile::TempDir,
    away: AtomicBool,
    full: AtomicBool,
}

impl Folder {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            away: AtomicBool::new(false),
            full: AtomicBool::new(false),
        })
    }

    fn put(&self, content: &[u8]) -> Blob {
        let blob = blob(content);
        std::fs::write(self.dir.path().join(&blob.digest), content).unwrap();
        blob
    }

    fn put_block(&self, mul: f32, add: f32) -> Blob {
        self.put(
            &serde_json::to_vec(&FakeBlock {
                mul,
                add,
                ..FakeBlock::default()
            })
            .unwrap(),
        )
    }
}

#[async_trait]
impl BlobSource for Folder {
    async fn ensure(&self, digest: &Digest, _bytes: u64) -> Result<PathBuf, BlobError> {
        if self.away.load(Ordering::SeqCst) {
            return Err(BlobError::Unavailable {
                digest: digest.clone(),
                reason: "connection refused".into(),
            });
        }
        if self.full.load(Ordering::SeqCst) {
            let path = self.dir.path().to_owned();
            let (needs, free) = (10, 3);
            return Err(BlobError::Full { path, needs, free });
        }
        let path = self.dir.path().join(digest.as_str());
        let known = path.exists();
        known.then_some(path).ok_or_else(|| BlobError::Unknown {
            digest: digest.clone(),
        })
    }
}

fn held(engine: &FakeEngine, blobs: &Arc<Folder>) -> Slices {
    let blobs: Arc<dyn BlobSource> = Arc::<Folder>::clone(blobs);
    Slices::new(Arc::new(engine.clone()), blobs, Arc::default())
}

async fn until(slices: &Slices, state: SliceState) -> Vec<SliceStatus> {
    for _ in 0..400 {
        let statuses = slices.statuses();
        if !statuses.is_empty() && statuses.iter().all(|s| s.state == state) {
            return statuses;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never {state:?}: {:?}", slices.statuses());
}

#[tokio::test]
async fn a_wanted_slice_is_fetched_loaded_and_serves() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let mut wanted = slice("u", 1, 0);
    wanted.blocks = vec![blobs.put_block(2.0, 0.0), blobs.put_block(1.0, 1.0)];
    slices.apply(std::slice::from_ref(&wanted));
    let statuses = until(&slices, SliceState::Ready).await;
    assert!(statuses[0].run_ms.is_some());
    let serving = slices.get(&key_of(&wanted)).unwrap();
    let deadline = Deadline::after(Duration::from_secs(60));
    let run = serving
        .run(vec![fp32(&[1, 2], &[1.0, 2.0])], deadline)
        .await;
    assert_eq!(floats(&run.unwrap().outputs[0]), [3.0, 5.0]);
    slices.apply(&[]);
    assert!(slices.get(&key_of(&wanted)).is_none());
    // A request in progress keeps its segment.
    let late = serving
        .run(vec![fp32(&[1, 2], &[0.0, 0.0])], deadline)
        .await;
    assert_eq!(floats(&late.unwrap().outputs[0]), [1.0, 1.0]);
}

#[tokio::test]
async fn rows_are_computed_together_once_it_is_known_that_it_pays() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let mut wanted = slice("u", 1, 0);
    wanted.blocks = vec![blobs.put_block(2.0, 0.0)];
    let said = async |slices: &Slices, words: &str| {
        for _ in 0..500 {
            let status = slices.statuses().remove(0);
            if status.state == SliceState::Ready && status.message == words {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{:?}", slices.statuses());
    };
    let together = || slices.get(&key_of(&slice("u", 1, 0))).unwrap().together;
    slices.apply(std::slice::from_ref(&wanted));
    said(&slices, "").await;
    for (max_rows, words) in [(4, "2, 4"), (8, "2, 4, 8")] {
        wanted.batching = Some(Batching {
            max_rows,
            max_delay_ms: 5,
        });
        slices.apply(std::slice::from_ref(&wanted));
        let words = format!("so many rows are computed faster together: {words}");
        said(&slices, &words).await;
        assert_eq!(together().unwrap().rows.largest(), i64::from(max_rows));
    }
    wanted.batching = None;
    slices.apply(std::slice::from_ref(&wanted));
    said(&slices, "").await;
    assert_eq!(together(), None);
    assert_eq!(engine.loads(), 1);
}

#[tokio::test]
async fn revisions_with_the_same_blocks_share_one_segment() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let (mut old, mut new) = (slice("u", 1, 0), slice("u", 2, 0));
    old.blocks = vec![blobs.put_block(2.0, 0.0)];
    new.blocks.clone_from(&old.blocks);
    slices.apply(&[old.clone(), new.clone()]);
    until(&slices, SliceState::Ready).await;
    assert_eq!(engine.loads(), 1);
    // Once nothing uses it, it is loaded again.
    slices.apply(&[]);
    slices.apply(std::slice::from_ref(&new));
    until(&slices, SliceState::Ready).await;
    assert_eq!(engine.loads(), 2);
}

#[tokio::test]
async fn a_damaged_block_fails_with_the_reason() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let mut wanted = slice("u", 1, 0);
    wanted.blocks = vec![blobs.put(b"no block")];
    slices.apply(&[wanted]);
    let statuses = until(&slices, SliceState::Failed).await;
    assert!(statuses[0].message.contains("expected"), "{statuses:?}");
    assert_eq!(slices.totals().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_blob_fails_and_an_unreachable_store_is_waited_for() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let mut unknown = slice("u", 1, 0);
    unknown.blocks = vec![blob(b"nobody has this")];
    slices.apply(&[unknown]);
    let statuses = until(&slices, SliceState::Failed).await;
    assert!(statuses[0].message.contains("store has no blob"));

    blobs.away.store(true, Ordering::SeqCst);
    let mut wanted = slice("u", 2, 0);
    wanted.blocks = vec![blobs.put_block(1.0, 0.0)];
    slices.apply(&[wanted]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let statuses = until(&slices, SliceState::Fetching).await;
    assert!(statuses[0].message.contains("connection refused"));
    blobs.away.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    until(&slices, SliceState::Ready).await;
}

#[tokio::test]
async fn an_unknown_datatype_is_named() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    let mut wanted = slice("u", 1, 0);
    wanted.inputs[0].datatype = "FP8".into();
    slices.apply(&[wanted]);
    let statuses = until(&slices, SliceState::Failed).await;
    assert!(
        statuses[0]
            .message
            .contains("tensor `image`: unknown datatype `FP8`")
    );
}

#[tokio::test(start_paused = true)]
async fn a_slice_for_which_the_disk_has_no_space_is_waited_for_and_told_as_trouble() {
    let (engine, blobs) = (FakeEngine::default(), Folder::new());
    let slices = held(&engine, &blobs);
    blobs.full.store(true, Ordering::SeqCst);
    let mut wanted = slice("u", 1, 0);
    wanted.blocks = vec![blobs.put_block(2.0, 0.0)];
    slices.apply(&[wanted]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let statuses = until(&slices, SliceState::Fetching).await;
    assert!(
        statuses[0].message.contains("is full: 10 more bytes"),
        "{statuses:?}"
    );
    let trouble = slices.trouble().unwrap();
    assert!(
        trouble.starts_with("a slice of default/m waits"),
        "{trouble}"
    );
    blobs.full.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    until(&slices, SliceState::Ready).await;
    assert_eq!(slices.trouble(), None);
}
