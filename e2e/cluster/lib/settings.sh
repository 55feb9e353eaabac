# Settings of one cluster, all derived from NAME. What was drawn once (networks) is kept in the state folder.
NAME=${NAME:-dunlin}
NODES=${NODES:-4}
DUNLIN_CACHE=${DUNLIN_CACHE:-$HOME/.cache/dunlin}
STATE=${STATE:-${DUNLIN_STATE:-$HOME/.local/state/dunlin}/$NAME}
PKI=$STATE/pki
# Interface names have 15 characters at most, and two clusters must not share one.
TAG=d$(printf %s "$NAME" | sha256sum | cut -c1-5)
if [ -z "${BIN:-}" ]; then
    BIN=$("$here/build.sh")
fi
export NAME NODES STATE PKI TAG BIN here
[ -f "$STATE/networks" ] && . "$STATE/networks"
export KUBECONFIG=$PKI/admin.kubeconfig

die() { echo "cluster $NAME: $*" >&2; exit 1; }
kubes() { "$BIN/kubes" "$@"; }

# Draws third octets that no interface, route or other cluster of this machine uses.
pick_networks() {
    mkdir -p "$STATE"
    if [ ! -f "$STATE/networks" ]; then
        exec 9>"/run/lock/dunlin-networks"
        flock 9
        local x taken
        taken=$(ip -4 route show; cat "$(dirname "$STATE")"/*/networks 2>/dev/null || true)
        for x in $(seq 16 2 200); do
            if ! grep -q "172\.31\.$x\.\|10\.$x\.\|10\.$((x + 1))\." <<<"$taken"; then
                {
                    echo "NODENET=172.31.$x"
                    echo "PODNET=10.$x"
                    echo "SERVICES=10.$((x + 1))"
                    echo "CP=172.31.$x.10"
                    echo "export NODENET PODNET SERVICES CP"
                } >"$STATE/networks"
                break
            fi
        done
        flock -u 9
        [ -f "$STATE/networks" ] || die "no free network among 172.31.16.0/24 .. 172.31.200.0/24"
    fi
    . "$STATE/networks"
}
