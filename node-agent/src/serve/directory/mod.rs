//! The directory: the entries of each model, which every agent receives from the operator, so
//! that any agent accepts requests for any model.

mod file;

pub(crate) use file::{DirectoryFile, keep};

use lamina_crds::Hop;
use lamina_proto::control::{Directory as Message, DirectoryModel};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The directory of this agent. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory {
    table: Arc<RwLock<Arc<Table>>>,
    changes: watch::Sender<u64>,
}

/// The last received content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// By `namespace/name`.
    models: BTreeMap<String, Listed>,
    /// The operator has sent all of it, to this or an earlier process.
    is_heard: bool,
}

/// One model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    /// Its entries.
    pub(crate) entries: Vec<Entry>,
    /// Why none serves; empty if one does.
    #[serde(default)]
    pub(crate) reason: String,
    /// It is being deployed.
    #[serde(default)]
    pub(crate) coming: bool,
}

/// One entry of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// The host and its agent's address.
    pub(crate) hop: Hop,
    /// A verified revision serves there.
    pub(crate) serves: bool,
}

impl Directory {
    /// Starts from `table`, which an earlier process wrote.
    pub(crate) fn with(table: Table) -> Self {
        Self {
            table: Arc::new(RwLock::new(Arc::new(table))),
            changes: watch::Sender::default(),
        }
    }

    /// Applies the operator's message: everything, or the changes.
    pub(crate) fn apply(&self, message: Message) {
        let mut held = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let next = held.after(message);
        if **held == next {
            return;
        }
        *held = Arc::new(next);
        drop(held);
        self.changes.send_modify(|times| *times += 1);
    }

    /// The current content.
    pub(crate) fn now(&self) -> Arc<Table> {
        let held = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&held)
    }

    /// A number that changes with every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Table {
    const fn of(models: BTreeMap<String, Listed>, is_heard: bool) -> Self {
        Self { models, is_heard }
    }

    fn after(&self, message: Message) -> Self {
        let Message { complete, models } = message;
        let mut next = if complete {
            BTreeMap::new()
        } else {
            self.models.clone()
        };
        for model in models {
            let full_name = format!("{}/{}", model.namespace, model.name);
            if model.gone {
                next.remove(&full_name);
            } else {
                next.insert(full_name, listed(model));
            }
        }
        Self::of(next, self.is_heard || complete)
    }

    /// Whether a missing model does not exist.
    pub(crate) const fn is_heard(&self) -> bool {
        self.is_heard
    }

    /// The model `namespace/name`.
    pub(crate) fn get(&self, full_name: &str) -> Option<&Listed> {
        self.models.get(full_name)
    }

    /// Addresses of the entries' agents.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        let entries = self.models.values().flat_map(|m| &m.entries);
        entries.map(|entry| entry.hop.address.as_str())
    }

    /// `namespace/name` of every model.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.models.keys()
    }
}

fn listed(model: DirectoryModel) -> Listed {
    let DirectoryModel {
        namespace: _,
        name: _,
        gone: _,
        entries,
        reason,
        coming,
    } = model;
    let entries = entries.into_iter().map(|entry| Entry {
        hop: Hop {
            node: entry.node,
            address: entry.address,
        },
        serves: entry.serves,
    });
    Listed {
        entries: entries.collect(),
        reason,
        coming,
    }
}

#[cfg(test)]
mod tests;
