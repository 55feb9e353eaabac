#!/usr/bin/env bash
# Chats and texts as tokens, here and in transformers: run.sh PROMPTS WORKER [COUNT]. PROMPTS is the example of worker/gateway.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
venv=$cache/venv/templates-$(sha256sum "$here/requirements.txt" | cut -c1-12)
if [ ! -d "$venv" ]; then
    command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
    mkdir -p "$cache/venv"
    fresh=$(mktemp -d "$cache/venv/new.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    python3 -m venv "$fresh" || { echo "venv is missing: apt-get install python3-venv" >&2; exit 1; }
    # Without what axolotl would bring for training: its templates are all that is read of it.
    "$fresh/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check -r "$here/requirements.txt"
    # Only whole ones get the name. Nothing but `python` is run from it, and that knows no path of its own.
    mv -T "$fresh" "$venv" 2>/dev/null || [ -d "$venv" ]
    trap - EXIT
fi
exec "$venv/bin/python" "$here/compare.py" "$@"
