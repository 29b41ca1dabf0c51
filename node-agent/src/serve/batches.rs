//! The largest batch that each revision accepts, checked at its entry before anything is
//! computed: as many rows as fit in memory, given the activations of the blocks that run here.
//! Preparing measured these; they are in the manifest, which the entry keeps. The entry does not
//! know the memory of later hosts; their workers refuse batches that they cannot hold.

use super::routes::{Routes, Signature};
use super::slices::Slices;
use crate::blobs::{BlobError, BlobSource};
use lamina_crds::compute_node::Blob;
use lamina_model::{MANIFEST_BYTES, Manifest, ValueSpec};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Most rows of a request, however much memory there is.
const MOST_ROWS: u64 = 65_536;
/// A missing manifest is looked for again after this time.
const AGAIN: Duration = Duration::from_secs(10);

/// Memory per row by revision. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Batches {
    /// Memory of a worker.
    memory_bytes: u64,
    known: Arc<RwLock<Known>>,
}

/// By the digest of a manifest: what one row takes in each block, by the block's digest.
type Known = HashMap<String, HashMap<String, u64>>;

/// A manifest cannot be read.
#[derive(Debug, thiserror::Error)]
enum ManifestError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Digest(#[from] lamina_model::DigestError),
    #[error("cannot read it: {0}")]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Content(#[from] lamina_model::ManifestError),
}

