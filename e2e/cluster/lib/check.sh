# What this machine must have. Everything that is missing is said at once.
check() {
    [ "$(id -u)" = 0 ] || die "a local cluster needs root: it makes network namespaces, mounts and cgroups"
    local missing=() packages=() pair
    # command:package
    local needed=(runc:runc nft:nftables ip:iproute2 openssl:openssl curl:curl pgrep:procps nsenter:util-linux flock:util-linux
        dbus-daemon:dbus-daemon)
    for pair in "${needed[@]}"; do
        command -v "${pair%%:*}" >/dev/null || { missing+=("${pair%%:*}"); packages+=("${pair##*:}"); }
    done
    if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${packages[*]}" >&2
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1 || true
        missing=()
        for pair in "${needed[@]}"; do command -v "${pair%%:*}" >/dev/null || missing+=("${pair%%:*}"); done
    fi
    local problems=()
    [ ${#missing[@]} -eq 0 ] || problems+=("commands missing: ${missing[*]}")
    grep -qw overlay /proc/filesystems || problems+=("the kernel has no overlayfs")
    [ -w /sys/fs/cgroup ] || problems+=("/sys/fs/cgroup cannot be written")
    [ ${#problems[@]} -eq 0 ] || die "this machine cannot run a local cluster:$(printf '\n  - %s' "${problems[@]}")"
}
