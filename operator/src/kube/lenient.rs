//! Objects that may fail to parse: of an older or a newer schema, or written while validation
//! was off. One such object must not block the list of all others, and its last readable
//! version stays in force.

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus};
use kube::Resource;
use kube::core::ObjectMeta;
use lamina_crds::{DnnModel, DnnModelStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::borrow::Cow;

/// An object as it came from the API server.
#[derive(Debug, Clone)]
pub(crate) struct Lenient<K>(pub Result<K, Box<Bad>>);

/// An object that cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Bad {
    /// As far as it could be read.
    pub metadata: ObjectMeta,
    /// The field, and what is wrong with it.
    pub error: String,
    /// The whole object.
    value: Value,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Lenient<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Self(read(&value).map_err(|error| {
            let metadata = value.get("metadata").and_then(part).unwrap_or_default();
            Box::new(Bad {
                metadata,
                error,
                value,
            })
        })))
    }
}

/// The object, or the field that cannot be read.
fn read<K: DeserializeOwned>(value: &Value) -> Result<K, String> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let (path, cause) = (e.path().to_string(), e.inner());
        format!("{path}: {cause}")
    })
}

fn part<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

impl<K: Resource> Resource for Lenient<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(bad) => &bad.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(bad) => &mut bad.metadata,
        }
    }
}

/// What is kept of an object: the part still in force if it cannot be read, otherwise the fields
/// that decisions use.
pub(crate) trait Salvage: Clone {
    /// The object in force, where `known` is the last readable version; `None` if there is none.
    fn salvage(bad: &Bad, known: Option<&Self>) -> Option<Self> {
        let _ = bad;
        known.cloned()
    }

    /// Its status, if it has one that people read.
    fn status(bad: &Bad) -> Option<Box<DnnModelStatus>> {
        let _ = bad;
        None
    }

    /// Drops large fields that no decision uses.
    fn slim(&mut self) {}

    /// Whether it equals `before` in everything that decisions use.
    fn is_same(&self, before: &Self) -> bool {
        let _ = before;
        false
    }
}

impl Salvage for Node {
    /// A kubelet repeatedly reports each node's images.
    fn slim(&mut self) {
        let capacity = self.status.take().and_then(|status| status.capacity);
        let processors = capacity.and_then(|mut capacity| capacity.remove_entry("cpu"));
        self.status = processors.map(|(name, count)| NodeStatus {
            capacity: Some([(name, count)].into()),
            ..NodeStatus::default()
        });
        self.metadata.annotations = None;
        self.spec = self.spec.take().map(|spec| NodeSpec {
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
    }

    fn is_same(&self, before: &Self) -> bool {
        self.metadata.uid == before.metadata.uid
            && self.metadata.labels == before.metadata.labels
            && self.spec == before.spec
            && self.status == before.status
    }
}

impl Salvage for Pod {
    fn slim(&mut self) {
        self.metadata.annotations = None;
        self.spec = self.spec.take().map(|spec| PodSpec {
            node_name: spec.node_name,
            ..PodSpec::default()
        });
        self.status = self.status.take().map(|status| PodStatus {
            phase: status.phase,
            pod_ips: status.pod_ips,
            ..PodStatus::default()
        });
    }

    fn is_same(&self, before: &Self) -> bool {
        self.metadata.uid == before.metadata.uid
            && self.spec == before.spec
            && self.status == before.status
    }
}

impl Salvage for k8s_openapi::api::core::v1::Secret {}
impl Salvage for lamina_crds::ComputeNode {}
impl Salvage for lamina_crds::Placement {}

impl Salvage for DnnModel {
    /// The last readable spec, else the one last met, with the current rest.
    fn salvage(bad: &Bad, known: Option<&Self>) -> Option<Self> {
        let status: Option<DnnModelStatus> = bad.value.get("status").and_then(part);
        let accepted = status.as_ref().and_then(|s| s.accepted.as_ref());
        let (generation, spec) = match known {
            Some(known) => (known.metadata.generation, known.spec.clone()),
            None => accepted.map(|a| (Some(a.generation), (*a.spec).clone()))?,
        };
        let status = status.or_else(|| known.and_then(|k| k.status.clone()));
        Some(Self {
            // The status refers to the spec that could be read.
            metadata: ObjectMeta {
                generation,
                ..bad.metadata.clone()
            },
            spec,
            status,
        })
    }

    fn status(bad: &Bad) -> Option<Box<DnnModelStatus>> {
        bad.value.get("status").and_then(part)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::{model, model_spec};
    use lamina_crds::dnn_model::AcceptedSpec;
    use serde_json::json;

    /// The model with a number that an older schema allowed.
    pub(crate) fn too_large(model: &DnnModel) -> Value {
        let mut value = serde_json::to_value(model).unwrap();
        value["spec"]["constraints"]["keepOnEntry"] = json!(99_999_999_999_u64);
        value["metadata"]["generation"] = json!(7);
        value
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        let bad: Lenient<DnnModel> = serde_json::from_value(too_large(&model())).unwrap();
        let bad = bad.0.unwrap_err();
        assert_eq!(bad.metadata.name.as_deref(), Some("net"));
        assert!(
            bad.error.starts_with("spec.constraints.keepOnEntry: ")
                && bad.error.contains("99999999999"),
            "{}",
            bad.error
        );
        let good: Lenient<DnnModel> =
            serde_json::from_value(serde_json::to_value(model()).unwrap()).unwrap();
        assert!(good.0.is_ok());
    }

    #[test]
    fn what_was_read_last_counts_else_what_was_met_last() {
        let bad = |model: &DnnModel| {
            let read: Lenient<DnnModel> = serde_json::from_value(too_large(model)).unwrap();
            read.0.unwrap_err()
        };
        let mut known = model();
        known.spec.constraints.keep_on_entry = 2;
        let kept = DnnModel::salvage(&bad(&known), Some(&known)).unwrap();
        assert_eq!(kept.spec, known.spec);
        assert_eq!(kept.metadata.generation, known.metadata.generation);
        // Another process starts.
        assert!(DnnModel::salvage(&bad(&model()), None).is_none());
        let mut met = model();
        let mut spec = model_spec();
        spec.constraints.keep_on_entry = 3;
        met.status = Some(DnnModelStatus {
            accepted: Some(AcceptedSpec {
                generation: 5,
                spec: Box::new(spec.clone()),
            }),
            ..DnnModelStatus::default()
        });
        let kept = DnnModel::salvage(&bad(&met), None).unwrap();
        assert_eq!((kept.spec, kept.metadata.generation), (spec, Some(5)));
        assert!(kept.status.unwrap().accepted.is_some());
    }
}
