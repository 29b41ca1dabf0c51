use super::testing::Store;
use super::*;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A cache folder with a store behind it.
struct Cache {
    blobs: Arc<Blobs>,
    telemetry: Telemetry,
    endpoint: OperatorEndpoint,
    folder: TempDir,
}

impl Cache {
    fn new(address: &str) -> Self {
        Self::with_token(address, None)
    }

    fn with_token(address: &str, token_file: Option<PathBuf>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::default();
        let endpoint = OperatorEndpoint::default();
        endpoint.set(address);
        let dir = folder.path().join("blobs");
        let blobs = Blobs::open(dir, endpoint.clone(), telemetry.clone(), token_file);
        Self {
            blobs: Arc::new(blobs.unwrap()),
            telemetry,
            endpoint,
            folder,
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("blobs")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

/// `bytes` that are nowhere the same.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| (i % 251) as u8 ^ (i >> 8) as u8)
        .collect()
}

#[tokio::test]
async fn a_blob_comes_in_ranges_and_then_from_the_cache() {
    let want = content(600_000);
    let digest = Digest::of(&want);
    let store = Store::with(&[&want]);
    let (address, server) = store.serve().await;
    let cache = Cache::new(&address);
    let path = cache.blobs.ensure(&digest, 600_000).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), want);
    let chunk = 256 << 10;
    let asked = [(0, chunk), (chunk, chunk), (2 * chunk, 600_000 - 2 * chunk)];
    assert_eq!(store.0.lock().unwrap().asked, asked);
    let seen = cache.blobs.inbound().drain();
    assert_eq!(seen.iter().map(|t| t.bytes).sum::<u64>(), 600_000);
    assert!(seen.iter().all(|t| t.seconds > 0.0));
    server.abort();
    assert_eq!(cache.blobs.ensure(&digest, 600_000).await, Ok(path));
}

#[tokio::test]
async fn an_empty_blob_is_one_too() {
    let (address, _server) = Store::default().serve().await;
    let cache = Cache::new(&address);
    let path = cache.blobs.ensure(&Digest::of(b""), 0).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"");
}

#[tokio::test]
async fn other_content_than_was_asked_for_is_refused_and_removed() {
    let digest = Digest::of(b"good");
    let store = Store::default();
    store.insert(&digest, b"evil");
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let error = cache.blobs.ensure(&digest, 4).await.unwrap_err();
    let got = Digest::of(b"evil").short().to_owned();
    assert_eq!(error, BlobError::Mismatch { digest, got });
    assert!(cache.names().is_empty(), "{:?}", cache.names());
}

