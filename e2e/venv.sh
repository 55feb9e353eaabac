#!/usr/bin/env bash
# Prints the Python that has what a requirements file asks for; makes it once in the cache: venv.sh NAME REQUIREMENTS [options of pip install]
set -euo pipefail
name=$1 requirements=$2
shift 2
venv=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/venv/$name-$(sha256sum "$requirements" | cut -c1-12)
if [ ! -d "$venv" ]; then
    {
        command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv"; exit 1; }
        mkdir -p "$(dirname "$venv")"
        fresh=$(mktemp -d "$(dirname "$venv")/new.XXXXXX")
        trap 'rm -rf "$fresh"' EXIT
        python3 -m venv "$fresh" || { echo "venv is missing: apt-get install python3-venv"; exit 1; }
        "$fresh/bin/python" -m pip install --quiet --disable-pip-version-check "$@" -r "$requirements"
        # Only whole ones get the name. Nothing but `python` is run from it, and that knows no path of its own.
        mv -T "$fresh" "$venv" 2>/dev/null || [ -d "$venv" ]
        trap - EXIT
    } >&2
fi
echo "$venv/bin/python"
