#!/usr/bin/env bash
# The official OpenAI client against a gateway: run.sh [URL [unittest arguments]], e.g. run.sh http://127.0.0.1:8080/v1.
# Without a URL it starts a local swarm of DUNLIN_BIN (default: target/release/dunlin-worker) and ends it afterwards.
set -euo pipefail
cd "$(dirname "$0")"
python=$(../venv.sh openai requirements.txt --no-deps)

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
    url=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["url"])' "$line")/v1
fi
OPENAI_BASE_URL=$url "$python" test_openai.py "$@"
