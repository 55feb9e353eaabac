#!/usr/bin/env bash
# Decode speed beside llama.cpp, built from PyPI's sdist into the cache, of SmolLM2 (Q4_1) and of a random Llama in f32:
#   e2e/bench/decode.sh [options of `dunlin bench decode`]
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/bench
llama=$(e2e/bench/llama-cpp.sh)
random=$target/bench/random-33m
if [ ! -f "$random/model.gguf" ]; then
    "$target/release/dunlin" random-model --out "$random"
    [ -x "$cache/gguf/bin/python" ] || python3 -m venv "$cache/gguf"
    "$cache/gguf/bin/python" -m pip install -q gguf==0.19.0 numpy
    "$cache/gguf/bin/python" e2e/bench/to_gguf.py "$random" "$random/model.gguf"
fi
decode() {
    "$target/release/dunlin" bench decode --llama "$llama" "$@"
}
echo "SmolLM2 Q4_1"
decode --model "$(e2e/fetch-model.sh)" --record "$target/bench/decode-smollm2.json" "$@"
echo "random 33.5M f32"
decode --model "$random" --gguf "$random/model.gguf" --record "$target/bench/decode-random.json" "$@"
echo "written to $target/bench/decode-*.json"
