//! Data that a look needs about all objects, computed once.

use crate::deploy::nodes::Wishes;
use crate::state::ids;
use crate::state::plans::owner_uid;
use crate::state::snapshot::Snapshot;
use lamina_crds::compute_node::{Blob, Standby};
use lamina_crds::{DnnModel, Placement};
use lamina_model::Digest;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Longest Placement name: readable in a column, with room for the suffix in the names of its
/// Events.
const NAME_LIMIT: usize = 63;

/// Objects by their lookup keys.
pub(super) struct Index<'a> {
    snapshot: &'a Snapshot,
    models: HashMap<&'a str, &'a DnnModel>,
    /// Placements by UID of their model, then by entry.
    placements: HashMap<&'a str, BTreeMap<&'a str, &'a Placement>>,
    /// Placements by namespace and name.
    names: HashMap<(&'a str, &'a str), &'a Placement>,
    /// Hosts with a ComputeNode, by each label that a model selects by.
    labelled: HashMap<(&'a str, &'a str), BTreeSet<&'a str>>,
    /// Hosts that hold slices of a Placement, by its UID.
    holders: HashMap<&'a str, BTreeSet<&'a str>>,
    /// Hosts with standby blocks of a Placement, by its UID, and the blocks.
    standby: HashMap<&'a str, Vec<(&'a str, &'a Standby)>>,
}

pub(super) fn is_wanted(model: &DnnModel) -> bool {
    model.metadata.deletion_timestamp.is_none()
}

