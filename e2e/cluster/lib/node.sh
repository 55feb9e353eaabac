# Pid 1 of node $1's namespaces: private /run and kubelet folders, then containerd, kubelet and kube-proxy.
set -u
node=$1
number=${node#n}
DIR=$STATE/$node
ADDRESS=$NODENET.$((10 + number))
GROUP=$TAG-$node
export PATH=$BIN:$PATH
. "$here/lib/supervise.sh"
hostname "$node"
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-rshared /run
mkdir -p /run/netns /run/lock /run/dbus "$DIR"/{kubelet,containerd,log,pods,containers,cni} /var/lib/kubelet /var/log/pods /var/log/containers
mount --bind "$DIR/kubelet" /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
mount --bind "$DIR/pods" /var/log/pods
mount --bind "$DIR/containers" /var/log/containers

if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo '+cpu +memory +pids +cpuset +io' >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
    mkdir -p "/sys/fs/cgroup/$GROUP"
    echo '+cpu +memory +pids +cpuset +io' >"/sys/fs/cgroup/$GROUP/cgroup.subtree_control" 2>/dev/null
else
    # cgroup v1: a group of our own in every hierarchy, the named one included.
    for hierarchy in /sys/fs/cgroup/*/; do
        [ -f "$hierarchy/cgroup.procs" ] || continue
        mkdir -p "$hierarchy/$GROUP"
        for file in cpuset.cpus cpuset.mems; do
            [ -f "$hierarchy/$file" ] && cat "$hierarchy/$file" >"$hierarchy/$GROUP/$file"
        done
    done
fi

# NRI is off because its socket has a global path; oom_score_adj is left because not every root may lower it.
cat >"$DIR/containerd.toml" <<CONF
version = 3
root = "$DIR/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "registry.local/pause:dev"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$BIN"]
    conf_dir = "$DIR/cni"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
CONF
cat >"$DIR/cni/10-pods.conflist" <<CONF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local",
  "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "$PODNET.$number.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
CONF
cat >"$DIR/kubelet.yaml" <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/$node.crt
tlsPrivateKeyFile: $PKI/$node.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$GROUP
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
clusterDNS: [$CP]
clusterDomain: cluster.local
resolvConf: ""
nodeStatusUpdateFrequency: 1s
nodeLeaseDurationSeconds: 4
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", nodefs.inodesFree: "1%", imagefs.available: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
registryPullQPS: 0
eventRecordQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
serializeImagePulls: false
# GCE gives a preempted machine 30 s: half of it for pods, the rest for critical ones.
shutdownGracePeriod: 30s
shutdownGracePeriodCriticalPods: 15s
CONF
cat >"$DIR/dbus.conf" <<CONF
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
CONF
# The kubelet hears of a shutdown from logind over the system bus. There is no systemd here, so the bus and a stand-in run by themselves.
keep dbus dbus-daemon --config-file="$DIR/dbus.conf" --nofork --nopidfile
for _ in $(seq 200); do [ -S /run/dbus/system_bus_socket ] && break; sleep 0.02; done
kubes logind >>"$DIR/log/logind" 2>&1 &
logind=$!
echo $logind >/run/logind.pid
keep containerd containerd -c "$DIR/containerd.toml"
for _ in $(seq 200); do ctr -a /run/containerd/containerd.sock version >/dev/null 2>&1 && break; sleep 0.05; done
# One import at a time: parallel ones into one containerd fail on a lock.
for image in "$STATE"/images/*.tar; do
    [ -f "$image" ] && [ ! "$DIR/imported-$(basename "$image")" -nt "$image" ] || continue
    ctr -a /run/containerd/containerd.sock -n k8s.io images import "$image" >/dev/null && touch "$DIR/imported-$(basename "$image")"
done
# The last node is on-demand capacity, the others are spot.
[ "$number" = "$NODES" ] && capacity=on-demand || capacity=spot
keep kubelet kubes kubelet --config="$DIR/kubelet.yaml" --kubeconfig="$PKI/$node.kubeconfig" --hostname-override="$node" \
    --node-ip="$ADDRESS" --node-labels="topology.kubernetes.io/zone=z$number,karpenter.sh/capacity-type=$capacity"
# Conntrack settings are left alone: they are the host's.
keep kube-proxy kubes kube-proxy --kubeconfig="$PKI/proxy.kubeconfig" --hostname-override="$node" --proxy-mode=nftables \
    --cluster-cidr="$PODNET.0.0/16" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0s \
    --conntrack-tcp-timeout-close-wait=0s
# It ends when the kubelet has shut the node down; then the power goes off.
wait $logind
