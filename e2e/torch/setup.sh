#!/usr/bin/env bash
# Prints the Python that has PyTorch, for the comparisons of this folder; makes it once in the cache (6 GB: PyPI has no PyTorch for x86 without
# CUDA's libraries; about three minutes).
set -euo pipefail
cd "$(dirname "$0")"
exec ../venv.sh torch requirements.txt
