//! Client keys, as every agent receives them from the operator. Agents receive only hashes and
//! keep them on disk: keys work while the operator is down, and a stolen host reveals none.

use crate::files::Document;
use lamina_model::Digest;
use lamina_proto::control::{ApiKey, ApiKeys as Message};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

const FORMAT: u32 = 1;
const FILE_NAME: &str = "keys.json";
const WHAT: &str = "the keys of clients";
/// Most keys accepted from the operator; it sends no more.
const MOST: usize = 4096;

/// The scope of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Scope {
    /// The namespace of its models, and of short names.
    pub(super) namespace: String,
    /// Their names; empty means all of the namespace.
    #[serde(default)]
    pub(super) models: BTreeSet<String>,
    /// At each agent; `None` if the key has no limit of its own.
    #[serde(default)]
    pub(super) requests_per_second: Option<u32>,
}

impl Scope {
    /// Whether it covers the model `namespace/name`.
    pub(super) fn covers(&self, full_name: &str) -> bool {
        let Some((namespace, name)) = full_name.split_once('/') else {
            return false;
        };
        namespace == self.namespace && (self.models.is_empty() || self.models.contains(name))
    }
}

/// The valid keys, by their SHA-256: comparing hashes leaks nothing through timing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyTable {
    keys: BTreeMap<Digest, Arc<Scope>>,
    /// The operator has sent them, to this or an earlier process.
    is_heard: bool,
}

/// The keys on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    keys: BTreeMap<Digest, Scope>,
}

impl KeyTable {
    fn of(message: Message) -> Self {
        let keys = message.keys.into_iter().take(MOST).filter_map(key);
        Self {
            keys: keys.collect(),
            is_heard: true,
        }
    }

    fn after_restart(kept: Kept) -> Self {
        let keys = kept.keys.into_iter();
        Self {
            keys: keys.map(|(key, scope)| (key, Arc::new(scope))).collect(),
            is_heard: true,
        }
    }

    fn kept(&self) -> Kept {
        let keys = self.keys.iter();
        Kept {
            keys: keys
                .map(|(key, scope)| (key.clone(), (**scope).clone()))
                .collect(),
        }
    }

    pub(super) fn get(&self, key: &Digest) -> Option<&Arc<Scope>> {
        self.keys.get(key)
    }

    /// Whether a key that is missing here is invalid.
    pub(super) const fn is_heard(&self) -> bool {
        self.is_heard
    }
}

fn key(key: ApiKey) -> Option<(Digest, Arc<Scope>)> {
    let ApiKey {
        sha256,
        namespace,
        models,
        requests_per_second,
    } = key;
    let scope = Scope {
        namespace,
        models: models.into_iter().collect(),
        requests_per_second: Some(requests_per_second).filter(|limit| *limit > 0),
    };
    Some((sha256.parse().ok()?, Arc::new(scope)))
}

/// The keys of this agent. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    table: Arc<RwLock<Arc<KeyTable>>>,
    changes: watch::Sender<u64>,
}

impl Keys {
    /// Reads the file of an earlier process. Blocks.
    pub(crate) fn in_dir(cache_dir: &Path) -> Self {
        let kept = document(cache_dir).read(WHAT);
        let table = kept.map_or_else(KeyTable::default, KeyTable::after_restart);
        Self {
            table: Arc::new(RwLock::new(Arc::new(table))),
            changes: watch::Sender::default(),
        }
    }

    /// Applies the operator's message. Keys that are not in it become invalid.
    pub(crate) fn apply(&self, message: Message) {
        let next = KeyTable::of(message);
        let mut held = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if **held == next {
            return;
        }
        *held = Arc::new(next);
        drop(held);
        self.changes.send_modify(|times| *times += 1);
    }

    /// The valid keys.
    pub(super) fn now(&self) -> Arc<KeyTable> {
        let held = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&held)
    }

    /// Writes them to `cache_dir` on every change, until dropped.
    pub(crate) fn keep(self, cache_dir: &Path) -> impl Future<Output = ()> + Send + use<> {
        let changes = self.changes.subscribe();
        document(cache_dir).keep(WHAT, changes, move || Some(self.now().kept()))
    }
}

fn document(cache_dir: &Path) -> Document<Kept> {
    Document::new(cache_dir.join(FILE_NAME), FORMAT)
}

#[cfg(test)]
mod tests {
    use super::super::testing::key;
    use super::*;
    use std::time::{Duration, Instant};

    fn say(keys: &Keys, valid: &[ApiKey]) {
        keys.apply(Message {
            keys: valid.to_vec(),
        });
    }

    fn is_valid(keys: &Keys, secret: &str) -> bool {
        keys.now().get(&Digest::of(secret.as_bytes())).is_some()
    }

    #[test]
    fn a_key_is_for_the_models_of_one_namespace() {
        let scope = |models: &[&str]| super::key(key("k", "lab", models)).unwrap().1;
        let (all, one) = (scope(&[]), scope(&["m"]));
        assert!(all.covers("lab/m") && all.covers("lab/n"));
        assert!(one.covers("lab/m") && !one.covers("lab/n"));
        for other in ["m", "default/m", "lab", "lab/m/x", "/m", ""] {
            assert!(!one.covers(other), "{other}");
        }
    }

    #[test]
    fn a_key_that_is_not_told_any_more_is_none() {
        let keys = Keys::default();
        assert!(!keys.now().is_heard());
        say(&keys, &[key("a", "lab", &[]), key("b", "lab", &[])]);
        assert!(is_valid(&keys, "a") && is_valid(&keys, "b"));
        say(&keys, &[key("b", "lab", &[])]);
        assert!(!is_valid(&keys, "a") && is_valid(&keys, "b"));
        let damaged = ApiKey {
            sha256: "abc".into(),
            ..key("a", "lab", &[])
        };
        say(&keys, &[damaged]);
        assert!(keys.now().is_heard() && !is_valid(&keys, "b"));
    }

    #[tokio::test]
    async fn keys_hold_over_a_restart_and_lie_on_disk_as_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::in_dir(dir.path());
        assert!(!keys.now().is_heard());
        let keeping = tokio::spawn(keys.clone().keep(dir.path()));
        say(&keys, &[key("correct horse", "lab", &["m"])]);
        let path = dir.path().join(FILE_NAME);
        let begin = Instant::now();
        while !path.exists() {
            assert!(begin.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        keeping.abort();
        let again = Keys::in_dir(dir.path());
        assert_eq!(again.now(), keys.now());
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("lab") && !text.contains("horse"), "{text}");
    }
}
