//! Events about models that crashed their worker process, as reported by agents.

use crate::state::decision::{Change, Decisions, Haste};
use crate::state::ids::ObjectId;
use crate::state::memory::Memory;
use crate::state::notice::{Notice, Regarding};
use crate::state::snapshot::Snapshot;
use lamina_crds::compute_node::EngineCrash;
use lamina_crds::{DnnModel, reasons};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest cause kept, in characters: a host may send anything.
const CAUSE_CHARACTERS: usize = 300;

/// Reports each crash once, in an Event about the model that caused it.
pub(crate) fn tell(snapshot: &Snapshot, memory: &mut Memory, out: &mut Decisions) {
    let models: BTreeMap<String, &Arc<DnnModel>> = snapshot
        .models
        .iter()
        .map(|model| (full_name(model), model))
        .collect();
    memory.crashes.retain(|(node, model), _| {
        snapshot.compute_nodes.contains_key(node) && models.contains_key(model)
    });
    for (node, object) in &snapshot.compute_nodes {
        let crashes = object.status.iter().flat_map(|status| &status.crashes);
        for crash in crashes {
            let Some(model) = models.get(&crash.model) else {
                continue;
            };
            let key = (node.clone(), crash.model.clone());
            let told = memory.crashes.insert(key, crash.time.clone());
            // Crashes from before this operator started were reported by its predecessor.
            let is_old = told.is_none() && snapshot.is_starting();
            if is_old || told.is_some_and(|told| told.0 >= crash.time.0) {
                continue;
            }
            let regarding = Regarding::model(ObjectId::of(&model.metadata));
            let note = note(node, crash);
            let notice = Notice::warning(regarding, reasons::ENGINE_CRASHED, "Run", note);
            out.write(Haste::Report, Change::Nothing, vec![notice]);
        }
    }
}

fn full_name(model: &DnnModel) -> String {
    let ObjectId {
        namespace, name, ..
    } = ObjectId::of(&model.metadata);
    format!("{namespace}/{name}")
}

fn note(node: &str, crash: &EngineCrash) -> String {
    let then = crash.quarantined_until.as_ref().map_or_else(
        || "its requests were tried again".to_owned(),
        |until| {
            format!(
                "it is not tried there until {}",
                until.0.strftime("%H:%M:%SZ")
            )
        },
    );
    let cause: String = crash.cause.chars().take(CAUSE_CHARACTERS).collect();
    format!(
        "it crashed its worker on {node} ({} so far): {cause}; {then}",
        crash.count
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{model, world};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    fn one_model() -> Snapshot {
        Snapshot {
            models: vec![Arc::new(model())],
            ..world()
        }
    }

    fn crashed(snapshot: &mut Snapshot, count: u32, second: i64) {
        let name = full_name(&snapshot.models[0]);
        let node = Arc::make_mut(snapshot.compute_nodes.get_mut("cam-1").unwrap());
        node.status.get_or_insert_default().crashes = vec![EngineCrash {
            model: name,
            count,
            cause: "SIGSEGV".into(),
            time: Time(Timestamp::from_second(second).unwrap()),
            quarantined_until: None,
        }];
    }

    fn told(snapshot: &Snapshot, memory: &mut Memory) -> Vec<String> {
        let mut out = Decisions::default();
        tell(snapshot, memory, &mut out);
        let notices = out.writes.iter().flat_map(|write| &write.events);
        let crashes = notices.filter(|n| n.reason == reasons::ENGINE_CRASHED);
        crashes.map(|n| n.note.clone()).collect()
    }

    #[test]
    fn each_crash_is_told_once() {
        let (mut snapshot, mut memory) = (one_model(), Memory::default());
        assert_eq!(told(&snapshot, &mut memory), [""; 0]);
        crashed(&mut snapshot, 1, 10);
        let first = told(&snapshot, &mut memory);
        assert_eq!(
            first,
            ["it crashed its worker on cam-1 (1 so far): SIGSEGV; its requests were tried again"]
        );
        assert_eq!(told(&snapshot, &mut memory), [""; 0]);
        crashed(&mut snapshot, 2, 11);
        assert_eq!(told(&snapshot, &mut memory).len(), 1);
        // The agent restarted and counts from zero.
        crashed(&mut snapshot, 1, 12);
        assert_eq!(told(&snapshot, &mut memory).len(), 1);
        snapshot.models.clear();
        assert_eq!(told(&snapshot, &mut memory), [""; 0]);
        assert!(memory.crashes.is_empty());
    }

    #[test]
    fn what_was_there_when_the_operator_began_is_no_news() {
        let (mut snapshot, mut memory) = (one_model(), Memory::default());
        crashed(&mut snapshot, 1, 10);
        snapshot.now = snapshot.started;
        assert!(snapshot.is_starting());
        assert_eq!(told(&snapshot, &mut memory), [""; 0]);
    }
}
