//! Which hosts hold which blobs, for refilling a store that lost some.

use lamina_model::Digest;
use lamina_proto::control::BlobInventory;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A host that was asked for a blob is not asked again within this time.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// Most blobs remembered of one host; more are ignored.
const MOST_BLOBS: usize = 20_000;

/// Blobs by host, shared with readers.
pub type Inventories = Arc<BTreeMap<String, Arc<HashSet<Digest>>>>;

/// The blobs of hosts.
#[derive(Debug, Default)]
pub(super) struct Holders {
    by_node: Inventories,
    asked: BTreeMap<Digest, Ask>,
}

#[derive(Debug)]
struct Ask {
    at: Duration,
    /// How large the blob can be.
    most_bytes: u64,
    /// Hosts that were asked, and did not send it so far.
    nodes: BTreeSet<String>,
}

/// The source of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Ask this host.
    Now(String),
    /// A host was asked a moment ago.
    Before,
}

impl Holders {
    /// A host reported its blobs.
    pub(super) fn heard(&mut self, node: &str, inventory: BlobInventory) {
        let by_node = Arc::make_mut(&mut self.by_node);
        let held = Arc::make_mut(by_node.entry(node.to_owned()).or_default());
        if inventory.complete {
            held.clear();
        }
        for gone in &inventory.gone {
            if let Ok(digest) = gone.parse::<Digest>() {
                held.remove(&digest);
            }
        }
        let room = MOST_BLOBS.saturating_sub(held.len());
        let came = inventory.held.iter().take(room);
        // An invalid digest cannot be requested.
        held.extend(came.filter_map(|d| d.parse::<Digest>().ok()));
    }

    /// The host to ask for `blob`, which has `most_bytes` at most, of those that hold it and
    /// are `alive`; another one where the last did not send it. `None` where nobody holds it.
    pub(super) fn ask(
        &mut self,
        blob: &Digest,
        most_bytes: u64,
        now: Duration,
        alive: impl Fn(&str) -> bool,
    ) -> Option<Asked> {
        self.asked
            .retain(|_, ask| now.saturating_sub(ask.at) < ASK_AGAIN * 10);
        let holds = |node: &&String| {
            alive(node)
                && self
                    .by_node
                    .get(*node)
                    .is_some_and(|held| held.contains(blob))
        };
        let holders: Vec<&String> = self.by_node.keys().filter(holds).collect();
        let first = holders.first()?;
        let known = self.asked.get(blob);
        if known.is_some_and(|ask| now.saturating_sub(ask.at) < ASK_AGAIN) {
            return Some(Asked::Before);
        }
        let was_asked = |node: &str| known.is_some_and(|ask| ask.nodes.contains(node));
        let fresh = holders.iter().find(|node| !was_asked(node));
        let node = (*fresh.unwrap_or(first)).clone();
        let ask = self.asked.entry(blob.clone()).or_insert(Ask {
            at: now,
            most_bytes,
            nodes: BTreeSet::new(),
        });
        (ask.at, ask.most_bytes) = (now, most_bytes);
        ask.nodes.insert(node.clone());
        Some(Asked::Now(node))
    }

    /// How many bytes `blob` has at most, where `node` was asked for it.
    pub(super) fn was_asked(&self, blob: &Digest, node: &str) -> Option<u64> {
        let ask = self.asked.get(blob)?;
        ask.nodes.contains(node).then_some(ask.most_bytes)
    }

    /// The blobs of every host, as reported.
    pub(super) fn all(&self) -> Inventories {
        Arc::clone(&self.by_node)
    }

    /// Forgets a host that is gone.
    pub(super) fn forget(&mut self, node: &str) {
        if self.by_node.contains_key(node) {
            Arc::make_mut(&mut self.by_node).remove(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn inventory(held: &[&Digest], complete: bool) -> BlobInventory {
        BlobInventory {
            held: held.iter().map(ToString::to_string).collect(),
            complete,
            gone: vec!["nonsense".into()],
        }
    }

    #[test]
    fn a_blob_is_asked_of_one_host_at_a_time_and_of_another_if_it_does_not_come() {
        let (blob, other) = (Digest::of(b"blob"), Digest::of(b"other"));
        let mut holders = Holders::default();
        assert_eq!(holders.ask(&blob, 7, at(0), |_| true), None);
        holders.heard("a", inventory(&[&blob, &other], true));
        holders.heard("b", inventory(&[&blob], false));
        holders.heard("dead", inventory(&[&blob], true));
        let alive = |node: &str| node != "dead";
        assert_eq!(
            holders.ask(&blob, 7, at(0), alive),
            Some(Asked::Now("a".into()))
        );
        assert_eq!(holders.ask(&blob, 7, at(5), alive), Some(Asked::Before));
        assert_eq!(holders.was_asked(&blob, "a"), Some(7));
        assert_eq!(holders.was_asked(&blob, "b"), None);
        assert_eq!(holders.was_asked(&other, "a"), None);
        assert_eq!(
            holders.ask(&blob, 7, at(30), alive),
            Some(Asked::Now("b".into()))
        );
        assert_eq!(
            holders.ask(&blob, 7, at(60), alive),
            Some(Asked::Now("a".into()))
        );
        holders.heard("a", inventory(&[], true));
        assert_eq!(holders.ask(&other, 7, at(60), alive), None);
        holders.forget("a");
        holders.forget("b");
        assert_eq!(holders.ask(&blob, 7, at(99), alive), None);
    }
}
