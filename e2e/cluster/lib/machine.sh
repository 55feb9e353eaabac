# A machine is a bundle of namespaces whose pid 1 is one script: killing that kills everything in it in one kernel action.

# start_machine NAME SCRIPT
start_machine() {
    mkdir -p "$STATE/$1/log"
    setsid nohup nsenter --net="/run/netns/$TAG-$1" \
        unshare --mount --pid --uts --ipc --fork --mount-proc --kill-child bash "$2" "$1" \
        >>"$STATE/$1/log/init" 2>&1 </dev/null 9>&- &
    stamp $! >"$STATE/$1/pid"
}

# A process for ever: its pid, when it began, and since which boot, as pids are used again.
stamp() { echo "$1 $(cut -d' ' -f22 "/proc/$1/stat" 2>/dev/null) $(cat /proc/sys/kernel/random/boot_id)"; }
pid_of() { cut -d' ' -f1 "$STATE/$1/pid"; }

is_up() { [ -f "$STATE/$1/pid" ] && [ "$(stamp "$(pid_of "$1")")" = "$(cat "$STATE/$1/pid")" ]; }

# Pid 1 of the machine as the host sees it.
init_of() { pgrep -P "$(pid_of "$1")" | head -n 1; }

kill_machine() {
    is_up "$1" || return 0
    local init deadline=$((SECONDS + 20))
    init=$(init_of "$1" || true)
    # From inside of its namespace pid 1 cannot be killed; from here it can.
    kill -9 "${init:-$(pid_of "$1")}" 2>/dev/null || true
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
