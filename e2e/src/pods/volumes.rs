//! Content of a pod's volumes. Which files with which content is pure; tokens, ConfigMaps and
//! Secrets are passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, ServiceAccountTokenProjection, Volume,
};

use super::environment::{Sources, SpecError, pod_field};

/// Relative path → content.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Default lifetime of a token in seconds.
const TOKEN_SECONDS: i64 = 3600;
/// The API server refuses shorter tokens.
const SHORTEST_TOKEN_SECONDS: i64 = 600;

/// A token that a pod requests; equal requests share one token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenWish {
    /// `None` for the API server's own.
    pub(crate) audience: Option<String>,
    pub(crate) seconds: i64,
}

impl From<&ServiceAccountTokenProjection> for TokenWish {
    fn from(projection: &ServiceAccountTokenProjection) -> Self {
        let seconds = projection.expiration_seconds.unwrap_or(TOKEN_SECONDS);
        Self {
            audience: projection.audience.clone(),
            seconds: seconds.max(SHORTEST_TOKEN_SECONDS),
        }
    }
}

/// Location of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A folder of the pod, removed with it, with these files.
    Pod(Files),
    /// A folder that all pods of the host share.
    Host(PathBuf),
    /// The machine's own (`/proc`, `/sys`, `/dev`).
    Machine(PathBuf),
}

/// Names of the ConfigMaps and Secrets used by a pod's volumes and containers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
    pub(crate) tokens: BTreeSet<TokenWish>,
}

/// Collects the objects that a pod reads from the API server.
pub(crate) fn needs(spec: &PodSpec) -> Needs {
    let mut needs = Needs::default();
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    for container in containers {
        for from in container.env_from.iter().flatten() {
            needs
                .config_maps
                .extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            needs
                .secrets
                .extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        let env = container.env.iter().flatten();
        for source in env.filter_map(|variable| variable.value_from.as_ref()) {
            needs
                .config_maps
                .extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            needs
                .secrets
                .extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        needs
            .config_maps
            .extend(volume.config_map.iter().map(|map| map.name.clone()));
        needs.secrets.extend(
            volume
                .secret
                .iter()
                .filter_map(|secret| secret.secret_name.clone()),
        );
        let projected = volume.projected.as_ref();
        for source in projected
            .and_then(|p| p.sources.as_ref())
            .into_iter()
            .flatten()
        {
            needs
                .config_maps
                .extend(source.config_map.iter().map(|map| map.name.clone()));
            needs
                .secrets
                .extend(source.secret.iter().map(|secret| secret.name.clone()));
            needs
                .tokens
                .extend(source.service_account_token.iter().map(TokenWish::from));
        }
    }
    needs
}

/// The location and content of a volume.
pub(crate) fn place(
    pod: &Pod,
    volume: &Volume,
    host_address: Ipv4Addr,
    sources: &Sources,
    tokens: &BTreeMap<TokenWish, String>,
) -> Result<Place, SpecError> {
    if volume.empty_dir.is_some() {
        return Ok(Place::Pod(Files::new()));
    }
    if let Some(host) = &volume.host_path {
        let path = PathBuf::from(&host.path);
        let of_the_kernel = ["/proc", "/sys", "/dev"];
        return Ok(
            match of_the_kernel.iter().any(|root| path.starts_with(root)) {
                true => Place::Machine(path),
                false => Place::Host(path),
            },
        );
    }
    let mut files = Files::new();
    if let Some(map) = &volume.config_map {
        let data = sources.config_map(&map.name, map.optional)?;
        files.extend(select(
            "ConfigMap",
            &map.name,
            data,
            map.items.as_deref(),
            map.optional,
        )?);
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let data = sources.secret(name, secret.optional)?;
        files.extend(select(
            "Secret",
            name,
            data,
            secret.items.as_deref(),
            secret.optional,
        )?);
    } else if let Some(downward) = &volume.downward_api {
        files.extend(fields(pod, downward.items.as_deref(), host_address)?);
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            if let Some(token) = &source.service_account_token {
                let wish = TokenWish::from(token);
                let text = tokens.get(&wish).cloned().unwrap_or_default();
                files.insert(token.path.clone(), text.into_bytes());
            }
            if let Some(map) = &source.config_map {
                let data = sources.config_map(&map.name, map.optional)?;
                let items = map.items.as_deref();
                files.extend(select("ConfigMap", &map.name, data, items, map.optional)?);
            }
            if let Some(secret) = &source.secret {
                let data = sources.secret(&secret.name, secret.optional)?;
                let items = secret.items.as_deref();
                files.extend(select(
                    "Secret",
                    &secret.name,
                    data,
                    items,
                    secret.optional,
                )?);
            }
            if let Some(downward) = &source.downward_api {
                files.extend(fields(pod, downward.items.as_deref(), host_address)?);
            }
        }
    } else {
        return Err(SpecError::Volume(volume.name.clone()));
    }
    Ok(Place::Pod(files))
}

/// All keys, or the selected ones with their own paths.
fn select(
    kind: &'static str,
    name: &str,
    data: Option<Files>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, SpecError> {
    let Some(data) = data else {
        return Ok(Files::new());
    };
    let Some(items) = items else {
        return Ok(data);
    };
    let mut files = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                files.insert(item.path.clone(), value.clone());
            }
            None if optional == Some(true) => {}
            None => {
                return Err(SpecError::MissingKey {
                    kind,
                    name: name.to_owned(),
                    key: item.key.clone(),
                });
            }
        }
    }
    Ok(files)
}

