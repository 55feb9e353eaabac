#!/usr/bin/env bash
# Compiles the CUDA kernels into a folder, and lints what came out: tools/cuda/build.sh OUT [SOURCE]
# The compiler comes from PyPI into the cache; no CUDA toolkit, no driver and no GPU is needed.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 OUT [SOURCE]" >&2; exit 2; }
out=$(realpath -m "$1")
source=$(realpath -m "${2:-$(dirname "$0")/../../kernels/cuda/device/all.cu}")
cd "$(dirname "$0")/../.."
nvrtc=$(tools/cuda/install.sh nvrtc)
disassembler=$(tools/cuda/install.sh disassembler)
python3 tools/cuda/compile.py --nvrtc "$nvrtc" --source "$(realpath --relative-to=. "$source")" --out "$out"
python3 tools/cuda/lint.py --disassembler "$disassembler" "$out"
