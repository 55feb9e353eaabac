#!/usr/bin/env bash
# The official OpenAI client against a gateway: run.sh [URL [unittest arguments]], e.g. run.sh http://127.0.0.1:8080/v1.
# Without a URL it starts a local swarm of DUNLIN_BIN (default: target/release/dunlin-worker) and ends it afterwards.
set -euo pipefail
cd "$(dirname "$0")"
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
venv=$cache/venv/openai-$(sha256sum requirements.txt | cut -c1-12)
if [ ! -d "$venv" ]; then
    command -v python3 >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv" >&2; exit 1; }
    mkdir -p "$cache/venv"
    fresh=$(mktemp -d "$cache/venv/new.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    python3 -m venv "$fresh" || { echo "venv is missing: apt-get install python3-venv" >&2; exit 1; }
    "$fresh/bin/python" -m pip install --quiet --no-deps --disable-pip-version-check -r requirements.txt
    # Only whole ones get the name. Nothing but `python` is run from it, and that knows no path of its own.
    mv -T "$fresh" "$venv" 2>/dev/null || [ -d "$venv" ]
    trap - EXIT
fi

url=${1:-}
[ $# -eq 0 ] || shift
if [ -z "$url" ]; then
    root=$(cd ../.. && pwd)
    worker=${DUNLIN_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/dunlin-worker}
    [ -x "$worker" ] || { echo "$worker is missing: cargo build --release -p dunlin-worker" >&2; exit 1; }
    model=$(../fetch-model.sh)
    work=$(mktemp -d)
    swarm=
    stop() {
        status=$?
        if [ -n "$swarm" ]; then
            kill "$swarm" 2>/dev/null || true
            wait "$swarm" || true
        fi
        [ "$status" -eq 0 ] || { echo "--- last lines of the swarm's log"; tail -n 40 "$work/log"; } >&2
        rm -rf "$work"
    }
    trap stop EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkfifo "$work/ready"
    "$worker" local --model "$model" --peers 3 --listen 127.0.0.1:0 >"$work/ready" 2>"$work/log" &
    swarm=$!
    exec 3<"$work/ready"
    read -r -t 130 line <&3 || { echo "the swarm does not serve" >&2; exit 1; }
    url=$("$venv/bin/python" -c 'import json, sys; print(json.loads(sys.argv[1])["url"])' "$line")/v1
fi
OPENAI_BASE_URL=$url "$venv/bin/python" test_openai.py "$@"
