#!/usr/bin/env bash
# Installs what the build and the tests need beside Rust and Go, once, where later runs find it.
#   tools/install.sh [nextest] [deny] [g++]
# A C++ compiler comes from apt, if there is none. Cargo tools go to ${DUNLIN_CACHE:-~/.cache/dunlin}/tools/bin; the Makefile puts that on PATH.
set -euo pipefail
cache=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
declare -A version=([nextest]=0.9.143 [deny]=0.20.2)
# Nothing here updates itself: that feature alone would bring a TLS stack written in C.
declare -A options=([nextest]="--no-default-features --features default-no-update" [deny]="")
for tool in "$@"; do
    if [ "$tool" = g++ ]; then
        command -v "${CXX:-g++}" >/dev/null && continue
        echo "installing g++ (once)"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends g++; } >/dev/null \
            || { echo "install g++: the emulated GPU of the tests is compiled with it" >&2; exit 1; }
        continue
    fi
    want=${version[$tool]:?unknown tool $tool}
    stamp=$cache/tools/.$tool-$want
    [ -f "$stamp" ] && [ -x "$cache/tools/bin/cargo-$tool" ] && continue
    if ! "$cache/tools/bin/cargo-$tool" --version 2>/dev/null | grep -q " $want"; then
        echo "installing cargo-$tool $want (a few minutes, once)"
        # shellcheck disable=SC2086  # several words on purpose
        cargo install --quiet --locked --debug ${options[$tool]} --root "$cache/tools" "cargo-$tool" --version "$want"
    fi
    touch "$stamp"
done
