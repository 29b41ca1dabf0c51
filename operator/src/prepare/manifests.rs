//! Manifests from the store whose blobs are all there.

use crate::state::ids::JobId;
use crate::state::listed::Listed;
use crate::state::snapshot::PrepareView;
use crate::store::{BlobStore, StoreError};
use crate::text::with_causes;
use lamina_model::{Digest, MANIFEST_BYTES, Manifest, ManifestError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The blobs of a complete manifest are checked again after this time: volumes lose files.
const CHECK_AGAIN: Duration = Duration::from_secs(30);
/// Most rechecks at once: a look must not wait for hundreds.
const CHECKS: usize = 4;

/// What was loaded.
#[derive(Debug)]
pub(crate) struct Manifests {
    store: BlobStore,
    known: BTreeMap<String, Known>,
    /// Digests of unusable manifests that were already logged.
    complained: BTreeSet<String>,
}

#[derive(Debug)]
struct Known {
    manifest: Arc<Manifest>,
    bytes: u64,
    checked: Instant,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("`{0}` is not a digest")]
    Name(String),
    #[error("it cannot be read from the store")]
    Store(#[from] StoreError),
    #[error("nobody can use what is in it")]
    Content(#[from] ManifestError),
    #[error("{} of its blobs are missing, starting with {}", .0.len(), .0[0].blob)]
    Missing(Vec<Lacking>),
}

impl Unusable {
    /// Whether something is missing, rather than unreachable or damaged.
    const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Missing(_) | Self::Store(StoreError::NotFound(_))
        )
    }

    /// What the store lacks.
    fn missing(&self) -> Vec<Lacking> {
        match self {
            Self::Missing(blobs) => blobs.clone(),
            Self::Store(StoreError::NotFound(manifest)) => vec![Lacking {
                blob: manifest.clone(),
                most_bytes: MANIFEST_BYTES,
            }],
            _ => Vec::new(),
        }
    }
}

/// A probe is no larger: no message to a model is.
const PROBE_BYTES: u64 = 2 << 30;

/// A blob that the store lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// Its digest.
    pub blob: Digest,
    /// How large it can be: whoever sends more sends something else.
    pub most_bytes: u64,
}

/// The manifests that decisions need, and whether all others are known to be
/// absent: without that, nothing may be collected.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Those whose blobs are all in the store, by digest.
    pub manifests: BTreeMap<String, Arc<Manifest>>,
    /// Their sizes.
    pub bytes: BTreeMap<String, u64>,
    /// Blobs that the store lacks, by the manifest that needs them: hosts may still
    /// hold them.
    pub missing: BTreeMap<String, Vec<Lacking>>,
    /// Digests of manifests of which something is being taken back from hosts.
    pub recovering: BTreeSet<String>,
    /// The store answered for all of them.
    pub is_certain: bool,
}

/// Digests of all referenced manifests.
pub(crate) fn referenced(
    listed: &Listed,
    prepares: &BTreeMap<JobId, PrepareView>,
) -> BTreeSet<String> {
    let profiles = listed
        .models
        .iter()
        .filter_map(|m| Some(m.status.as_ref()?.profile.as_ref()?.manifest.clone()));
    let plans = listed.placements.iter().flat_map(|p| {
        let active = p.status.as_ref().and_then(|s| s.active.as_ref());
        active
            .into_iter()
            .chain(&p.spec.plan)
            .map(|plan| plan.manifest.clone())
    });
    let done = prepares.values().filter_map(|p| match p {
        PrepareView::Done { manifest, .. } => Some(manifest.clone()),
        _ => None,
    });
    profiles.chain(plans).chain(done).collect()
}

/// Every blob that `manifest` names.
pub(crate) fn blobs(manifest: &Manifest) -> impl Iterator<Item = &Digest> {
    let blocks = manifest.blocks.iter().map(|b| &b.digest);
    blocks.chain(std::iter::once(&manifest.probe))
}

impl Manifests {
    /// Nothing is loaded from `store` yet.
    pub(crate) const fn new(store: BlobStore) -> Self {
        Self {
            store,
            known: BTreeMap::new(),
            complained: BTreeSet::new(),
        }
    }

