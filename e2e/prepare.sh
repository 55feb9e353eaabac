#!/usr/bin/env bash
# Says what `make quickstart` has to build and download first, and how long that takes: nothing when everything is there.
#   prepare.sh TARGET, where cargo's output is
set -euo pipefail
target=$1
here=$(cd "$(dirname "$0")" && pwd)
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
for tool in cargo go; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: the quick start builds everything from source" >&2; exit 1; }
done
steps=() minutes=0
step() { steps+=("$1 (about $2 min)"); minutes=$((minutes + $2)); }
[ -x "$target/release/quickstart" ] || step "the programs of this repository, with cargo: some 350 crates; cargo counts them" 8
ls "$cache"/cluster/*/complete >/dev/null 2>&1 \
    || step "Kubernetes, etcd, Helm and containerd, with Go: 3250 packages, of which a line tells now and then" 12
[ -f "${DUNLIN_IMAGES:-$target/images}/dunlin-models.tar" ] || step "SmolLM2 (93 MB), a text, and images of it all" 1
[ ${#steps[@]} -gt 0 ] || exit 0
echo "To be made once, on 2 cores in about $minutes minutes, from 330 MB of sources where none are in the caches of cargo and Go:"
for i in "${!steps[@]}"; do echo "  $((i + 1)). ${steps[i]}"; done
echo "Rust and Go are built side by side. What is done stays done: go on with the same command whenever it was interrupted."
