//! Which blobs are needed; the rest is removed periodically.

use crate::prepare::manifests::{Loaded, blobs};
use crate::state::listed::Listed;
use lamina_model::Digest;
use std::collections::BTreeSet;
use std::time::Duration;

/// Time between two collections.
pub(crate) const PERIOD: Duration = Duration::from_secs(600);
/// Newer blobs are kept: blocks of a model that is being prepared arrive before their manifest.
pub(crate) const MIN_AGE: Duration = Duration::from_secs(3600);

/// Every blob that a manifest in use, or a host's spec, refers to.
pub(crate) fn needed(listed: &Listed, loaded: &Loaded) -> BTreeSet<Digest> {
    let mut needed = BTreeSet::new();
    for (digest, manifest) in &loaded.manifests {
        needed.extend(digest.parse::<Digest>());
        needed.extend(blobs(manifest).cloned());
    }
    for node in &listed.compute_nodes {
        let blocks = node.spec.slices.iter().flat_map(|s| &s.blocks);
        let revisions = node.spec.routes.iter().flat_map(|r| &r.revisions);
        let kept = revisions.flat_map(|r| [&r.probe, &r.manifest]);
        let named = blocks.chain(kept).map(|b| b.digest.parse::<Digest>());
        needed.extend(named.flatten());
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use lamina_crds::compute_node::Blob;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[test]
    fn blobs_of_manifests_and_of_hosts_wishes_are_kept() {
        let mut snapshot = testing::world();
        let lone = Digest::of(b"a slice whose manifest is gone");
        let node = snapshot.compute_nodes.get_mut("edge-1").unwrap();
        let mut slice = testing::slice("uid", 1, 0);
        slice.blocks = vec![Blob {
            digest: lone.to_string(),
            bytes: 1,
        }];
        Arc::make_mut(node).spec.slices.push(slice);
        let listed = Listed {
            compute_nodes: snapshot.compute_nodes.values().cloned().collect(),
            ..Listed::default()
        };
        let manifest = Arc::new(testing::manifest(2));
        let loaded = Loaded {
            manifests: BTreeMap::from([(testing::digest(), Arc::clone(&manifest))]),
            is_certain: true,
            ..Loaded::default()
        };
        let needed = needed(&listed, &loaded);
        let expected = [
            lone,
            Digest::of(b"manifest"),
            Digest::of(b"block 0"),
            Digest::of(b"block 1"),
            Digest::of(b"probe"),
        ];
        assert_eq!(needed, BTreeSet::from(expected));
    }
}
