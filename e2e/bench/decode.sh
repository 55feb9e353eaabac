#!/usr/bin/env bash
# Decode speed beside llama.cpp, built from PyPI's sdist into the cache: e2e/bench/decode.sh [options of the decode binary]
set -euo pipefail
cd "$(dirname "$0")/../.."
llama=$(e2e/bench/llama-cpp.sh)
exec "${CARGO_TARGET_DIR:-target}/release/decode" --model "$(e2e/fetch-model.sh)" --llama-bench "$llama/llama-bench" "$@"
