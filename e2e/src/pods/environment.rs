//! A container's arguments, environment and pod fields. Pure: everything from the cluster is passed
//! in.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, EnvVarSource, Pod, ResourceFieldSelector, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::nodes::Size;

/// Why a container cannot be started as specified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("the field {0} cannot be given to a container")]
    Field(String),
    #[error("the resource {0} cannot be given to a container")]
    Resource(String),
    #[error("{kind} {name} is missing")]
    Missing { kind: &'static str, name: String },
    #[error("{kind} {name} has no key {key}")]
    MissingKey {
        kind: &'static str,
        name: String,
        key: String,
    },
    #[error("the environment variable {0} has a source that the lab does not know")]
    Source(String),
    #[error("the volume {0} is of a kind that the lab does not know")]
    Volume(String),
    #[error("no program is known for the image {0}: add it to the lab's images")]
    Image(String),
}

/// ConfigMaps and Secrets of a pod's namespace that its containers reference.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// A host as the downward API shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostFacts {
    pub(crate) address: Ipv4Addr,
    pub(crate) size: Size,
}

impl Sources {
    /// Content of a ConfigMap by key; `None` if it is missing and optional.
    pub(crate) fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, SpecError> {
        let Some(map) = self.config_maps.get(name) else {
            return missing("ConfigMap", name, optional);
        };
        let text = map.data.iter().flatten();
        let text = text.map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten();
        let binary = binary.map(|(key, ByteString(value))| (key.clone(), value.clone()));
        Ok(Some(text.chain(binary).collect()))
    }

    /// Content of a Secret by key; `None` if it is missing and optional.
    pub(crate) fn secret(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, SpecError> {
        let Some(secret) = self.secrets.get(name) else {
            return missing("Secret", name, optional);
        };
        let data = secret.data.iter().flatten();
        Ok(Some(
            data.map(|(key, ByteString(value))| (key.clone(), value.clone()))
                .collect(),
        ))
    }
}

fn missing<T>(
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<T>, SpecError> {
    if optional == Some(true) {
        return Ok(None);
    }
    Err(SpecError::Missing {
        kind,
        name: name.to_owned(),
    })
}

/// Resolves a container's environment in the kubelet's order.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    host: HostFacts,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut environment = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let mut data = BTreeMap::new();
        if let Some(map) = &from.config_map_ref {
            data.extend(
                sources
                    .config_map(&map.name, map.optional)?
                    .unwrap_or_default(),
            );
        }
        if let Some(secret) = &from.secret_ref {
            data.extend(
                sources
                    .secret(&secret.name, secret.optional)?
                    .unwrap_or_default(),
            );
        }
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in data {
            let value = String::from_utf8_lossy(&value).into_owned();
            environment.insert(format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &environment)),
            (None, Some(source)) => from_source(pod, container, host, sources, variable, source)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            environment.insert(variable.name.clone(), value);
        }
    }
    Ok(environment)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    host: HostFacts,
    sources: &Sources,
    variable: &EnvVar,
    source: &EnvVarSource,
) -> Result<Option<String>, SpecError> {
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, host.address).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_field(container, resource, host).map(Some);
    }
    let (kind, name, key, optional, data) = if let Some(map) = &source.config_map_key_ref {
        let data = sources.config_map(&map.name, map.optional)?;
        ("ConfigMap", &map.name, &map.key, map.optional, data)
    } else if let Some(secret) = &source.secret_key_ref {
        let data = sources.secret(&secret.name, secret.optional)?;
        ("Secret", &secret.name, &secret.key, secret.optional, data)
    } else {
        return Err(SpecError::Source(variable.name.clone()));
    };
    match data.and_then(|mut data| data.remove(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(SpecError::MissingKey {
            kind,
            name: name.clone(),
            key: key.clone(),
        }),
    }
}

/// A field of the pod as the downward API writes it.
pub(crate) fn pod_field(
    pod: &Pod,
    path: &str,
    host_address: Ipv4Addr,
) -> Result<String, SpecError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let owned = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(SpecError::Field(path.to_owned())),
        };
        return Ok(owned(values.and_then(|values| values.get(key))));
    }
    Ok(match path {
        "metadata.name" => owned(meta.name.as_ref()),
        "metadata.namespace" => owned(meta.namespace.as_ref()),
        "metadata.uid" => owned(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => owned(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => {
            owned(spec.and_then(|spec| spec.service_account_name.as_ref()))
        }
        "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => {
            host_address.to_string()
        }
        _ => return Err(SpecError::Field(path.to_owned())),
    })
}

/// Splits `metadata.labels['tier']` into its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once("['")?;
    Some((map, key.strip_suffix("']")?))
}

