#!/usr/bin/env bash
# llama.cpp's source tree as it is in PyPI's llama-cpp-python sdist, fetched once. Prints its folder.
set -euo pipefail
version=0.3.36
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/bench/llama-cpp-$version
source=$cache/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -f "$cache/unpacked" ]; then
    {
        mkdir -p "$cache"
        cd "$cache"
        [ -x tools/bin/pip ] || python3 -m venv tools
        tools/bin/pip -q install cmake ninja
        tools/bin/pip -q download --no-deps --no-binary llama-cpp-python -d . "llama-cpp-python==$version"
        tar xzf llama_cpp_python-$version.tar.gz
        touch unpacked
    } >&2
fi
echo "$source"
