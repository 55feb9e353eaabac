#!/usr/bin/env bash
# Builds kstatus, by which Helm and Flux tell whether something is ready, from its Go module into the cache (once, about half a minute on
# 2 cores). Prints the path of the program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer" >&2; exit 1; }
hash=$({ cat "$here"/main.go "$here"/go.mod "$here"/go.sum; go env GOVERSION; } | sha256sum | cut -c1-16)
program=$cache/kstatus/$hash
if [ ! -x "$program" ]; then
    echo "building kstatus from Go modules (once; about half a minute on 2 cores)" >&2
    mkdir -p "$cache/kstatus"
    (cd "$here" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=readonly" \
        go build -trimpath -ldflags "-s -w" -o "$program.$$" .)
    mv "$program.$$" "$program" # only whole ones get the name
fi
echo "$program"
