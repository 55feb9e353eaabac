#!/usr/bin/env bash
# Runs a command beside a local swarm of three processes, which is ended afterwards: with-swarm.sh COMMAND...
# OPENAI_BASE_URL says where it answers. DUNLIN_BIN is the tool (default: target/release/dunlin).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dunlin=${DUNLIN_BIN:-${CARGO_TARGET_DIR:-$here/../target}/release/dunlin}
[ -x "$dunlin" ] || { echo "$dunlin is missing: cargo build --release -p dunlin-worker -p dunlin-cli" >&2; exit 1; }
model=$("$here/fetch-model.sh")
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
"$dunlin" local --model "$model" --peers 3 --listen 127.0.0.1:0 >"$work/ready" 2>"$work/log" &
swarm=$!
exec 3<"$work/ready"
read -r -t 130 line <&3 || { echo "the swarm does not serve" >&2; exit 1; }
url=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["url"])' "$line")
OPENAI_BASE_URL=$url/v1 "$@"