fn fields(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    host_address: Ipv4Addr,
) -> Result<Files, SpecError> {
    let mut files = Files::new();
    for item in items.into_iter().flatten() {
        let field = item.field_ref.as_ref();
        let field = field.ok_or_else(|| SpecError::Resource(item.path.clone()))?;
        let value = pod_field(pod, &field.field_path, host_address)?;
        files.insert(item.path.clone(), value.into_bytes());
    }
    Ok(files)
}

/// Writes the files that differ, each atomically, so that a reader sees the old or the new content.
/// Paths outside the folder are not written.
pub(crate) fn write(folder: &Path, files: &Files) -> std::io::Result<()> {
    for (name, content) in files {
        let relative = Path::new(name);
        let inside = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            continue;
        }
        let path = folder.join(relative);
        if std::fs::read(&path).is_ok_and(|present| present == *content) {
            continue;
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut fresh = path.clone().into_os_string();
        fresh.push(".new");
        std::fs::write(&fresh, content)?;
        std::fs::rename(&fresh, &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(volumes: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "volumes": volumes},
        }))
        .unwrap()
    }

    fn place_first(volumes: serde_json::Value) -> Result<Place, SpecError> {
        let pod = pod(volumes);
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "kube-root-ca.crt".to_owned(),
                serde_json::from_value(json!({"data": {"ca.crt": "CA", "other": "O"}})).unwrap(),
            )]),
            secrets: BTreeMap::new(),
        };
        let wish = TokenWish {
            audience: None,
            seconds: 3607,
        };
        let tokens = BTreeMap::from([(wish, "TOKEN".to_owned())]);
        let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
        place(&pod, volume, Ipv4Addr::new(10, 77, 0, 2), &sources, &tokens)
    }

    #[test]
    fn the_volume_that_every_pod_gets_holds_token_authority_and_namespace() {
        let volumes = json!([{"name": "kube-api-access", "projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt",
                           "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                           "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}}]);
        let spec = pod(volumes.clone()).spec.unwrap();
        let needs = needs(&spec);
        assert_eq!(
            needs.config_maps,
            BTreeSet::from(["kube-root-ca.crt".to_owned()])
        );
        assert_eq!(needs.tokens.len(), 1);
        let expected = [("ca.crt", "CA"), ("namespace", "n"), ("token", "TOKEN")];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()));
        assert_eq!(place_first(volumes), Ok(Place::Pod(Files::from(expected))));
    }

    #[test]
    fn host_paths_belong_to_the_emulated_host() {
        let volumes = |path: &str| json!([{"name": "v", "hostPath": {"path": path}}]);
        assert_eq!(
            place_first(volumes("/var/lib/lamina")),
            Ok(Place::Host("/var/lib/lamina".into()))
        );
        assert_eq!(
            place_first(volumes("/sys/class")),
            Ok(Place::Machine("/sys/class".into()))
        );
    }

    #[test]
    fn an_unknown_kind_of_volume_is_named() {
        let refused = place_first(json!([{"name": "disk", "nfs": {"path": "/", "server": "s"}}]));
        assert_eq!(refused, Err(SpecError::Volume("disk".to_owned())));
    }

    #[test]
    fn files_are_replaced_and_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        for text in ["one", "two"] {
            let files = Files::from([
                ("a/b".to_owned(), text.as_bytes().to_vec()),
                ("../out".to_owned(), text.as_bytes().to_vec()),
            ]);
            write(&inner, &files).unwrap();
            assert_eq!(std::fs::read_to_string(inner.join("a/b")).unwrap(), text);
        }
        assert!(!folder.path().join("out").exists());
        assert_eq!(std::fs::read_dir(inner.join("a")).unwrap().count(), 1);
    }
}
