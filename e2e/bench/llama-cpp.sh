#!/usr/bin/env bash
# Builds llama.cpp's llama-bench and RPC server from the source tree that e2e/bench/llama-cpp-source.sh fetches, once.
# Prints the folder with the binaries.
set -euo pipefail
source=$("$(dirname "$0")/llama-cpp-source.sh")
cache=$(cd "$source/../../.." && pwd)
bin=$cache/build/bin
if [ ! -x "$bin/llama-bench" ] || [ ! -x "$bin/ggml-rpc-server" ]; then
    {
        cd "$cache"
        PATH=$cache/tools/bin:$PATH cmake -S "$source" -B build -G Ninja -DGGML_RPC=ON -DLLAMA_CURL=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF \
            -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
        PATH=$cache/tools/bin:$PATH cmake --build build --target llama-bench ggml-rpc-server -j "$(nproc)"
    } >&2
fi
echo "$bin"
