#!/usr/bin/env bash
# Lints the chart strictly and shows that two renderings are the same bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
helm() { e2e/cluster/cluster helm "$@"; }
helm lint --strict charts/dunlin
first=$(helm template dunlin charts/dunlin --namespace dunlin-system)
second=$(helm template dunlin charts/dunlin --namespace dunlin-system)
[ "$first" = "$second" ] || { echo "charts/dunlin: two renderings differ" >&2; exit 1; }
echo "two renderings are the same ${#first} bytes"
