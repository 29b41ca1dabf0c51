use crate::chain::Chain;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The loaded slices, by the agent's numbers. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Slices(Arc<Mutex<BTreeMap<u64, Arc<Chain>>>>);

impl Slices {
    pub(super) fn insert(&self, number: u64, slice: Chain) {
        self.lock().insert(number, Arc::new(slice));
    }

    pub(super) fn remove(&self, number: u64) {
        // Freed without the lock: weights may be large.
        let removed = self.lock().remove(&number);
        drop(removed);
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Chain>> {
        self.lock().get(&number).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Chain>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
