//! Which blobs the cache holds, for an operator that lost its store.

use lamina_model::Digest;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The content of the cache, and the changes since the last query.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: BTreeSet<Digest>,
    changes: InventoryChanges,
}

/// Changes between two queries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InventoryChanges {
    /// Held now, but not at the last query.
    pub came: BTreeSet<Digest>,
    /// The opposite.
    pub gone: BTreeSet<Digest>,
}

impl Inventory {
    pub(super) fn of(held: BTreeSet<Digest>) -> Self {
        let inner = Inner {
            held,
            changes: InventoryChanges::default(),
        };
        Self {
            inner: Mutex::new(inner),
        }
    }

    /// Everything; further changes count from here.
    pub(super) fn whole(&self) -> BTreeSet<Digest> {
        let mut inner = self.lock();
        inner.changes = InventoryChanges::default();
        inner.held.clone()
    }

    /// The changes since the last query.
    pub(super) fn changes(&self) -> InventoryChanges {
        std::mem::take(&mut self.lock().changes)
    }

    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.lock().held.contains(digest)
    }

    pub(super) fn add(&self, digest: &Digest) {
        let mut inner = self.lock();
        if inner.held.insert(digest.clone()) && !inner.changes.gone.remove(digest) {
            inner.changes.came.insert(digest.clone());
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        let mut inner = self.lock();
        if inner.held.remove(digest) && !inner.changes.came.remove(digest) {
            inner.changes.gone.insert(digest.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<const N: usize>(all: [&[u8]; N]) -> BTreeSet<Digest> {
        all.map(Digest::of).into()
    }

    #[test]
    fn changes_are_told_once_and_cancel_out() {
        let inventory = Inventory::of(set([b"a", b"b"]));
        assert_eq!(inventory.changes(), InventoryChanges::default());
        inventory.add(&Digest::of(b"c"));
        inventory.add(&Digest::of(b"a"));
        inventory.remove(&Digest::of(b"b"));
        inventory.remove(&Digest::of(b"nothing"));
        let changes = inventory.changes();
        assert_eq!((changes.came, changes.gone), (set([b"c"]), set([b"b"])));
        assert_eq!(inventory.changes(), InventoryChanges::default());
        inventory.add(&Digest::of(b"d"));
        inventory.remove(&Digest::of(b"d"));
        inventory.remove(&Digest::of(b"a"));
        inventory.add(&Digest::of(b"a"));
        assert_eq!(inventory.changes(), InventoryChanges::default());
        inventory.add(&Digest::of(b"e"));
        assert_eq!(inventory.whole(), set([b"a", b"c", b"e"]));
        assert_eq!(inventory.changes(), InventoryChanges::default());
    }
}
