# keep NAME COMMAND...: runs a component, again and again; some leave once before the API server has its roles.
keep() {
    local name=$1
    shift
    (while :; do
        "$@" >>"$DIR/log/$name" 2>&1 || true
        sleep 0.3
    done) &
}
