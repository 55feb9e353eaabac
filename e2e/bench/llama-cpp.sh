#!/usr/bin/env bash
# Builds llama.cpp's llama-bench and RPC server from the source tree inside PyPI's llama-cpp-python sdist, once.
# Prints the folder with the binaries.
set -euo pipefail
version=0.3.36
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/bench/llama-cpp-$version
bin=$cache/build/bin
if [ ! -x "$bin/llama-bench" ] || [ ! -x "$bin/ggml-rpc-server" ]; then
    {
        mkdir -p "$cache"
        cd "$cache"
        python3 -m venv tools
        tools/bin/pip -q install cmake ninja
        tools/bin/pip -q download --no-deps --no-build-isolation --no-binary llama-cpp-python -d . "llama-cpp-python==$version" \
            || tools/bin/pip -q download --no-deps --no-binary llama-cpp-python -d . "llama-cpp-python==$version"
        tar xzf llama_cpp_python-$version.tar.gz
        source=llama_cpp_python-$version/vendor/llama.cpp
        PATH=$cache/tools/bin:$PATH cmake -S "$source" -B build -G Ninja -DGGML_RPC=ON -DLLAMA_CURL=OFF \
            -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_OPENSSL=OFF \
            -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
        PATH=$cache/tools/bin:$PATH cmake --build build --target llama-bench ggml-rpc-server -j "$(nproc)"
    } >&2
fi
echo "$bin"
