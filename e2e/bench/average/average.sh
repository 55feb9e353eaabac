#!/usr/bin/env bash
# Averages among processes beside Gloo and hivemind, which come from PyPI into the cache: e2e/bench/average/average.sh [options of run.py]
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=e2e/bench/average
venv=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/venv/average-$(sha256sum "$here/requirements.txt" | cut -c1-12)
if [ ! -d "$venv" ]; then
    mkdir -p "$(dirname "$venv")"
    fresh=$(mktemp -d "$(dirname "$venv")/new.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    python3 -m venv "$fresh" || { echo "venv is missing: apt-get install python3-venv" >&2; exit 1; }
    "$fresh/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check -r "$here/requirements.txt"
    # Only whole ones get the name.
    mv -T "$fresh" "$venv" 2>/dev/null || [ -d "$venv" ]
    trap - EXIT
fi
target=${CARGO_TARGET_DIR:-target}
exec "$venv/bin/python" "$here/run.py" --worker "${DUNLIN_BIN:-$target/release/dunlin-worker}" --hivemind-python "$venv/bin/python" \
    --out "$target/bench/average.json" "$@"
