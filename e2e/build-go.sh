#!/usr/bin/env bash
# Builds a Go program of this folder from its Go modules into the cache, once: build-go.sh FOLDER TIME. Prints the path of the program.
set -euo pipefail
here=$(cd "$(dirname "$0")/$1" && pwd)
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/$1
command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer" >&2; exit 1; }
hash=$({ cat "$here"/main.go "$here"/go.mod "$here"/go.sum; go env GOVERSION; } | sha256sum | cut -c1-16)
program=$cache/$hash
if [ ! -x "$program" ]; then
    echo "building e2e/$1 from Go modules (once; about $2 on 2 cores)" >&2
    mkdir -p "$cache"
    (cd "$here" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=readonly" \
        go build -trimpath -ldflags "-s -w" -o "$program.$$" .)
    mv "$program.$$" "$program" # only whole ones get the name
fi
echo "$program"
