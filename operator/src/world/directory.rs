//! The directory: the entries of each model, which every agent receives.

use crate::state::decision::Entries;
use lamina_proto::control::operator_message::Message as ToAgent;
use lamina_proto::control::{Directory as Told, DirectoryEntry, DirectoryModel};
use std::collections::BTreeMap;

/// Models by namespace and name.
pub(super) type Models = BTreeMap<(String, String), Entries>;

/// The models as last sent to agents.
#[derive(Debug, Default)]
pub(super) struct Directory {
    models: Models,
}

impl Directory {
    /// Stores `models`; returns the differences from what agents have.
    pub(super) fn set(&mut self, models: Models) -> Option<Told> {
        let differing = models
            .iter()
            .filter(|(name, m)| self.models.get(*name) != Some(*m));
        let mut changed: Vec<DirectoryModel> = differing.map(|(name, m)| model(name, m)).collect();
        let gone = self
            .models
            .keys()
            .filter(|name| !models.contains_key(*name));
        changed.extend(gone.map(|(namespace, name)| DirectoryModel {
            namespace: namespace.clone(),
            name: name.clone(),
            gone: true,
            ..DirectoryModel::default()
        }));
        self.models = models;
        (!changed.is_empty()).then_some(Told {
            complete: false,
            models: changed,
        })
    }

    /// Everything, for a new agent.
    pub(super) fn whole(&self) -> ToAgent {
        let models = self.models.iter().map(|(name, m)| model(name, m));
        ToAgent::Directory(Told {
            complete: true,
            models: models.collect(),
        })
    }
}

fn model((namespace, name): &(String, String), model: &Entries) -> DirectoryModel {
    let entries = model.entries.iter().map(|e| DirectoryEntry {
        node: e.node.clone(),
        address: e.address.clone(),
        placement_uid: e.placement_uid.clone(),
        serves: e.serves,
    });
    DirectoryModel {
        namespace: namespace.clone(),
        name: name.clone(),
        gone: false,
        entries: entries.collect(),
        reason: model.reason.clone(),
        coming: model.coming,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(reasons: &[(&str, &str)]) -> Models {
        let models = reasons.iter().map(|(name, reason)| {
            let entries = Entries {
                reason: (*reason).to_owned(),
                ..Entries::default()
            };
            (("default".to_owned(), (*name).to_owned()), entries)
        });
        models.collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut directory = Directory::default();
        assert_eq!(directory.set(Models::new()), None);
        let told = directory.set(models(&[("a", ""), ("b", "")])).unwrap();
        assert_eq!((told.complete, told.models.len()), (false, 2));
        assert_eq!(directory.set(models(&[("a", ""), ("b", "")])), None);
        let told = directory.set(models(&[("b", "failed")])).unwrap();
        let names: Vec<(&str, bool)> = told
            .models
            .iter()
            .map(|m| (m.name.as_str(), m.gone))
            .collect();
        assert_eq!(names, [("b", false), ("a", true)]);
        let ToAgent::Directory(whole) = directory.whole() else {
            panic!("no directory");
        };
        assert_eq!((whole.complete, whole.models.len()), (true, 1));
    }
}
