# Two authorities, a key pair for service accounts, a certificate for every component, a kubeconfig for every client.
make_pki() {
    [ -f "$PKI/complete" ] && return
    mkdir -p "$PKI"
    (
        cd "$PKI"
        authority ca
        authority front-proxy-ca
        local names="DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
        certificate apiserver /CN=kube-apiserver ca "$names,DNS:localhost,IP:127.0.0.1,IP:$SERVICES.0.1,IP:$CP"
        certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client ca
        certificate front-proxy-client /CN=front-proxy-client front-proxy-ca
        certificate admin /O=system:masters/CN=admin ca
        certificate dns /O=system:masters/CN=coredns ca
        certificate controller-manager /CN=system:kube-controller-manager ca
        certificate scheduler /CN=system:kube-scheduler ca
        certificate proxy /CN=system:kube-proxy ca
        local i
        for i in $(seq "$NODES"); do
            certificate "n$i" "/O=system:nodes/CN=system:node:n$i" ca "DNS:n$i,IP:$NODENET.$((10 + i))"
        done
        openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out sa.key
        openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
        for i in admin dns controller-manager scheduler proxy $(seq -f n%g "$NODES"); do kubeconfig "$i"; done
        touch complete
    )
}

authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$1" -keyout "$1.key" -out "$1.crt" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature 2>/dev/null
}

# certificate NAME SUBJECT AUTHORITY [NAMES]
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -set_serial "0x$(openssl rand -hex 8)" -days 3650 -out "$1.crt" \
        -extfile <(printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n%s\n' "${4:+subjectAltName=$4}") 2>/dev/null
    rm "$1.csr"
}

kubeconfig() {
    cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: $NAME, cluster: {server: "https://$CP:6443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: $NAME, context: {cluster: $NAME, user: $1}}]
current-context: $NAME
YAML
}