fn lines(values: Option<&BTreeMap<String, String>>) -> String {
    let values = values.into_iter().flatten();
    values
        .map(|(key, value)| format!("{key}={value:?}\n"))
        .collect()
}

fn resource_field(
    container: &Container,
    field: &ResourceFieldSelector,
    host: HostFacts,
) -> Result<String, SpecError> {
    let unknown = || SpecError::Resource(field.resource.clone());
    let (set, name) = field.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let given = match set {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unknown()),
    };
    let given = given.and_then(|given| given.get(name)).and_then(amount);
    // An unset limit defaults to the host's capacity.
    let value = match (given, name) {
        (Some(value), _) => value,
        (None, "cpu") => host.size.cpu_millis as f64 / 1000.0,
        (None, "memory") => host.size.memory_bytes as f64,
        _ => return Err(unknown()),
    };
    let divisor = field.divisor.as_ref().and_then(amount);
    let divisor = divisor.filter(|divisor| *divisor > 0.0).unwrap_or(1.0);
    // Relative tolerance, because 0.3 / 0.001 is not quite 300.
    Ok(format!(
        "{}",
        (value / divisor * (1.0 - 1e-9)).ceil() as u64
    ))
}

/// A Kubernetes quantity as a number.
fn amount(quantity: &Quantity) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("", 1.0),
    ];
    SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number = quantity.0.strip_suffix(suffix)?.parse::<f64>().ok()?;
        Some(number * factor)
    })
}

/// Arguments with `$(NAME)` replaced.
pub(crate) fn arguments(words: &[String], environment: &BTreeMap<String, String>) -> Vec<String> {
    words.iter().map(|word| expand(word, environment)).collect()
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one `$`, and unknown names stay as they are.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match environment.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts {
        address: Ipv4Addr::new(10, 77, 0, 3),
        size: Size {
            cpu_millis: 250,
            memory_bytes: 512 << 20,
        },
    };

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    fn resolve(env: serde_json::Value) -> Result<BTreeMap<String, String>, SpecError> {
        let pod = pod(serde_json::json!({
            "metadata": {"name": "agent-x", "namespace": "lamina", "uid": "u1",
                         "labels": {"app": "agent"}},
            "spec": {"nodeName": "cam-1", "serviceAccountName": "agent", "containers": [{
                "name": "agent", "env": env,
                "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "300m"}},
            }]},
        }));
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "settings".to_owned(),
                serde_json::from_value(serde_json::json!({"data": {"level": "debug"}})).unwrap(),
            )]),
            secrets: BTreeMap::new(),
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        environment(&pod, container, HOST, &sources)
    }

    #[test]
    fn fields_values_and_config_maps_are_resolved() {
        let environment = resolve(serde_json::json!([
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "level"}}},
            {"name": "URL", "value": "http://$(IP):80/$(NODE)?$$(IP)$(NONE)"},
        ]))
        .unwrap();
        assert_eq!(environment["NODE"], "cam-1");
        assert_eq!(environment["IP"], "10.77.0.3");
        assert_eq!(environment["APP"], "agent");
        assert_eq!(environment["LEVEL"], "debug");
        assert_eq!(environment["URL"], "http://10.77.0.3:80/cam-1?$(IP)$(NONE)");
    }

    #[test]
    fn resources_fall_back_to_the_host() {
        let resource = |resource: &str, divisor: &str| {
            serde_json::json!({"name": "X", "valueFrom": {"resourceFieldRef":
                {"resource": resource, "divisor": divisor}}})
        };
        for (name, divisor, expected) in [
            ("limits.memory", "1", "67108864"),
            ("limits.memory", "1Mi", "64"),
            ("limits.cpu", "1", "1"),
            ("limits.cpu", "1m", "250"),
            ("requests.cpu", "1m", "300"),
            ("requests.memory", "1Mi", "512"),
        ] {
            let environment = resolve(serde_json::json!([resource(name, divisor)])).unwrap();
            assert_eq!(environment["X"], expected, "{name} by {divisor}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = resolve(serde_json::json!([
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}},
        ]));
        assert_eq!(refused.unwrap_err().to_string(), "Secret none is missing");
        let refused = resolve(serde_json::json!([
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "k"}}},
        ]));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "ConfigMap settings has no key k"
        );
        let skipped = resolve(serde_json::json!([
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        ]));
        assert_eq!(skipped.unwrap(), BTreeMap::new());
        let refused = resolve(serde_json::json!([
            {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}},
        ]));
        assert_eq!(
            refused.unwrap_err(),
            SpecError::Field("spec.hostname".to_owned())
        );
    }
}
