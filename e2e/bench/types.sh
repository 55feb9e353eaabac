#!/usr/bin/env bash
# Decode speed of each type of GGUF weights beside llama.cpp, built from PyPI's sdist into the cache: e2e/bench/types.sh [options of weight_types.py]
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/bench
llama=$(e2e/bench/llama-cpp.sh)
[ -x "$cache/gguf/bin/python" ] || python3 -m venv "$cache/gguf"
"$cache/gguf/bin/python" -m pip install -q gguf==0.19.0 numpy
exec "$cache/gguf/bin/python" e2e/bench/weight_types.py --decode "$target/release/examples/decode_speed" --llama "$llama" --out "$target/bench/types.json" "$@"
