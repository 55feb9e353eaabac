#!/usr/bin/env bash
# The official OpenAI client against a gateway: run.sh [URL [unittest arguments]], e.g. run.sh http://127.0.0.1:8080/v1.
# Without a URL it starts a local swarm of DUNLIN_BIN (default: target/release/dunlin) and ends it afterwards.
set -euo pipefail
cd "$(dirname "$0")"
python=$(../venv.sh openai requirements.txt --no-deps)
url=${1:-}
[ $# -eq 0 ] || shift
if [ -z "$url" ]; then
    ../with-swarm.sh "$python" test_openai.py "$@"
else
    OPENAI_BASE_URL=$url "$python" test_openai.py "$@"
fi
