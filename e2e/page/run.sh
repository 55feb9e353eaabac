#!/usr/bin/env bash
# The conductor's page in a real browser: a local run trains, loses a peer, and the page shows both. Writes page.png beside what it prints.
#   DUNLIN_BIN=target/release/dunlin-worker e2e/page/run.sh [FOLDER]
# Needs chromium-headless-shell or chromium; installs the former where apt has it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
mkdir -p "$out"
browser=$(command -v chromium-headless-shell || command -v chromium || true)
if [ -z "$browser" ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell; } >/dev/null \
        || { echo "install chromium-headless-shell" >&2; exit 1; }
    browser=$(command -v chromium-headless-shell)
fi
text=$("$here/../fetch-text.sh")
work=$(mktemp -d)
swarm=
trap 'if [ -n "$swarm" ]; then kill "$swarm" 2>/dev/null; wait "$swarm" 2>/dev/null; fi; rm -rf "$work"' EXIT
cat >"$work/run.yaml" <<YAML
model: {config: {architecture: llama, hiddenSize: 64, layers: 4, heads: 4, kvHeads: 2, ffn: 176, contextLength: 128, ropeBase: 10000.0,
                 rmsEps: 0.00001, tied: true}}
data: {text: {path: "$text"}, tokenizer: Bytes, validationFraction: 0.01}
sequenceLength: 64
globalBatch: 32
microbatch: 4
steps: 100000
seed: 1
optimizer: {kind: AdamW, learningRate: 0.001, beta1: 0.9, beta2: 0.95, epsilon: 1.0e-8, weightDecay: 0.1, momentum: 0.0, clip: 1.0,
            schedule: {kind: Constant, warmupSteps: 20}}
stages: 2
validation: {everySteps: 10, batches: 2}
YAML
DUNLIN_LOG=warn "$DUNLIN_BIN" local-train --config "$work/run.yaml" --peers 4 >"$work/lines" &
swarm=$!
lines() { for _ in $(seq 600); do [ "$(wc -l <"$work/lines")" -ge "$1" ] && return; kill -0 "$swarm"; sleep 0.1; done; echo "no $1 lines after 60 s" >&2; return 1; }
# The processes, and 40 steps.
lines 41
url=$(head -n 1 "$work/lines" | python3 -c 'import json,sys; print(json.load(sys.stdin)["url"])')
peer=$(head -n 1 "$work/lines" | python3 -c 'import json,sys; print([p["pid"] for p in json.load(sys.stdin)["processes"] if p["role"] == "peer"][0])')
look() { "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1100,800 --virtual-time-budget=3000 "$@" "$url/" 2>"$work/browser" || { cat "$work/browser" >&2; exit 1; }; }
look --dump-dom >"$work/before.html"
kill -9 "$peer"
lines $(($(wc -l <"$work/lines") + 30))
look --dump-dom >"$work/after.html"
look --screenshot="$out/page.png" >/dev/null
python3 "$here/check.py" "$work/before.html" "$work/after.html"
[ "$(stat -c %s "$out/page.png")" -gt 5000 ] || { echo "page.png is empty" >&2; exit 1; }
echo "$out/page.png"