impl<'a> Index<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let wanted = snapshot.models.iter().filter(|m| is_wanted(m));
        let models = wanted.map(|m| (ids::uid(&m.metadata), &**m)).collect();
        let mut index = Self {
            snapshot,
            models,
            placements: HashMap::new(),
            names: HashMap::new(),
            labelled: labelled(snapshot),
            holders: HashMap::new(),
            standby: HashMap::new(),
        };
        for placement in &snapshot.placements {
            index.add(placement);
        }
        for (name, node) in &snapshot.compute_nodes {
            for slice in &node.spec.slices {
                let holders = index.holders.entry(&slice.placement_uid).or_default();
                holders.insert(name);
            }
            for standby in &node.spec.standby {
                let hosts = index.standby.entry(&standby.placement_uid).or_default();
                hosts.push((name.as_str(), standby));
            }
        }
        index
    }

    fn add(&mut self, placement: &'a Arc<Placement>) {
        let meta = &placement.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        self.names.insert((namespace, name), placement);
        if let Some(owner) = owner_uid(placement)
            && meta.deletion_timestamp.is_none()
            && self.owns(owner, namespace)
        {
            let of_model = self.placements.entry(owner).or_default();
            of_model.insert(&placement.spec.entry, placement);
        }
    }

    /// Whether the DnnModel with that UID can own objects of `namespace`: it lies in no other.
    fn owns(&self, uid: &str, namespace: &str) -> bool {
        let model = self.models.get(uid);
        model.is_none_or(|model| model.metadata.namespace.as_deref() == Some(namespace))
    }

    /// The DnnModel with that UID, if it exists and is not being deleted.
    pub(super) fn model(&self, uid: &str) -> Option<&'a DnnModel> {
        self.models.get(uid).copied()
    }

    /// The Placement of a model at an entry.
    pub(super) fn placement(&self, model_uid: &str, entry: &str) -> Option<&'a Placement> {
        self.placements.get(model_uid)?.get(entry).copied()
    }

    /// Every Placement of a model.
    pub(super) fn placements_of(&self, model_uid: &str) -> impl Iterator<Item = &'a Placement> {
        let of_model = self.placements.get(model_uid).into_iter();
        of_model.flat_map(|all| all.values().copied())
    }

    /// Whether the model of `placement` exists but never could be read.
    pub(super) fn is_unreadable(&self, placement: &Placement) -> bool {
        if owner_uid(placement).is_some_and(|uid| self.models.contains_key(uid)) {
            return false;
        }
        let namespace = placement.metadata.namespace.clone().unwrap_or_default();
        let name = (namespace, placement.spec.model.clone());
        self.snapshot.unreadable.contains_key(&name)
    }

    /// Nodes that carry every label of `selector` and have an agent.
    pub(super) fn entries_of(&self, selector: &BTreeMap<String, String>) -> Vec<String> {
        let mut sets = selector.iter().map(|(key, value)| {
            let label = (key.as_str(), value.as_str());
            self.labelled.get(&label)
        });
        let Some(Some(first)) = sets.next() else {
            return Vec::new();
        };
        let others: Option<Vec<&BTreeSet<&str>>> = sets.collect();
        let Some(others) = others else {
            return Vec::new();
        };
        let in_all = |name: &&&str| others.iter().all(|set| set.contains(**name));
        let found = first.iter().filter(in_all);
        found.map(|name| (*name).to_owned()).collect()
    }

    /// Why no entry was found for `model`.
    pub(super) fn no_entry(&self, model: &DnnModel) -> String {
        let selector = &model.spec.entry.node_selector;
        let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let labels = labels.join(",");
        let nodes = &self.snapshot.nodes;
        let mut matching = nodes.iter().filter(|(_, n)| n.matches(selector));
        match matching.next() {
            None => format!(
                "0/{} nodes match spec.entry.nodeSelector {labels}",
                nodes.len()
            ),
            Some((first, _)) => {
                let more = match matching.count() {
                    0 => String::new(),
                    n => format!(" and {n} more"),
                };
                format!(
                    "spec.entry.nodeSelector {labels} matches {first}{more}, where no agent runs"
                )
            }
        }
    }

    /// `<model>-<entry>`, with a hash if that is too long or belongs to another model; `None` while
    /// a Placement that is being deleted has the name.
    pub(super) fn free_name(&self, model: &DnnModel, entry: &str) -> Option<String> {
        let namespace = model.metadata.namespace.as_deref().unwrap_or_default();
        let model = model.metadata.name.as_deref().unwrap_or_default();
        let plain = format!("{model}-{entry}");
        let hash = Digest::of(format!("{model}/{entry}").as_bytes());
        let hash = &hash.as_str()[..6];
        let holder = |name: &str| self.names.get(&(namespace, name)).copied();
        let is_ours = |p: &Placement| p.spec.model == model && p.spec.entry == entry;
        let name = if plain.len() <= NAME_LIMIT && holder(&plain).is_none_or(is_ours) {
            plain
        } else {
            let head: String = plain.chars().take(NAME_LIMIT - 7).collect();
            format!("{}-{hash}", head.trim_end_matches(['-', '.']))
        };
        holder(&name).is_none().then_some(name)
    }

    /// Lets hosts keep their slices of a Placement.
    pub(super) fn keep_slices(&self, placement_uid: &str, wishes: &mut Wishes) {
        let holders = self.holders.get(placement_uid).into_iter().flatten();
        for name in holders {
            let Some(node) = self.snapshot.compute_nodes.get(*name) else {
                continue;
            };
            let slices = node.spec.slices.iter();
            let kept = slices.filter(|s| s.placement_uid == placement_uid);
            let on = wishes.slices.entry((*name).to_owned()).or_default();
            on.extend(kept.cloned());
        }
    }

    /// The standby blocks of a Placement, by host.
    pub(super) fn standby_of(&self, placement_uid: &str) -> BTreeMap<String, Vec<Blob>> {
        let hosts = self.standby.get(placement_uid).into_iter().flatten();
        hosts
            .map(|(host, standby)| ((*host).to_owned(), standby.blocks.clone()))
            .collect()
    }
}

/// Hosts with a ComputeNode, by each label that a model selects by.
fn labelled(snapshot: &Snapshot) -> HashMap<(&str, &str), BTreeSet<&str>> {
    let selectors = snapshot.models.iter().map(|m| &m.spec.entry.node_selector);
    let keys: BTreeSet<&str> = selectors
        .flat_map(|s| s.keys().map(String::as_str))
        .collect();
    let mut labelled: HashMap<(&str, &str), BTreeSet<&str>> = HashMap::new();
    for name in snapshot.compute_nodes.keys() {
        let Some(node) = snapshot.nodes.get(name) else {
            continue;
        };
        for key in &keys {
            if let Some(value) = node.label(key) {
                labelled.entry((key, value)).or_default().insert(name);
            }
        }
    }
    labelled
}
