use lamina_torchscript::Slice;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The slices that are loaded, by the agent's numbers. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Slices(Arc<Mutex<BTreeMap<u64, Arc<Mutex<Slice>>>>>);

impl Slices {
    pub(super) fn insert(&self, number: u64, slice: Slice) {
        lock(&self.0).insert(number, Arc::new(Mutex::new(slice)));
    }

    pub(super) fn remove(&self, number: u64) {
        // Freed without the lock: weights may be large.
        let removed = lock(&self.0).remove(&number);
        drop(removed);
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Mutex<Slice>>> {
        lock(&self.0).get(&number).cloned()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
