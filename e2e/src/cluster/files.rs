//! Configuration of a node's programs: pure functions of the node's addresses.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

/// Pod addresses of all nodes.
const PODS: &str = "10.98.0.0/16";
/// The parent control group of all nodes.
pub(super) const CGROUP: &str = "lamina-cluster";
/// The image that holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "lamina/pause";

/// The pod addresses of the node with this number.
pub(super) fn pod_range(number: u8) -> String {
    format!("10.98.{number}.0/24")
}

/// The kubelet's configuration.
pub(super) fn kubelet(name: &str, address: Ipv4Addr, ca: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": ca},
        },
        "authorization": {"mode": "Webhook"},
        "address": address,
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{CGROUP}/{name}"),
        // Machines with control groups of version 1 still exist.
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "resolvConf": "/run/resolv.conf",
        // Nodes share one disk, the developer's.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 99,
        "imageGCLowThresholdPercent": 98,
    })
}

/// kube-proxy's configuration.
pub(super) fn proxy(kubeconfig: &Path, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "mode": "iptables",
        "clusterCIDR": PODS,
        "bindAddress": address,
        "healthzBindAddress": format!("{address}:10256"),
        "metricsBindAddress": "127.0.0.1:10249",
        // The kernel's limits belong to the machine, not the node.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}

/// containerd's configuration; `folder` is the node's, `plugins` has the CNI plugins.
pub(super) fn containerd(folder: &Path, plugins: &Path, version: &str) -> String {
    let (networks, plugins) = (folder.join("networks"), plugins.display());
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}:{version}"
  # Without CAP_SYS_RESOURCE no score can be lowered.
  restrict_oom_score_adj = true
  enable_unprivileged_ports = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        networks.display()
    )
}

/// The pod network's configuration: a bridge, and host ports.
pub(super) fn network(number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "lamina",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_range(number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_pods_and_groups_of_its_own() {
        let at = |n| Ipv4Addr::new(10, 99, 0, n);
        let ca = Path::new("/ca.crt");
        let (one, two) = (kubelet("cam-1", at(11), ca), kubelet("edge-1", at(12), ca));
        assert_ne!(one["cgroupRoot"], two["cgroupRoot"]);
        assert_ne!(one["address"], two["address"]);
        assert_ne!(network(1), network(2));
    }
}
