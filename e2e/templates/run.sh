#!/usr/bin/env bash
# Chats and texts as tokens, here and in transformers: run.sh PROMPTS DUNLIN [COUNT]. PROMPTS is the example of worker/gateway.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Without what axolotl would bring for training: its templates are all that is read of it.
python=$("$here/../venv.sh" templates "$here/requirements.txt" --no-deps)
exec "$python" "$here/compare.py" "$@"
