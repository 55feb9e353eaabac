#!/usr/bin/env bash
# Averages among processes beside Gloo and hivemind, which come from PyPI into the cache: e2e/bench/average/average.sh [options of run.py]
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=e2e/bench/average
python=$(e2e/venv.sh average "$here/requirements.txt" --no-deps)
target=${CARGO_TARGET_DIR:-target}
exec "$python" "$here/run.py" --dunlin "${DUNLIN_BIN:-$target/release/dunlin}" --hivemind-python "$python" \
    --out "$target/bench/average.json" "$@"