    /// Loads those of `wanted` that are not loaded, and drops those not wanted.
    pub(crate) async fn load(&mut self, wanted: &BTreeSet<String>) -> Loaded {
        self.known.retain(|digest, _| wanted.contains(digest));
        self.complained.retain(|digest| wanted.contains(digest));
        let mut loaded = Loaded {
            is_certain: true,
            ..Loaded::default()
        };
        let mut checks = CHECKS;
        for digest in wanted {
            match self.get(digest, &mut checks).await {
                Ok((manifest, bytes)) => {
                    self.complained.remove(digest);
                    loaded.manifests.insert(digest.clone(), manifest);
                    loaded.bytes.insert(digest.clone(), bytes);
                }
                Err(error) => {
                    self.known.remove(digest);
                    loaded.is_certain &= error.is_absence();
                    let missing = error.missing();
                    if !missing.is_empty() {
                        loaded.missing.insert(digest.clone(), missing);
                    }
                    if self.complained.insert(digest.clone()) {
                        let error = with_causes(&error);
                        tracing::warn!(
                            manifest = digest,
                            error,
                            "manifest cannot be used; asking hosts for missing blobs"
                        );
                    }
                }
            }
        }
        loaded
    }

    async fn get(
        &mut self,
        digest: &str,
        checks: &mut usize,
    ) -> Result<(Arc<Manifest>, u64), Unusable> {
        if let Some(known) = self.known.get_mut(digest) {
            if known.checked.elapsed() >= CHECK_AGAIN && *checks > 0 {
                *checks -= 1;
                check(&self.store, &known.manifest).await?;
                known.checked = Instant::now();
            }
            return Ok((Arc::clone(&known.manifest), known.bytes));
        }
        let name: Digest = digest
            .parse()
            .map_err(|_| Unusable::Name(digest.to_owned()))?;
        let size = self.store.size(&name).await?;
        let size = size.ok_or_else(|| StoreError::NotFound(name.clone()))?;
        // A host named it, and may have put anything there.
        if size > MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(size).into());
        }
        let content = self.store.get(&name).await?;
        let manifest = Manifest::from_json(&content)?;
        check(&self.store, &manifest).await?;
        let manifest = Arc::new(manifest);
        let bytes = content.len() as u64;
        let known = Known {
            manifest: Arc::clone(&manifest),
            bytes,
            checked: Instant::now(),
        };
        self.known.insert(digest.to_owned(), known);
        Ok((manifest, bytes))
    }
}

async fn check(store: &BlobStore, manifest: &Manifest) -> Result<(), Unusable> {
    let blocks = manifest.blocks.iter().map(|b| (&b.digest, b.file_bytes));
    let mut missing = Vec::new();
    for (blob, most_bytes) in blocks.chain([(&manifest.probe, PROBE_BYTES)]) {
        if !store.has(blob).await? {
            let blob = blob.clone();
            missing.push(Lacking { blob, most_bytes });
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unusable::Missing(missing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use bytes::Bytes;

    /// A manifest whose blobs can be put: contents are known.
    fn content() -> (Manifest, Vec<Bytes>) {
        let manifest = testing::manifest(2);
        let blobs = ["block 0", "block 1", "probe"];
        (manifest, blobs.map(Bytes::from).to_vec())
    }

    #[tokio::test]
    async fn a_manifest_counts_once_all_of_its_blobs_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let mut manifests = Manifests::new(store.clone());
        let (manifest, blobs) = content();
        let text = serde_json::to_vec(&manifest).unwrap();
        let digest = Digest::of(&text).to_string();
        let wanted = BTreeSet::from([digest.clone()]);
        assert!(manifests.load(&wanted).await.manifests.is_empty());
        store.put(text.into()).await.unwrap();
        assert!(manifests.load(&wanted).await.manifests.is_empty());
        for blob in blobs {
            store.put(blob).await.unwrap();
        }
        let loaded = manifests.load(&wanted).await;
        assert_eq!(*loaded.manifests[&digest], manifest);
        assert!(loaded.is_certain);
    }

    #[tokio::test]
    async fn what_is_too_large_for_a_manifest_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let (manifest, blobs) = content();
        for blob in blobs {
            store.put(blob).await.unwrap();
        }
        let mut text = serde_json::to_vec(&manifest).unwrap();
        text.resize(usize::try_from(MANIFEST_BYTES).unwrap() + 1, b' ');
        let digest = store.put(text.into()).await.unwrap();
        let mut manifests = Manifests::new(store);
        let error = manifests.get(digest.as_str(), &mut 1).await.unwrap_err();
        let is_too_large = matches!(error, Unusable::Content(ManifestError::TooLarge(_)));
        assert!(is_too_large, "{error:?}");
        let wanted = BTreeSet::from([digest.to_string()]);
        assert!(manifests.load(&wanted).await.manifests.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_manifest_is_left_out_and_stops_collecting() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::local(folder.path()).unwrap();
        let digest = store.put(Bytes::from("{}")).await.unwrap();
        let wanted = BTreeSet::from([digest.to_string()]);
        let loaded = Manifests::new(store).load(&wanted).await;
        assert!(loaded.manifests.is_empty() && !loaded.is_certain);
    }
}
