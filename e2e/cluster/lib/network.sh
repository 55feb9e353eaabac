# A bridge, and one veth and network namespace for every machine. Plain routes between pod subnets, no overlay.
network_up() {
    ip link show "$TAG" >/dev/null 2>&1 || ip link add "$TAG" type bridge
    ip addr replace "$NODENET.1/24" dev "$TAG"
    ip link set "$TAG" up
    [ -f "$STATE/ip_forward" ] || cat /proc/sys/net/ipv4/ip_forward >"$STATE/ip_forward"
    echo 1 >/proc/sys/net/ipv4/ip_forward
    # kubelet changes these for the whole machine: `down` puts them back.
    local setting
    for setting in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
        [ -f "$STATE/sysctl-${setting//\//-}" ] || cat "/proc/sys/$setting" >"$STATE/sysctl-${setting//\//-}"
    done
    cable cp
    local i
    for i in $(seq "$NODES"); do
        cable "n$i"
        ip route replace "$PODNET.$i.0/24" via "$NODENET.$((10 + i))"
    done
}

# cable MACHINE: a network of its own for a machine, unless it has one.
cable() {
    local name=$TAG-$1 part=10 j
    [ "$1" = cp ] || part=$((10 + ${1#n}))
    ip netns pids "$name" >/dev/null 2>&1 && return
    ip netns add "$name"
    # The same address in every life: neighbours remember it.
    ip link add "$name" type veth peer name eth0 address "$(printf '02:00:00:00:00:%02x' "$part")" netns "$name"
    ip link set "$name" master "$TAG" up
    ip -n "$name" addr add "$NODENET.$part/24" dev eth0
    ip -n "$name" link set lo up
    ip -n "$name" link set eth0 up
    ip -n "$name" route add default via "$NODENET.1"
    # Not `ip netns exec`: it hides the cgroup mounts.
    nsenter --net="/run/netns/$name" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    for j in $(seq "$NODES"); do
        [ "n$j" = "$1" ] || ip -n "$name" route add "$PODNET.$j.0/24" via "$NODENET.$((10 + j))"
    done
}

# A dead machine's network, with whatever its last life left in it: links and routes of pods, rules, connections. The kernel takes its time to
# remove those by itself, and until then they are in the way of new pods with the same addresses.
uncable() {
    # Nothing may outlive its network.
    ip netns pids "$TAG-$1" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip link del "$TAG-$1" 2>/dev/null || true
    ip netns del "$TAG-$1" 2>/dev/null || true
}

network_down() {
    local machine setting
    for machine in cp $(seq -f n%g "$NODES"); do
        unsilence "$machine"
        uncable "$machine"
    done
    ip link del "$TAG" 2>/dev/null || true
    # The last cluster to go restores what the machine had.
    if ! ip -o link show type bridge | grep -q ': d[0-9a-f]\{5\}:'; then
        [ -f "$STATE/ip_forward" ] && cat "$STATE/ip_forward" >/proc/sys/net/ipv4/ip_forward
        for setting in vm/overcommit_memory kernel/panic kernel/panic_on_oops; do
            if [ -f "$STATE/sysctl-${setting//\//-}" ]; then cat "$STATE/sysctl-${setting//\//-}" >"/proc/sys/$setting" || true; fi
        done
    fi
}

# IP packets of the machine vanish; ARP still answers, so nobody gets a quick "no route to host".
silence() {
    nft -f - <<RULES
table netdev $TAG-$1 {
    chain from { type filter hook ingress device $TAG-$1 priority 0; ether type ip drop; }
    chain to { type filter hook egress device $TAG-$1 priority 0; ether type ip drop; }
}
RULES
}

unsilence() { nft delete table netdev "$TAG-$1" 2>/dev/null || true; }
