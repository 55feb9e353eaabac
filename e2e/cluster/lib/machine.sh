# A machine is a bundle of namespaces whose pid 1 is one script: killing that kills everything in it in one kernel action.

# start_machine NAME SCRIPT
start_machine() {
    mkdir -p "$STATE/$1/log"
    setsid nohup nsenter --net="/run/netns/$TAG-$1" \
        unshare --mount --pid --uts --ipc --fork --mount-proc --kill-child bash "$2" "$1" \
        >>"$STATE/$1/log/init" 2>&1 </dev/null 9>&- &
    echo $! >"$STATE/$1/pid"
}

is_up() { [ -f "$STATE/$1/pid" ] && kill -0 "$(cat "$STATE/$1/pid")" 2>/dev/null; }

# Pid 1 of the machine as the host sees it.
init_of() { pgrep -P "$(cat "$STATE/$1/pid")" | head -n 1; }

kill_machine() {
    is_up "$1" || return 0
    local init deadline=$((SECONDS + 20))
    init=$(init_of "$1" || true)
    # From inside of its namespace pid 1 cannot be killed; from here it can.
    kill -9 "${init:-$(cat "$STATE/$1/pid")}" 2>/dev/null || true
    while is_up "$1"; do
        [ $SECONDS -lt $deadline ] || die "$1 does not die"
        sleep 0.02
    done
    rm -f "$STATE/$1/pid"
}

inside() {
    local machine=$1
    shift
    nsenter -t "$(init_of "$machine")" --mount --pid --net --uts --ipc "$@"
}

remove_cgroups() {
    local hierarchy try
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*/; do
        # The kernel takes a moment to let go of the processes of a dead machine.
        for try in $(seq 50); do
            [ -d "$hierarchy/$TAG-$1" ] || break
            find "$hierarchy/$TAG-$1" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.05
        done
    done
}