impl Batches {
    /// Starts empty; runs may take `memory_bytes`.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            known: Arc::default(),
        }
    }

    /// Most rows of a request for the revision of `signature`, considering only the part that
    /// `slices` run.
    pub(crate) fn largest(
        &self,
        placement_uid: &str,
        signature: &Signature,
        slices: &Slices,
    ) -> u64 {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peaks) = known.get(&signature.manifest) else {
            return MOST_ROWS;
        };
        let peak = slices.most_of_blocks(placement_uid, signature.revision, |digest| {
            peaks.get(digest).copied().unwrap_or(0)
        });
        rows(peak, self.memory_bytes)
    }

    /// Reads the manifests of `routes` while it is polled.
    pub(crate) async fn follow(self, routes: Routes, blobs: Arc<dyn BlobSource>) {
        let mut applied = routes.subscribe();
        loop {
            applied.borrow_and_update();
            let all = self.read(routes.manifests(), &*blobs).await;
            // Either way it is time to check again.
            if all {
                let _ = applied.changed().await;
            } else {
                let _ = timeout(AGAIN, applied.changed()).await;
            }
            // Routes change in bursts.
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether all of `manifests` are known.
    async fn read(&self, manifests: Vec<Blob>, blobs: &dyn BlobSource) -> bool {
        self.write(|known| known.retain(|digest, _| manifests.iter().any(|m| m.digest == *digest)));
        let mut all = true;
        for blob in manifests {
            if self.write(|known| known.contains_key(&blob.digest)) {
                continue;
            }
            match read(&blob, blobs).await {
                Ok(manifest) => {
                    self.write(|known| known.insert(blob.digest, peaks(&manifest)));
                }
                Err(error) => {
                    tracing::debug!(digest = blob.digest, %error, "no manifest yet");
                    all = false;
                }
            }
        }
        all
    }

    fn write<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        change(&mut self.known.write().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn read(blob: &Blob, blobs: &dyn BlobSource) -> Result<Manifest, ManifestError> {
    if blob.bytes > MANIFEST_BYTES {
        return Err(lamina_model::ManifestError::TooLarge(blob.bytes).into());
    }
    let path = blobs.ensure(&blob.digest.parse()?, blob.bytes).await?;
    Ok(Manifest::from_json(&tokio::fs::read(path).await?)?)
}

fn peaks(manifest: &Manifest) -> HashMap<String, u64> {
    let blocks = manifest.blocks.iter();
    let peaks = blocks.map(|b| (b.digest.to_string(), b.peak_activation_bytes));
    peaks.collect()
}

/// How many rows of `peak` bytes fit into `memory_bytes`. One is always tried: a run that is out of
/// memory reports that.
fn rows(peak: u64, memory_bytes: u64) -> u64 {
    // The kernels need memory besides the activations.
    let row = peak.saturating_add(peak / 2).max(1);
    (memory_bytes / row).clamp(1, MOST_ROWS)
}

/// Rows of values of these shapes, counted as multiples of one row's memory and time: free sizes
/// count in proportion to the typical ones. A partial row counts as one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
pub(crate) fn rows_of<'a>(specs: &[ValueSpec], shapes: impl IntoIterator<Item = &'a [i64]>) -> u64 {
    let of = |(spec, shape): (&ValueSpec, &[i64])| spec.times(shape).ceil() as u64;
    let rows = specs.iter().zip(shapes).map(of);
    rows.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::data_plane::testing::Host;
    use crate::testing::{blob, manifest, route, slice};
    use lamina_model::{DataType, FreeSize};

    #[test]
    fn as_many_rows_as_there_is_room_for() {
        let gib = 1 << 30;
        assert_eq!(rows(10 << 20, gib), 68);
        assert_eq!(rows(2 << 30, gib), 1);
        assert_eq!(rows(0, gib), MOST_ROWS);
        assert_eq!(rows(u64::MAX, gib), 1);
    }

    #[test]
    fn free_sizes_are_rows() {
        let spec = |shape: &&[i64]| ValueSpec {
            name: "x".into(),
            datatype: DataType::Uint8,
            sizes: Vec::new(),
            shape: shape.to_vec(),
        };
        let (tokens, table): (&[i64], &[i64]) = (&[4, 100], &[9, 9]);
        let rows = |shapes: &[&[i64]]| {
            let specs: Vec<ValueSpec> = shapes.iter().map(spec).collect();
            rows_of(&specs, [tokens, table])
        };
        assert_eq!(rows(&[&[-1, -1], &[9, 9]]), 400);
        assert_eq!(rows(&[&[-1, 100], &[-1, 9]]), 9);
        assert_eq!(rows(&[&[4, 100], &[9, 9]]), 1);
        // In proportion to the typical size.
        let sized = ValueSpec {
            sizes: vec![FreeSize::parse("seq:1..500@40", 1).unwrap()],
            ..spec(&&[-1_i64, -1][..])
        };
        let of_sized = |shape: &[i64]| rows_of(std::slice::from_ref(&sized), [shape]);
        assert_eq!((of_sized(tokens), of_sized(&[1, 3])), (10, 1));
    }

    #[tokio::test]
    async fn what_runs_elsewhere_does_not_count_and_manifests_go_with_their_routes() {
        let folder = crate::serve::data_plane::testing::Folder::new();
        let host = Host::start("cam-1", &folder);
        let block = folder.put_block(1.0, 0.0);
        let manifest = serde_json::to_vec(&manifest(&block, 10 << 20)).unwrap();
        let mut wanted = route("u", "m", 1);
        wanted.revisions[0].manifest = blob(&manifest);
        host.routes.apply(std::slice::from_ref(&wanted)).unwrap();
        let signature = host.routes.find("default/m")[0].active.clone().unwrap();
        let batches = Batches::new(1 << 30);
        let largest = || batches.largest("u", &signature, &host.slices);
        assert!(!batches.read(host.routes.manifests(), &*folder).await);
        assert_eq!(largest(), MOST_ROWS);
        folder.put(&manifest);
        assert!(batches.read(host.routes.manifests(), &*folder).await);
        assert_eq!(largest(), MOST_ROWS);
        let mut part = slice("u", 1, 0);
        part.blocks = vec![block];
        host.slices.apply(&[part]);
        assert_eq!(largest(), 68);
        assert!(batches.read(Vec::new(), &*folder).await);
        assert_eq!(largest(), MOST_ROWS);
    }
}
