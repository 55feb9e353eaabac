#!/usr/bin/env bash
# Builds what a cluster is made of, once per version of the sources: Kubernetes, etcd, CoreDNS and Helm in one binary (kubes),
# containerd with its shim and ctr, CNI plugins. About 12 minutes on 2 cores the first time, less than a second later.
# Prints the folder with the binaries.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}

# Go names each package that it has built; a sign of life every now and then is enough.
progress() {
    local count=0 line
    while IFS= read -r line; do
        case $line in
            *' '*) echo "$line" ;;
            *)
                count=$((count + 1))
                if [ $((count % 200)) = 0 ]; then echo "  $count packages after $SECONDS s"; fi
                ;;
        esac
    done
}

command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer" >&2; exit 1; }
hash=$({ cat "$here"/kubes/*.go "$here"/kubes/go.mod "$here"/kubes/go.sum "$here"/build.sh; go env GOVERSION; } | sha256sum | cut -c1-16)
out=$cache/cluster/$hash
mkdir -p "$cache/cluster"
exec 9>"$cache/cluster/lock"
flock 9 # a second cluster that starts meanwhile waits for the first build
if [ ! -f "$out/complete" ]; then
    {
        echo "building Kubernetes from Go modules (once; about 12 minutes on 2 cores)"
        mkdir -p "$out/bin"
        kubernetes=v1.37.2
        flags="-s -w"
        # Without a version Helm and kubectl misbehave.
        for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            flags+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=37"
            flags+=" -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
        done
        flags+=" -X helm.sh/helm/v4/internal/version.version=v4.3.1"
        flags+=" -X github.com/containerd/containerd/v2/version.Version=2.4.2"
        cd "$here/kubes"
        export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=readonly"
        SECONDS=0
        go build -v -trimpath -ldflags "$flags" -o "$out/bin/kubes" . 2>&1 | progress
        echo "  kubes after $SECONDS s"
        go build -trimpath -ldflags "$flags" -o "$out/bin/" \
            github.com/containerd/containerd/v2/cmd/containerd \
            github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
            github.com/containerd/containerd/v2/cmd/ctr \
            github.com/containernetworking/plugins/plugins/ipam/host-local \
            github.com/containernetworking/plugins/plugins/main/loopback \
            github.com/containernetworking/plugins/plugins/main/ptp
        touch "$out/complete"
        echo "  done after $SECONDS s"
    } >&2
fi
echo "$out/bin"
