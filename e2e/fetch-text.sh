#!/usr/bin/env bash
# Puts the King James Bible (public domain, 4.1 MB of plain text, a verse a line) into the cache, once, and prints its path.
# It comes out of the Debian packages bible-kjv and bible-kjv-text, with apt-get where that knows them, else from deb.debian.org.
set -euo pipefail
folder=${DUNLIN_CACHE:-$HOME/.cache/dunlin}/texts
file=$folder/bible-kjv.txt
sha256=b5c4940bcfeee072c0935b5200d0f9d88a00a0199cb0961d16133458fcdfae5d
if [ ! -f "$file" ]; then
    {
        command -v dpkg >/dev/null || { echo "dpkg is missing: this needs Debian or a relative of it"; exit 1; }
        work=$(mktemp -d)
        trap 'rm -rf "$work"' EXIT
        cd "$work"
        echo "downloading bible-kjv and bible-kjv-text (2.5 MB)"
        if ! apt-get download -qq bible-kjv bible-kjv-text 2>/dev/null; then
            [ "$(dpkg --print-architecture)" = amd64 ] || { echo "apt-get knows no bible-kjv: apt-get update"; exit 1; }
            rm -f ./*.deb
            while read -r digest name; do
                curl -fsSL --retry 3 -o "$name" "https://deb.debian.org/debian/pool/main/b/bible-kjv/$name"
                echo "$digest  $name" | sha256sum --check --quiet
            done <<'DIGESTS'
75a49c032a6efa9faa2beb4a9acb70974380122906329d0e100de36cc88ff02d bible-kjv_4.38_amd64.deb
d61b6aad4c51ba9e2800b825325fa6a09e99a0d02a9bb6dc4724fcc4995a1b7a bible-kjv-text_4.38_all.deb
DIGESTS
        fi
        for package in ./*.deb; do
            dpkg -x "$package" extracted
        done
        # Lines are `Ge1:1 In the beginning ...`; the reference goes.
        (cd extracted && ./usr/bin/bible -p./usr/lib -f gen1:1-rev22:21 </dev/null) | sed -E 's/^[^ ]+:[0-9]+ //' >text
        echo "$sha256  text" | sha256sum --check --quiet
        mkdir -p "$folder"
        mv text "$file.$$" && mv "$file.$$" "$file"
    } >&2
fi
echo "$file"
