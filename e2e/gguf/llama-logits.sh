#!/usr/bin/env bash
# Builds logits.cpp with the llama.cpp that e2e/bench/llama-cpp.sh builds. Prints where the program is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$("$here/../bench/llama-cpp-source.sh")
bin=$("$here/../bench/llama-cpp.sh")
build=$(dirname "$bin")
program=$bin/logits
if [ ! -x "$program" ] || [ "$here/logits.cpp" -nt "$program" ] || [ "$bin/llama-bench" -nt "$program" ]; then
    g++ -O1 -std=c++17 -I "$source/include" -I "$source/ggml/include" "$here/logits.cpp" -o "$program.new" \
        -Wl,--start-group "$build"/src/libllama.a "$build"/ggml/src/libggml*.a "$build"/ggml/src/*/libggml*.a -Wl,--end-group \
        -fopenmp -lpthread -ldl >&2
    mv "$program.new" "$program"
fi
echo "$program"
