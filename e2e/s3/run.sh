#!/usr/bin/env bash
# Checkpoints in a bucket of a real server that checks signatures: Versity's S3 gateway, built from its Go modules into the cache (once, about
# 2 minutes on 2 cores). Runs the tests that need one: run.sh [arguments of cargo nextest run]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
server=$("$here/../build-go.sh" s3 "2 minutes")
work=$(mktemp -d)
pid=
stop() {
    status=$?
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    [ "$status" -eq 0 ] || { echo "--- last lines of the server's log"; tail -n 40 "$work/log"; } >&2
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$work/buckets/checkpoints" "$work/about" # a folder is a bucket
export AWS_ACCESS_KEY_ID=tests AWS_SECRET_ACCESS_KEY=$(head -c 20 /dev/urandom | base64)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$server" "127.0.0.1:$port" "$work/buckets" "$work/about" >"$work/log" 2>&1 &
pid=$!
for _ in $(seq 100); do
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    kill -0 "$pid" 2>/dev/null || { echo "the server ended" >&2; exit 1; }
    sleep 0.1
done
cd "$here/../.."
DUNLIN_S3_URL=http://127.0.0.1:$port DUNLIN_S3_FOLDER=$work/buckets \
    cargo nextest run --locked -p dunlin-store -p dunlin-train -p dunlin-worker -p dunlin-cli --run-ignored only -E 'test(/(^|::)s3_/)' "$@"
