//! The Node objects of the lab's hosts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, NodeSystemInfo, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};

use crate::config::HostSpec;
use crate::control_plane::KWOK_ANNOTATION;
use crate::netlab::CONTROL;

/// The label with a Node's tier.
pub const TIER_LABEL: &str = "serving.lamina.dev/tier";
/// The label of the control host's Node, as kubeadm sets it.
pub const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";
/// The label of all other Nodes.
pub const WORKER_LABEL: &str = "node-role.kubernetes.io/worker";
/// Pods per Node, a kubelet's default.
const PODS_PER_NODE: &str = "110";

/// Capacity of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
}

impl Size {
    pub(crate) fn of(host: &HostSpec) -> Self {
        Self {
            cpu_millis: host.cpu_millis,
            memory_bytes: host.memory_bytes,
        }
    }

    /// The whole machine.
    pub(crate) fn of_this_machine() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kibibytes = table.lines().find_map(|line| {
            let number = line.strip_prefix("MemTotal:")?.strip_suffix(" kB")?;
            number.trim().parse::<u64>().ok()
        });
        Self {
            cpu_millis: processors as u64 * 1000,
            memory_bytes: kibibytes.unwrap_or(1 << 20) * 1024,
        }
    }
}

/// The Node of an ordinary host.
pub(crate) fn worker(host: &HostSpec, address: Ipv4Addr) -> Node {
    let mut labels = host.labels.clone();
    labels.insert(TIER_LABEL.to_owned(), host.tier.label().to_owned());
    labels.insert(WORKER_LABEL.to_owned(), String::new());
    node(&host.name, address, Size::of(host), labels, Vec::new())
}

/// The Node of the control host.
pub(crate) fn control(address: Ipv4Addr, size: Size) -> Node {
    let labels = BTreeMap::from([(CONTROL_PLANE_LABEL.to_owned(), String::new())]);
    let taint = Taint {
        key: CONTROL_PLANE_LABEL.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    node(CONTROL, address, size, labels, vec![taint])
}

/// Creates the Nodes with their sizes and addresses; kwok makes them ready.
pub(crate) async fn create(client: &kube::Client, nodes: &[Node]) -> kube::Result<()> {
    let api = Api::<Node>::all(client.clone());
    for node in nodes {
        api.create(&PostParams::default(), node).await?;
        // Creating ignores the status.
        let status = serde_json::json!({"status": node.status});
        api.patch_status(
            &node.name_any(),
            &PatchParams::default(),
            &Patch::Merge(status),
        )
        .await?;
    }
    Ok(())
}

pub(crate) fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    let ready =
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    // The controller removes the taint a moment later; pods wait for it.
    let mut taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    ready && !taints.any(|taint| taint.key == "node.kubernetes.io/not-ready")
}

fn node(
    name: &str,
    address: Ipv4Addr,
    size: Size,
    mut labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
) -> Node {
    labels.insert("kubernetes.io/hostname".to_owned(), name.to_owned());
    labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    labels.insert("kubernetes.io/arch".to_owned(), architecture().to_owned());
    let (key, value) = KWOK_ANNOTATION;
    let resources = BTreeMap::from([
        ("cpu".to_owned(), Quantity(format!("{}m", size.cpu_millis))),
        ("memory".to_owned(), Quantity(size.memory_bytes.to_string())),
        ("pods".to_owned(), Quantity(PODS_PER_NODE.to_owned())),
    ]);
    let address_of = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            addresses: Some(vec![
                address_of("InternalIP", address.to_string()),
                address_of("Hostname", name.to_owned()),
            ]),
            capacity: Some(resources.clone()),
            allocatable: Some(resources),
            node_info: Some(NodeSystemInfo {
                architecture: architecture().to_owned(),
                operating_system: "linux".to_owned(),
                os_image: "Lamina lab".to_owned(),
                kubelet_version: "lab".to_owned(),
                container_runtime_version: "process://lab".to_owned(),
                ..NodeSystemInfo::default()
            }),
            ..NodeStatus::default()
        }),
    }
}

/// The processor's name as Go and Kubernetes write it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
