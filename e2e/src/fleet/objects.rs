//! The Nodes of a fleet's hosts, the Pods of its agents, and their tokens.

use super::{FleetError, FleetHost};
use crate::config::HostSpec;
use crate::nodes;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use lamina_proto::CONTROL_AUDIENCE;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Concurrent requests to the API server.
const CONCURRENCY: usize = 16;
/// Lifetime of a token; no fleet lives longer.
const TOKEN_SECONDS: i64 = 7200;
/// Time for a DaemonSet to make a Pod for each host.
const PODS_WITHIN: Duration = Duration::from_secs(90);
/// Processor request of an agent's Pod.
const POD_MILLIS: u64 = 1000;
const POD_BYTES: u64 = 1 << 30;
/// Service account of agents, and the labels by which the operator knows their
/// Pods, as the chart sets them for a release named `lamina`.
const ACCOUNT: &str = "lamina-agent";
const AGENTS: &str = "app.kubernetes.io/name=lamina,app.kubernetes.io/component=agent";

/// Who creates the agents' Pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pods {
    /// The fleet itself, if no controller runs.
    Ours,
    /// The chart's DaemonSet. The Pods do not run, since their hosts are not real.
    DaemonSet,
}

/// Creates a Node for each host.
pub(super) async fn create_nodes(client: &Client, hosts: &[FleetHost]) -> Result<(), FleetError> {
    let of = |host: &FleetHost| {
        // Enough for an agent's Pod, whatever the agent then reports as its own capacity.
        let (cpu, memory) = (host.cpu_millis + POD_MILLIS, host.memory_bytes + POD_BYTES);
        let mut spec = HostSpec::new(&host.name, host.tier, cpu, memory);
        spec.labels.clone_from(&host.labels);
        nodes::worker(&spec, address(&host.address))
    };
    let all: Vec<Node> = hosts.iter().map(of).collect();
    each(all.chunks(1), |one| async move {
        Ok(nodes::create(client, one).await?)
    })
    .await?;
    Ok(())
}

/// Removes the Nodes, and with them their Pods and ComputeNodes.
pub(super) async fn delete_nodes(client: &Client, names: &[&str]) -> Result<(), FleetError> {
    let api = &Api::<Node>::all(client.clone());
    each(names, |name| async move {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    Ok(())
}

/// The tokens of an agent's Pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Tokens {
    /// For the API server.
    pub(super) api: String,
    /// For the operator.
    pub(super) operator: String,
}

/// Tokens bound to the Pod of each host's agent, by host. Also sets the Pods' addresses to those of
/// their hosts, since no kubelet does.
pub(super) async fn tokens(
    client: &Client,
    namespace: &str,
    hosts: &[FleetHost],
    pods: Pods,
) -> Result<BTreeMap<String, Tokens>, FleetError> {
    let pods = match pods {
        Pods::Ours => create_pods(client, namespace, hosts).await?,
        Pods::DaemonSet => pods_of_others(client, namespace, hosts).await?,
    };
    let addresses: BTreeMap<&str, Ipv4Addr> = hosts
        .iter()
        .map(|host| (host.name.as_str(), address(&host.address)))
        .collect();
    let all = &Api::<Pod>::namespaced(client.clone(), namespace);
    let accounts = &Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let addresses = &addresses;
    let tokens = each(pods, |(host, pod)| async move {
        if let Some(ip) = addresses.get(host.as_str()) {
            let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
            let name = pod.name_any();
            all.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                .await?;
        }
        let tokens = Tokens {
            api: token(accounts, &pod, None).await?,
            operator: token(accounts, &pod, Some(CONTROL_AUDIENCE)).await?,
        };
        Ok((host, tokens))
    });
    Ok(tokens.await?.into_iter().collect())
}

/// A token of `pod` for `audience`; for the API server if `None`.
async fn token(
    accounts: &Api<ServiceAccount>,
    pod: &Pod,
    audience: Option<&str>,
) -> Result<String, FleetError> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.map(str::to_owned).into_iter().collect(),
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name_any()),
                uid: pod.uid(),
            }),
        },
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(ACCOUNT, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.map(|s| s.token).unwrap_or_default())
}

async fn create_pods(
    client: &Client,
    namespace: &str,
    hosts: &[FleetHost],
) -> Result<BTreeMap<String, Pod>, FleetError> {
    let api = &Api::<Pod>::namespaced(client.clone(), namespace);
    let pods = each(hosts, |host| async move {
        let name = format!("lamina-agent-{}", host.name);
        let labels: BTreeMap<&str, &str> = AGENTS
            .split(',')
            .filter_map(|label| label.split_once('='))
            .collect();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "serviceAccountName": ACCOUNT,
                "nodeName": host.name,
                "containers": [{"name": "agent", "image": "lamina/node-agent"}],
            },
        });
        let pod = serde_json::from_value(pod).map_err(FleetError::Object)?;
        let pod = api.create(&PostParams::default(), &pod).await?;
        Ok((host.name.clone(), pod))
    });
    Ok(pods.await?.into_iter().collect())
}

/// The Pods of a DaemonSet, once there is one per host.
async fn pods_of_others(
    client: &Client,
    namespace: &str,
    hosts: &[FleetHost],
) -> Result<BTreeMap<String, Pod>, FleetError> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let begin = tokio::time::Instant::now();
    loop {
        let all = api.list(&ListParams::default().labels(AGENTS)).await?;
        let bound = all.into_iter().filter_map(|pod| {
            let node = pod.spec.as_ref()?.node_name.clone()?;
            hosts
                .iter()
                .any(|host| host.name == node)
                .then_some((node, pod))
        });
        let bound: BTreeMap<String, Pod> = bound.collect();
        if bound.len() == hosts.len() {
            return Ok(bound);
        }
        if begin.elapsed() > PODS_WITHIN {
            return Err(FleetError::Pods {
                there: bound.len(),
                wanted: hosts.len(),
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Does `work` for all `items`, several at once.
async fn each<T, R, F>(
    items: impl IntoIterator<Item = T>,
    work: impl FnMut(T) -> F,
) -> Result<Vec<R>, FleetError>
where
    F: Future<Output = Result<R, FleetError>>,
{
    let all = futures::stream::iter(items).map(work);
    all.buffer_unordered(CONCURRENCY).try_collect().await
}

/// The address without its port; hosts of a fleet have IPv4 addresses.
fn address(address: &str) -> Ipv4Addr {
    let host = address.split(':').next().unwrap_or_default();
    host.parse().unwrap_or(Ipv4Addr::UNSPECIFIED)
}
