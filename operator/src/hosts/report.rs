//! Reports of hosts that are not Nodes: bounded, and written on their behalf.

use super::Hosts;
use crate::lease::Tenure;
use crate::text::with_causes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lamina_crds::conditions::{BENCHMARKED, QUARANTINED, REGISTERED};
use lamina_crds::{AGENT_MANAGER, ComputeNode, ComputeNodeStatus};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Largest report: the API server accepts objects of 1.5 MB, including the spec.
const MOST_BYTES: usize = 512 << 10;
/// Reports within this time are written together, and no host is written more often.
const GATHER: Duration = Duration::from_millis(200);
/// A write that takes longer has failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// The report in `json` of a host at `address`, without fields that a host must not set; `None` if
/// it is invalid.
pub(super) fn taken(json: &[u8], address: &str) -> Option<ComputeNodeStatus> {
    if json.len() > MOST_BYTES {
        return None;
    }
    let told: ComputeNodeStatus = serde_json::from_slice(json).ok()?;
    Some(ComputeNodeStatus {
        conditions: of_agent(told.conditions),
        address: address.to_owned(),
        joined: None,
        ..told
    })
}

/// Those of `conditions` that agents set.
pub(super) fn of_agent(conditions: Vec<Condition>) -> Vec<Condition> {
    let kinds = [REGISTERED, BENCHMARKED, QUARANTINED];
    let mut conditions = conditions;
    conditions.retain(|c| kinds.contains(&c.type_.as_str()));
    conditions
}

/// Writes the reports of hosts as their agents would, while this process `leads` and may write;
/// never returns.
pub(crate) async fn write(
    hosts: Hosts,
    client: Client,
    tenure: Tenure,
    mut leads: watch::Receiver<bool>,
) {
    let api = Api::<ComputeNode>::all(client);
    if leads.wait_for(|leads| *leads).await.is_err() {
        return;
    }
    loop {
        hosts.reported().await;
        sleep(GATHER).await;
        let mut is_failed = false;
        for (name, status) in hosts.take_reports() {
            if !hosts.is_joined(&name) {
                continue;
            }
            if let Err(error) = apply(&api, &name, &status, &tenure).await {
                tracing::warn!(
                    host = name,
                    error,
                    "a report could not be written; trying again"
                );
                hosts.put_back(name, status);
                is_failed = true;
            }
        }
        if is_failed {
            sleep(RETRY).await;
        }
    }
}

async fn apply(
    api: &Api<ComputeNode>,
    name: &str,
    status: &ComputeNodeStatus,
    tenure: &Tenure,
) -> Result<(), String> {
    // A forced write must never overwrite a new leader's.
    let left = tenure
        .until()
        .map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.filter(|left| !left.is_zero());
    let left = left.ok_or("the lease was not renewed")?;
    let body = json!({
        "apiVersion": format!("{}/v1alpha1", lamina_crds::GROUP),
        "kind": "ComputeNode",
        "metadata": { "name": name },
        "status": status,
    });
    let params = PatchParams::apply(AGENT_MANAGER).force();
    let patch = Patch::Apply(body);
    match timeout(
        WRITE_TIMEOUT.min(left),
        api.patch_status(name, &params, &patch),
    )
    .await
    {
        Ok(Ok(_)) => Ok(()),
        // It was deleted meanwhile.
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(_) => Err(format!("no answer within {WRITE_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_says_nothing_of_its_join_of_others_conditions_or_of_another_address() {
        let condition = |kind: &str| {
            json!({"type": kind, "status": "True", "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let told = json!({
            "observedGeneration": 7,
            "address": "10.0.0.66:8001",
            "conditions": [condition("Ready"), condition("Registered")],
            "joined": {"tokenSha256": "a", "keySha256": "b", "at": "2026-01-01T00:00:00Z"},
            "capacity": {"gflops": 3.0, "cpuMillis": 1000, "memoryBytes": 1 << 30},
        });
        let taken = taken(told.to_string().as_bytes(), "10.0.0.9:8001").unwrap();
        assert_eq!(taken.observed_generation, 7);
        assert_eq!(taken.address, "10.0.0.9:8001");
        assert_eq!(taken.joined, None);
        let kinds: Vec<&str> = taken.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(kinds, ["Registered"]);
        assert!(taken.capacity.is_some());
    }

    #[test]
    fn what_is_no_report_or_too_large_is_none() {
        assert_eq!(taken(b"{", ""), None);
        assert_eq!(taken(b"7", ""), None);
        let large = json!({ "agentVersion": "x".repeat(MOST_BYTES) });
        assert_eq!(taken(large.to_string().as_bytes(), ""), None);
    }
}