#[tokio::test]
async fn another_size_than_was_asked_for_is_refused() {
    let store = Store::with(&[b"four"]);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let error = cache.blobs.ensure(&Digest::of(b"four"), 3).await;
    assert!(
        matches!(error, Err(BlobError::Mismatch { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_blob_that_the_store_lacks_is_unknown() {
    let (address, _server) = Store::default().serve().await;
    let cache = Cache::new(&address);
    let digest = Digest::of(b"x");
    let error = cache.blobs.ensure(&digest, 1).await.unwrap_err();
    assert_eq!(error, BlobError::Unknown { digest });
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_ended() {
    let want = content(400_000);
    let digest = Digest::of(&want);
    let store = Store::with(&[&want]);
    store.0.lock().unwrap().breaks_at = Some(256 << 10);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let fetching = tokio::time::timeout(
        Duration::from_millis(50),
        cache.blobs.ensure(&digest, 400_000),
    );
    // Each try brings half of what is missing: some are over, more are needed.
    fetching.await.unwrap_err();
    let half = cache.folder.path().join(format!("blobs/{digest}.part"));
    let kept = std::fs::metadata(half).unwrap().len();
    assert!(kept >= 256 << 10, "{kept}");
    {
        let mut held = store.0.lock().unwrap();
        held.breaks_at = None;
        held.asked.clear();
    }
    let path = cache.blobs.ensure(&digest, 400_000).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), want);
    assert_eq!(store.0.lock().unwrap().asked[0].0, kept);
}

#[tokio::test]
async fn a_damaged_part_is_fetched_from_its_start() {
    let want = content(1000);
    let digest = Digest::of(&want);
    let (address, _server) = Store::with(&[&want]).serve().await;
    let cache = Cache::new(&address);
    let part = cache.folder.path().join(format!("blobs/{digest}.part"));
    std::fs::write(part, [0xff; 500]).unwrap();
    let path = cache.blobs.ensure(&digest, 1000).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), want);
}

#[tokio::test]
async fn one_blob_wanted_by_many_comes_once() {
    let want = content(1000);
    let digest = Digest::of(&want);
    let store = Store::with(&[&want]);
    store.0.lock().unwrap().delay = Duration::from_millis(30);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let all = (0..5).map(|_| cache.blobs.ensure(&digest, 1000));
    let paths = futures::future::join_all(all).await;
    assert!(paths.iter().all(|p| p == &paths[0] && p.is_ok()));
    assert_eq!(store.0.lock().unwrap().asked.len(), 1);
}

#[tokio::test]
async fn requests_are_left_half_of_the_link() {
    let want = content(300_000);
    let digest = Digest::of(&want);
    let store = Store::with(&[&want]);
    store.0.lock().unwrap().delay = Duration::from_millis(20);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let _request = cache.telemetry.request_began();
    let start = Instant::now();
    cache.blobs.ensure(&digest, 300_000).await.unwrap();
    let took = start.elapsed().as_secs_f64();
    let seen = cache.blobs.inbound().drain();
    assert_eq!(seen.len(), 5);
    let receiving: f64 = seen.iter().map(|t| t.seconds).sum();
    assert!(took >= 2.0 * receiving, "{took} s, {receiving} s of them");
}

#[tokio::test]
async fn requests_that_wait_for_a_path_leave_the_link() {
    let want = content(300_000);
    let store = Store::with(&[&want]);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let _request = cache.telemetry.request_began();
    let _waits = cache.telemetry.request_waits();
    cache
        .blobs
        .ensure(&Digest::of(&want), 300_000)
        .await
        .unwrap();
    assert_eq!(cache.blobs.inbound().drain().len(), 2);
}

#[tokio::test]
async fn an_operator_that_moves_is_followed() {
    let digest = Digest::of(b"here");
    let cache = Cache::new("");
    let (address, _server) = Store::with(&[b"here"]).serve().await;
    let error = cache.blobs.ensure(&digest, 4).await.unwrap_err();
    assert!(error.is_passing(), "{error}");
    let (found, ()) = tokio::join!(cache.blobs.ensure(&digest, 4), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cache.endpoint.set(&address);
    });
    assert_eq!(std::fs::read(found.unwrap()).unwrap(), b"here");
}

#[tokio::test]
async fn the_token_goes_along_as_it_is_now() {
    let store = Store::with(&[b"1", b"2"]);
    let (address, _server) = store.serve().await;
    let tokens = tempfile::tempdir().unwrap();
    let file = tokens.path().join("token");
    let cache = Cache::with_token(&address, Some(file.clone()));
    for token in ["1", "2"] {
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let digest = Digest::of(token.as_bytes());
        cache.blobs.ensure(&digest, 1).await.unwrap();
        let seen = store.0.lock().unwrap().authorization.clone();
        assert_eq!(seen, Some(format!("Bearer {token}")));
    }
}

#[tokio::test]
async fn a_full_or_lost_disk_is_named() {
    let (address, _server) = Store::with(&[b"x"]).serve().await;
    let cache = Cache::new(&address);
    std::fs::remove_dir_all(cache.folder.path().join("blobs")).unwrap();
    let error = cache.blobs.ensure(&Digest::of(b"x"), 1).await;
    assert!(matches!(error, Err(BlobError::Disk { .. })), "{error:?}");
}

#[tokio::test]
async fn what_is_put_arrives_whole() {
    let store = Store::default();
    store.0.lock().unwrap().busy_puts = 1;
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let large = content(700_000);
    let file = cache.folder.path().join("large");
    std::fs::write(&file, &large).unwrap();
    cache
        .blobs
        .put_file(&Digest::of(&large), &file)
        .await
        .unwrap();
    let empty = cache.blobs.put_bytes(b"").await.unwrap();
    let held = store.0.lock().unwrap();
    assert_eq!(held.blobs[Digest::of(&large).as_str()], large);
    assert!(held.blobs[empty.as_str()].is_empty());
}

#[tokio::test]
async fn a_file_of_other_content_is_refused_at_once() {
    let (address, _server) = Store::default().serve().await;
    let cache = Cache::new(&address);
    let file = cache.folder.path().join("file");
    std::fs::write(&file, b"evil").unwrap();
    let digest = Digest::of(b"good");
    let error = cache.blobs.put_file(&digest, &file).await.unwrap_err();
    assert!(matches!(error, PutError::Refused { .. }), "{error}");
    let missing = cache.folder.path().join("missing");
    let error = cache.blobs.put_file(&digest, &missing).await.unwrap_err();
    assert!(matches!(error, PutError::Disk { .. }), "{error}");
}

#[tokio::test]
async fn the_longest_unused_go_first_and_the_kept_never() {
    let (address, _server) = Store::with(&[b"old", b"new", b"kept"]).serve().await;
    let cache = Cache::new(&address);
    let ensure = async |content: &[u8]| {
        let digest = Digest::of(content);
        let bytes = content.len() as u64;
        cache.blobs.ensure(&digest, bytes).await.unwrap()
    };
    ensure(b"kept").await;
    let new = ensure(b"new").await;
    ensure(b"old").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    ensure(b"new").await;
    let keep = BTreeSet::from([Digest::of(b"kept")]);
    assert_eq!(cache.blobs.evict(&keep, 10).await, Ok(0));
    assert_eq!(cache.blobs.evict(&keep, 7).await, Ok(3));
    assert!(new.exists());
    assert_eq!(cache.blobs.evict(&keep, 0).await, Ok(3));
    assert_eq!(cache.names(), [Digest::of(b"kept").to_string()]);
}
