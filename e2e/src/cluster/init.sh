#!/bin/bash
# init.sh NAME FOLDER
# Process 1 of a node, in namespaces of its own for processes, mounts, names and the
# network: makes a machine's folders private, then keeps containerd, kubelet and
# kube-proxy running, as an init system would. Killing it is a power failure: /run is
# lost, FOLDER stays.
set -eu
name=$1
folder=$2
hostname "$name"
# Volumes that kubelet mounts must show up in containers.
mount --make-rshared /

mkdir -p "$folder"/{kubelet,containerd,log,cni,proc} /var/lib/{kubelet,containerd,cni}
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/{netns,containerd,lock}
for part in kubelet containerd cni; do
    mount --bind "$folder/$part" "/var/lib/$part"
done
mount --bind "$folder/log" /var/log
# There is no DNS server; what pods need they reach by address.
echo "nameserver 10.96.0.10" > /run/resolv.conf

# What kubelet writes to the kernel goes into files: the machine stays as it is.
for setting in vm/overcommit_memory:1 kernel/panic:10 kernel/panic_on_oops:1; do
    file="$folder/proc/$(basename "${setting%:*}")"
    echo "${setting#*:}" > "$file"
    mount --bind "$file" "/proc/sys/${setting%:*}"
done
# Each start is a boot.
cat /proc/sys/kernel/random/uuid > "$folder/proc/boot_id"
mount --bind "$folder/proc/boot_id" /proc/sys/kernel/random/boot_id

# Runs a program, and again whenever it ends; its number is in /run/PROGRAM.pid.
keep() {
    local program=$1
    shift
    while :; do
        "$@" >> "$folder/$program.log" 2>&1 < /dev/null &
        echo $! > "/run/$program.pid"
        wait $! || true
        sleep 1
    done
}

keep containerd containerd --config "$folder/containerd.toml" &
until [ -S /run/containerd/containerd.sock ]; do
    sleep 0.1
done
keep kubelet "$KUBELET" --config="$folder/kubelet.json" \
    --kubeconfig="$KUBECONFIG" --hostname-override="$name" \
    --node-ip="$NODE_IP" --node-labels="$NODE_LABELS" --root-dir=/var/lib/kubelet \
    --cert-dir=/var/lib/kubelet/pki &
keep kube-proxy "$KUBE_PROXY" --config="$folder/kube-proxy.json" --hostname-override="$name" &
touch /run/booted
trap 'exit 0' TERM
while :; do
    wait -n || true
done
