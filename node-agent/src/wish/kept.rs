//! Blobs that this host keeps besides its blocks: probe and manifest of each revision that enters
//! here. With them an operator that lost its store can plan again.

use super::ledger::Ledger;
use crate::blobs::BlobSource;
use crate::net::Backoff;
use lamina_crds::compute_node::{Blob, Route};
use lamina_model::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Tries at a blob that the store does not have or that arrives damaged.
const FINAL_TRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Probes first: verifying waits for them.
pub(super) fn of_routes(routes: &[Route]) -> Vec<Blob> {
    let revisions = || routes.iter().flat_map(|r| &r.revisions);
    let probes = revisions().map(|r| r.probe.clone());
    let manifests = revisions().map(|r| r.manifest.clone());
    probes.chain(manifests).collect()
}

/// Every blob that `ledger` names.
pub(super) fn digests(ledger: &Ledger) -> BTreeSet<Digest> {
    let blocks = ledger.slices.iter().flat_map(|s| &s.blocks);
    let digests = blocks.map(|b| &b.digest);
    let beside = of_routes(&ledger.routes);
    let all = digests.chain(beside.iter().map(|b| &b.digest));
    all.filter_map(|digest| digest.parse().ok()).collect()
}

/// Standby blobs of `ledger`, with their sizes, that nothing else there names.
pub(super) fn ahead(ledger: &Ledger) -> BTreeMap<Digest, u64> {
    let kept = digests(ledger);
    let blobs = ledger.standby.iter().flat_map(|s| &s.blocks);
    let blobs = blobs.filter_map(|b| Some((b.digest.parse().ok()?, b.bytes)));
    blobs.filter(|(digest, _)| !kept.contains(digest)).collect()
}

/// Fetches the missing ones of `wanted`, one after the other.
pub(super) async fn fetch(blobs: Arc<dyn BlobSource>, wanted: Vec<Blob>) {
    for blob in wanted {
        match blob.digest.parse() {
            Ok(digest) => fetch_one(&*blobs, &digest, blob.bytes).await,
            Err(error) => tracing::warn!(%error, "a probe or manifest cannot be kept"),
        }
    }
}

async fn fetch_one(blobs: &dyn BlobSource, digest: &Digest, bytes: u64) {
    let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut final_tries = 0;
    while let Err(error) = blobs.ensure(digest, bytes).await {
        final_tries += u32::from(!error.is_passing());
        if final_tries >= FINAL_TRIES {
            tracing::warn!(%error, "a probe or manifest is not kept");
            return;
        }
        tokio::time::sleep(pauses.next_wait()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::BlobError;
    use crate::testing::{blob, route, slice};
    use async_trait::async_trait;
    use lamina_crds::compute_node::Standby;
    use std::path::PathBuf;
    use std::sync::Mutex;

    /// A store that is away for some calls and lacks one blob.
    #[derive(Default)]
    struct Moody {
        away_for: Mutex<u32>,
        lacks: Option<Digest>,
        given: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl BlobSource for Moody {
        async fn ensure(&self, digest: &Digest, _: u64) -> Result<PathBuf, BlobError> {
            let digest = digest.clone();
            if self.lacks.as_ref() == Some(&digest) {
                return Err(BlobError::Unknown { digest });
            }
            let mut away_for = self.away_for.lock().unwrap();
            if *away_for > 0 {
                *away_for -= 1;
                let reason = "away".to_owned();
                return Err(BlobError::Unavailable { digest, reason });
            }
            self.given.lock().unwrap().push(digest.to_string());
            Ok(PathBuf::new())
        }
    }

    #[test]
    fn what_a_slice_has_is_not_fetched_ahead() {
        let mut ledger = Ledger::default();
        ledger.slices = vec![slice("u", 1, 0)];
        ledger.standby = vec![Standby {
            placement_uid: "u".into(),
            blocks: vec![blob(&[1]), blob(b"more"), blob(b"more")],
        }];
        assert_eq!(ahead(&ledger), [(Digest::of(b"more"), 4)].into());
        assert!(!digests(&ledger).contains(&Digest::of(b"more")));
    }

    #[tokio::test(start_paused = true)]
    async fn probe_and_manifest_of_every_revision_are_fetched() {
        let mut two = route("u", "m", 1);
        two.revisions.push(two.revisions[0].clone());
        two.revisions[1].probe = blob(b"probe 2");
        two.revisions[1].manifest = blob(b"manifest 2");
        let store = Arc::new(Moody {
            away_for: Mutex::new(20),
            lacks: Some(Digest::of(b"manifest")),
            ..Moody::default()
        });
        fetch(store.clone(), of_routes(&[two])).await;
        let expected = [b"probe".as_slice(), b"probe 2", b"manifest 2"].map(|b| blob(b).digest);
        assert_eq!(*store.given.lock().unwrap(), expected);
    }
}
