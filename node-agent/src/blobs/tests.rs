use super::testing::Store;
use super::*;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A cache folder with a store.
struct Cache {
    blobs: Arc<Blobs>,
    telemetry: Telemetry,
    endpoint: OperatorEndpoint,
    folder: TempDir,
}

impl Cache {
    fn new(address: &str) -> Self {
        Self::with(address, BlobOptions::default())
    }

    fn with_limit(address: &str, limit_bytes: u64) -> Self {
        let options = BlobOptions {
            limit_bytes,
            ..BlobOptions::default()
        };
        Self::with(address, options)
    }

    fn with(address: &str, options: BlobOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::default();
        let endpoint = OperatorEndpoint::default();
        endpoint.set(address);
        let options = BlobOptions {
            dir: folder.path().join("blobs"),
            ..options
        };
        let blobs = Blobs::open(options, endpoint.clone(), telemetry.clone());
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

/// `bytes` bytes without repetition.
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
    // Each try gets half of the rest: some are done, more are needed.
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
async fn requests_are_left_a_quarter_of_the_link() {
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
    assert!(
        took >= 4.0 / 3.0 * receiving,
        "{took} s, {receiving} s of them"
    );
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
    let options = BlobOptions {
        token_file: Some(file.clone()),
        ..BlobOptions::default()
    };
    let cache = Cache::with(&address, options);
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
    for (limit, freed, left) in [(10, 0, 3), (7, 3, 2), (0, 6, 1)] {
        let cache = Cache::with_limit(&address, limit);
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
        cache.blobs.keep([Digest::of(b"kept")].into());
        assert_eq!(cache.blobs.evict().await, Ok(freed), "{limit}");
        assert_eq!(cache.names().len(), left, "{limit}");
        assert_eq!(cache.blobs.held().len(), left, "{limit}");
        assert_eq!(new.exists(), limit > 0, "{limit}");
        assert!(cache.names().contains(&Digest::of(b"kept").to_string()));
    }
}

#[tokio::test]
async fn the_inventory_follows_the_folder() {
    let (address, _server) = Store::with(&[b"one", b"two"]).serve().await;
    let cache = Cache::with_limit(&address, 0);
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    assert!(cache.blobs.held().is_empty());
    cache.blobs.ensure(&one, 3).await.unwrap();
    assert_eq!(cache.blobs.changes().came, [one.clone()].into());
    cache.blobs.ensure(&two, 3).await.unwrap();
    cache.blobs.keep([two.clone()].into());
    cache.blobs.evict().await.unwrap();
    let changes = cache.blobs.changes();
    assert_eq!(
        (changes.came, changes.gone),
        ([two.clone()].into(), [one].into())
    );
    // After a restart, too; a partial blob does not count.
    let dir = cache.folder.path().join("blobs");
    std::fs::write(dir.join(format!("{}.part", Digest::of(b"half"))), b"ha").unwrap();
    let options = BlobOptions {
        dir,
        ..BlobOptions::default()
    };
    let again = Blobs::open(options, cache.endpoint.clone(), Telemetry::default()).unwrap();
    assert_eq!(again.held(), [two].into());
}

#[tokio::test]
async fn a_store_that_lost_its_blobs_is_filled_again() {
    let store = Store::with(&[b"one", b"two"]);
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    for digest in [&one, &two] {
        cache.blobs.ensure(digest, 3).await.unwrap();
    }
    store.0.lock().unwrap().blobs.clear();
    let blobs = Arc::clone(&cache.blobs);
    let refilling = tokio::spawn(async move { blobs.refill().await });
    let never_held = Digest::of(b"never held");
    cache.blobs.want([two.clone(), never_held, one.clone()]);
    let begin = Instant::now();
    while store.0.lock().unwrap().put.len() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // One that was lost meanwhile is skipped and reported.
    let path = cache.blobs.ensure(&one, 3).await.unwrap();
    std::fs::remove_file(path).unwrap();
    cache.blobs.held();
    cache.blobs.want([one.clone(), two.clone()]);
    while store.0.lock().unwrap().put.len() < 3 {
        assert!(begin.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while cache.blobs.changes().gone != [one.clone()].into() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    refilling.abort();
    let held = store.0.lock().unwrap();
    assert_eq!(held.blobs[one.as_str()], b"one");
    assert_eq!(held.blobs[two.as_str()], b"two");
}

#[tokio::test]
async fn what_is_sent_leaves_half_of_the_link_to_requests() {
    let store = Store::default();
    let (address, _server) = store.serve().await;
    let cache = Cache::new(&address);
    let large = content(400_000);
    let quiet = Instant::now();
    cache.blobs.put_bytes(&large).await.unwrap();
    let quiet = quiet.elapsed();
    let _request = cache.telemetry.request_began();
    let under_way = cache.telemetry.requests_under_way();
    let sizes = pace::chunk_bytes(Purpose::Store, under_way, 400_000);
    assert_eq!(sizes, 64 << 10);
    let busy = Instant::now();
    cache.blobs.put_bytes(&large).await.unwrap();
    // In smaller pieces with pauses, and it ends.
    assert!(busy.elapsed() < quiet + Duration::from_secs(5));
    let chunks = &store.0.lock().unwrap().put_chunks;
    assert_eq!((chunks[0], chunks[1]), (2, 7));
}

#[tokio::test]
async fn what_was_prepared_here_stays_as_far_as_there_is_room() {
    let (address, _server) = Store::with(&[b"old", b"kept"]).serve().await;
    let cache = Cache::with_limit(&address, 10);
    let file = cache.folder.path().join("block.pt");
    std::fs::write(&file, b"block").unwrap();
    let block = Digest::of(b"block");
    cache.blobs.ensure(&Digest::of(b"kept"), 4).await.unwrap();
    cache.blobs.keep([Digest::of(b"kept")].into());
    cache.blobs.ensure(&Digest::of(b"old"), 3).await.unwrap();
    cache.blobs.adopt_file(&block, &file).await;
    std::fs::remove_file(&file).unwrap();
    // Blobs that nothing keeps made space; this one needs no fetching.
    let held = [block.clone(), Digest::of(b"kept")].into();
    assert_eq!(cache.blobs.held(), held);
    let path = cache.blobs.ensure(&block, 5).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"block");
    let manifest = Digest::of(b"manifest");
    cache.blobs.adopt_bytes(&manifest, b"manifest".into()).await;
    assert!(!cache.blobs.held().contains(&manifest));
    let small = Digest::of(b"small");
    cache.blobs.adopt_bytes(&small, b"small".into()).await;
    assert!(cache.blobs.held().contains(&small));
}

/// Free space of a disk with a megabyte above the reserve.
fn a_megabyte(dir: &Path) -> io::Result<u64> {
    let held: u64 = list(dir)?.iter().map(|file| file.bytes).sum();
    Ok((space::RESERVE_BYTES + (1 << 20)).saturating_sub(held))
}

#[tokio::test]
async fn on_a_full_disk_what_nothing_keeps_goes_before_anything_is_written() {
    let contents: Vec<Vec<u8>> = (1..4).map(|i| vec![i; 600_000]).collect();
    let all: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let digests: Vec<Digest> = all.iter().map(|content| Digest::of(content)).collect();
    let (address, _server) = Store::with(&all).serve().await;
    let folder = tempfile::tempdir().unwrap();
    let endpoint = OperatorEndpoint::default();
    endpoint.set(&address);
    let options = BlobOptions {
        dir: folder.path().into(),
        limit_bytes: 1 << 40,
        token_file: None,
    };
    let blobs = Blobs::open(options, endpoint, Telemetry::default());
    let blobs = blobs.unwrap().on_disk(a_megabyte);
    blobs.ensure(&digests[0], 600_000).await.unwrap();
    blobs.ensure(&digests[1], 600_000).await.unwrap();
    assert_eq!(blobs.held(), [digests[1].clone()].into());
    // Kept blobs stay, and a larger request fails and may be retried.
    blobs.keep([digests[1].clone()].into());
    let full = blobs.ensure(&digests[2], 600_000).await.unwrap_err();
    assert!(full.is_passing(), "{full}");
    let words = "is full: 600000 more bytes are needed, 448576 are free";
    assert!(full.to_string().contains(words), "{full}");
    assert_eq!(blobs.held(), [digests[1].clone()].into());
    blobs.keep(BTreeSet::new());
    blobs.ensure(&digests[2], 600_000).await.unwrap();
    assert_eq!(blobs.held(), [digests[2].clone()].into());
}

/// `contents` with their sizes, as listed for prefetching.
fn ahead(contents: &[&[u8]]) -> BTreeMap<Digest, u64> {
    let named = contents.iter().map(|c| (Digest::of(c), c.len() as u64));
    named.collect()
}

/// Lets the cache prefetch `contents` until nothing changes for a while.
async fn fetch_ahead(cache: &Cache, contents: &[&[u8]]) {
    let wanted = ahead(contents);
    cache.blobs.stand_by(&wanted);
    let fetching = cache.blobs.fetch_ahead(&wanted);
    let _ = tokio::time::timeout(Duration::from_secs(2), fetching).await;
}

#[tokio::test]
async fn what_was_fetched_ahead_is_not_fetched_for_a_slice() {
    let (one, two) = (content(150_000), content(90_000));
    let store = Store::with(&[&one, &two]);
    let (address, _server) = store.serve().await;
    let cache = Cache::with_limit(&address, 1 << 20);
    fetch_ahead(&cache, &[&one, &two]).await;
    assert_eq!(cache.blobs.standby_bytes(), 240_000);
    let all: BTreeSet<Digest> = ahead(&[&one, &two]).into_keys().collect();
    assert_eq!(cache.blobs.changes().came, all, "the operator hears of it");
    store.0.lock().unwrap().asked.clear();
    for content in [&one, &two] {
        let bytes = content.len() as u64;
        cache
            .blobs
            .ensure(&Digest::of(content), bytes)
            .await
            .unwrap();
    }
    assert_eq!(store.0.lock().unwrap().asked, []);
}

#[tokio::test]
async fn blobs_ahead_take_a_quarter_and_go_after_what_nothing_names() {
    let (kept, unnamed) = (vec![1; 300], vec![2; 500]);
    let (first, second) = (vec![3; 200], vec![4; 150]);
    let store = Store::with(&[&kept, &unnamed, &first, &second]);
    let (address, _server) = store.serve().await;
    let cache = Cache::with_limit(&address, 1000);
    for content in [&kept, &unnamed] {
        let bytes = content.len() as u64;
        cache
            .blobs
            .ensure(&Digest::of(content), bytes)
            .await
            .unwrap();
    }
    cache.blobs.keep([Digest::of(&kept)].into());
    // Only one of the two fits into a quarter of a thousand bytes.
    fetch_ahead(&cache, &[&first, &second]).await;
    let held = cache.blobs.held();
    assert_eq!(held.len(), 3, "{held:?}");
    assert!(
        held.contains(&Digest::of(&unnamed)),
        "there was room for it"
    );
    let ahead = cache.blobs.standby_bytes();
    assert!([150, 200].contains(&ahead), "{ahead}");
    // Active slices need space: unnamed blobs go first, and only then prefetched ones.
    assert_eq!(cache.blobs.has_room_for(300).await, Ok(true));
    assert!(!cache.blobs.held().contains(&Digest::of(&unnamed)));
    assert_eq!(cache.blobs.standby_bytes(), ahead);
    assert_eq!(cache.blobs.has_room_for(650).await, Ok(true));
    assert_eq!(cache.blobs.standby_bytes(), 0);
    assert_eq!(cache.blobs.held(), [Digest::of(&kept)].into());
}

#[tokio::test]
async fn blobs_ahead_push_out_nothing_that_serves() {
    let (kept, ahead) = (vec![1; 900], vec![2; 200]);
    let (address, _server) = Store::with(&[&kept, &ahead]).serve().await;
    let cache = Cache::with_limit(&address, 1000);
    cache.blobs.ensure(&Digest::of(&kept), 900).await.unwrap();
    cache.blobs.keep([Digest::of(&kept)].into());
    fetch_ahead(&cache, &[&ahead]).await;
    assert_eq!(cache.blobs.held(), [Digest::of(&kept)].into());
}

#[tokio::test]
async fn blobs_ahead_wait_for_those_that_are_to_serve() {
    let (ahead, serving) = (content(200_000), content(700_000));
    let store = Store::with(&[&ahead, &serving]);
    store.0.lock().unwrap().delay = Duration::from_millis(60);
    let (address, _server) = store.serve().await;
    let cache = Cache::with_limit(&address, 1 << 30);
    let digest = Digest::of(&serving);
    let serve = cache.blobs.ensure(&digest, 700_000);
    let beside = async {
        // The other has started.
        tokio::time::sleep(Duration::from_millis(40)).await;
        fetch_ahead(&cache, &[&ahead]).await;
    };
    let (served, ()) = tokio::join!(serve, beside);
    served.unwrap();
    let asked = store.0.lock().unwrap().asked.clone();
    let lengths: Vec<u64> = asked.iter().map(|(_, length)| *length).collect();
    let large = 256 << 10;
    assert_eq!(lengths[..3], [large, large, 700_000 - 2 * large]);
    assert!(lengths.len() > 3, "then those ahead: {lengths:?}");
}
