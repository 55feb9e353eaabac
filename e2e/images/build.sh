#!/usr/bin/env bash
# Builds the images of the local cluster as archives: dunlin-worker and dunlin-operator from the Dockerfiles of the repository,
# on an empty base with the C library of this machine; a pause image; a file server with SmolLM2 and a text to train on.
#   e2e/images/build.sh --bin-dir target/release --out target/images
# Needs root (buildah) and no registry.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
bin_dir=$repository/target/release
out=$repository/target/images
while [ $# -gt 0 ]; do
    case $1 in
        --bin-dir) bin_dir=$(readlink -f "$2") ;;
        --out) mkdir -p "$2"; out=$(readlink -f "$2") ;;
        *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
missing=()
for pair in buildah:buildah runc:runc gcc:gcc; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}"); done
if [ ${#missing[@]} -gt 0 ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null \
        || { echo "install ${missing[*]}" >&2; exit 1; }
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
buildah_() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

# image NAME DOCKERFILE ROOT: the Dockerfile's `build` stage is replaced by the folder ROOT.
image() {
    local name=$1 dockerfile=$2 root=$3 stamp
    stamp=$out/.$name.$({ cat "$dockerfile"; cd "$root" && find . -type f -print0 | sort -z | xargs -0 sha256sum; } | sha256sum | cut -c1-16)
    [ -f "$stamp" ] && [ -f "$out/$name.tar" ] && return
    rm -f "$out/.$name".* "$out/$name.tar"
    mkdir -p "$work/empty"
    buildah_ bud --isolation chroot -f "$dockerfile" --build-arg BASE=scratch --build-context "build=$root" \
        --timestamp 0 -t "registry.local/$name:dev" "$work/empty" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    buildah_ push -q "registry.local/$name:dev" "docker-archive:$out/$name.tar:registry.local/$name:dev" >/dev/null
    touch "$stamp"
    echo "  $name: $(du -h "$out/$name.tar" | cut -f1)"
}

# program FILE ROOT: the program and the libraries it is linked with.
program() {
    install -D -m 755 "$1" "$2/root-folder/usr/bin/$(basename "$1")"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do install -D -m 755 "$library" "$2/root-folder$library"; done
    install -d -m 1777 "$2/root-folder/tmp"
    install -d "$2/root-folder/etc"
    echo 'nonroot:x:65532:65532::/:/sbin/nologin' >"$2/root-folder/etc/passwd"
}

for name in dunlin-worker dunlin-operator; do
    program "$bin_dir/$name" "$work/$name"
    image "$name" "$repository/Dockerfile.${name#dunlin-}" "$work/$name"
done

cat >"$work/Dockerfile" <<'DOCKER'
ARG BASE=scratch
FROM ${BASE}
COPY --from=build /root-folder/ /
USER 65532:65532
ENTRYPOINT ["/usr/bin/main"]
DOCKER
mkdir -p "$work/pause/root-folder/usr/bin" "$work/models/root-folder/usr/bin" "$work/models/root-folder/models"
gcc -Os -static -s -o "$work/pause/root-folder/usr/bin/main" "$here/pause.c"
image pause "$work/Dockerfile" "$work/pause"

(cd "$here/models" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build -trimpath -ldflags "-s -w" -o "$work/models/root-folder/usr/bin/main" .)
model=$("$repository/e2e/fetch-model.sh")
models=$work/models/root-folder/models
cp "$model" "$models/smollm2.gguf"
text=$("$repository/e2e/fetch-text.sh")
cp "$text" "$models/bible-kjv.txt"
# For tests: a file that ends too early, and one whose header claims more than any file has.
head -c 1000000 "$model" >"$models/truncated.gguf"
printf 'GGUF\003\000\000\000\377\377\377\377\377\377\377\177\377\377\377\377\377\377\377\177' >"$models/hostile.gguf"
image dunlin-models "$work/Dockerfile" "$work/models"
