# Pid 1 of the control plane's namespaces.
set -u
DIR=$STATE/cp
mkdir -p "$DIR/log" "$DIR/etcd"
. "$here/lib/supervise.sh"
kubes=$BIN/kubes
keep etcd "$kubes" etcd --data-dir "$DIR/etcd" --listen-client-urls http://127.0.0.1:2379 \
    --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync --log-level warn
keep apiserver "$kubes" kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --advertise-address="$CP" \
    --service-cluster-ip-range="$SERVICES.0.0/16" --allow-privileged=true --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --client-ca-file="$PKI/ca.crt" \
    --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --kubelet-client-certificate="$PKI/apiserver-kubelet-client.crt" --kubelet-client-key="$PKI/apiserver-kubelet-client.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$PKI/sa.pub" \
    --service-account-signing-key-file="$PKI/sa.key" --requestheader-client-ca-file="$PKI/front-proxy-ca.crt" \
    --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
    --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$PKI/front-proxy-client.crt" --proxy-client-key-file="$PKI/front-proxy-client.key" \
    --enable-aggregator-routing=true --profiling=false
# Fast reactions for tests; `--unhealthy-zone-threshold=1` evicts also when most of this tiny cluster is gone.
keep controller-manager "$kubes" kube-controller-manager --kubeconfig="$PKI/controller-manager.kubeconfig" \
    --authentication-kubeconfig="$PKI/controller-manager.kubeconfig" --authorization-kubeconfig="$PKI/controller-manager.kubeconfig" \
    --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" --cluster-signing-cert-file="$PKI/ca.crt" \
    --cluster-signing-key-file="$PKI/ca.key" --use-service-account-credentials=true --leader-elect=false \
    --allocate-node-cidrs=false --cluster-cidr="$PODNET.0.0/16" --node-monitor-period=1s \
    --node-monitor-grace-period="${GRACE:-4s}" --node-eviction-rate=100 --secondary-node-eviction-rate=100 \
    --unhealthy-zone-threshold=1 --kube-api-qps=500 --kube-api-burst=1000 --profiling=false
keep scheduler "$kubes" kube-scheduler --kubeconfig="$PKI/scheduler.kubeconfig" \
    --authentication-kubeconfig="$PKI/scheduler.kubeconfig" --authorization-kubeconfig="$PKI/scheduler.kubeconfig" \
    --leader-elect=false --kube-api-qps=500 --kube-api-burst=1000 --profiling=false
cat >"$DIR/Corefile" <<CONF
cluster.local:53 in-addr.arpa:53 {
    bind $CP
    errors
    kubernetes {
        kubeconfig $PKI/dns.kubeconfig $NAME
        ttl 2
    }
    cache 5 {
        denial 1000 1
    }
    loadbalance
}
.:53 {
    bind $CP
    template ANY ANY {
        rcode NXDOMAIN
    }
}
CONF
keep coredns "$kubes" coredns -conf "$DIR/Corefile"
wait
