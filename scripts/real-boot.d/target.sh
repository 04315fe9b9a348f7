# shellcheck shell=bash
# The two servers a run can boot from. Sourced; expects say, note and die. Each kind has prepare, start, stop
# and verify; the rest of the script calls target_prepare and so on.

# Set by the functions below.
TARGET_PID='' PORT='' LUN='' GOLDEN_FILE='' GOLDEN_SHA256=''

target_prepare() { "${TARGET}_prepare"; }
target_start() { "${TARGET}_start"; }
target_stop() { "${TARGET}_stop"; }
target_verify() { "${TARGET}_verify"; }

node_name() { printf 'node-%03d' "$1"; }
target_name() { printf 'iqn.2026-11.io.goldrush:%s' "$(node_name "$1")"; }
initiator_name() { printf 'iqn.2010-04.org.ipxe:%s' "$(node_name "$1")"; }

port_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

choose_port() {
    for ((PORT = 3260; PORT < 3360; PORT++)); do
        port_answers "$PORT" || return 0
    done
    die "ports 3260 to 3359 on 127.0.0.1 are all taken; stop what holds them"
}

# CHAP wants 12 to 16 bytes for the widest range of initiators. No newline: the file is the secret.
make_secrets() {
    local i
    [[ $CHAP == yes ]] || return 0
    mkdir -p -m 700 "$RUN/secrets"
    for ((i = 1; i <= NODES; i++)); do
        head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$RUN/secrets/$(node_name "$i")"
        chmod 600 "$RUN/secrets/$(node_name "$i")"
    done
}

wait_for_target() {
    local deadline=$((SECONDS + 30))
    # Twice and with a pause: a server that lost the port to another one dies, and the other one answers.
    until kill -0 "$TARGET_PID" 2>/dev/null && port_answers "$PORT" && sleep 0.3 && kill -0 "$TARGET_PID" 2>/dev/null; do
        kill -0 "$TARGET_PID" 2>/dev/null ||
            die "$TARGET ended while starting: '$(tail -n 1 "$RUN/server.log")'; see $RUN/server.log"
        ((SECONDS < deadline)) ||
            die "$TARGET did not listen on 127.0.0.1:$PORT within 30 s; see $RUN/server.log"
        sleep 0.2
    done
}

# Sets TARGET_EXIT once the server has ended; kills it when it does not end by itself.
await_target_end() {
    local deadline=$((SECONDS + $1))
    while kill -0 "$TARGET_PID" 2>/dev/null && ((SECONDS < deadline)); do
        sleep 0.2
    done
    if kill -0 "$TARGET_PID" 2>/dev/null; then
        kill -KILL "$TARGET_PID" 2>/dev/null || true
        wait "$TARGET_PID" 2>/dev/null || true
        TARGET_EXIT=hung
    else
        TARGET_EXIT=0
        wait "$TARGET_PID" 2>/dev/null || TARGET_EXIT=$?
    fi
    TARGET_PID=''
}

record_golden() {
    GOLDEN_FILE=$1
    GOLDEN_SHA256=$(sha256sum "$GOLDEN_FILE" | cut -d' ' -f1)
}

verify_golden() {
    local now
    now=$(sha256sum "$GOLDEN_FILE" | cut -d' ' -f1)
    [[ $now == "$GOLDEN_SHA256" ]] ||
        fault "the golden image $GOLDEN_FILE changed: sha256 was $GOLDEN_SHA256, is $now"
}

# The root file system of a node, from outside. The guest powered off in order, so nothing is left to replay.
verify_file_system() { # node name, raw image
    local found
    found=$(e2fsck -f -n "$2?offset=1048576" 2>&1) && return 0
    printf '%s\n' "$found" >"$RUN/$1.e2fsck"
    fault "the file system of $1 is damaged; see $RUN/$1.e2fsck"
}

# ---- goldrush: one golden VHD, a differencing child per node

ensure_goldrush() {
    if [[ -n $BINARY ]]; then
        [[ -x $BINARY ]] || die "--binary $BINARY is no executable file"
        return 0
    fi
    command -v cargo >/dev/null ||
        die "cargo is not on this machine; install a Rust toolchain, or name a built goldrush with --binary FILE"
    note "building goldrush (log: $WORK/cargo.log)"
    (cd "$REPO" && cargo build --release --bin goldrush) >"$WORK/cargo.log" 2>&1 ||
        die "building goldrush failed: '$(grep -m 1 '^error' "$WORK/cargo.log" || tail -n 1 "$WORK/cargo.log")'; see $WORK/cargo.log"
    BINARY=${CARGO_TARGET_DIR:-$REPO/target}/release/goldrush
    [[ -x $BINARY ]] || die "cargo build left no $BINARY; see $WORK/cargo.log"
}

goldrush_image() { # arguments of 'goldrush image'
    "$BINARY" image "$@" >>"$RUN/image.log" 2>&1
}

goldrush_prepare() {
    local i node
    ensure_goldrush
    LUN=0
    note "making golden.vhd and $NODES children"
    # The golden is a run's own, so that a run proves the conversion of the code it runs.
    goldrush_image convert "$GOLDEN_RAW" "$RUN/golden.vhd" --format vhd --type dynamic ||
        die "goldrush image convert failed: '$(tail -n 1 "$RUN/image.log")'; see $RUN/image.log"
    record_golden "$RUN/golden.vhd"
    mkdir -p "$RUN/overlays"
    make_secrets
    choose_port
    printf 'listen = ["127.0.0.1:%s"]\n' "$PORT" >"$RUN/goldrush.toml"
    for ((i = 1; i <= NODES; i++)); do
        node=$(node_name "$i")
        goldrush_image create "$RUN/overlays/$node.vhd" --parent "$RUN/golden.vhd" ||
            die "goldrush image create failed: '$(tail -n 1 "$RUN/image.log")'; see $RUN/image.log"
        {
            printf '\n[[target]]\nname = "%s"\n' "$(target_name "$i")"
            printf 'initiators = ["%s"]\n' "$(initiator_name "$i")"
            [[ $CHAP == no ]] ||
                printf 'chap = { user = "%s", secret_file = "secrets/%s" }\n' "$node" "$node"
            printf '  [[target.lun]]\n  lun = %s\n  path = "overlays/%s.vhd"\n  readonly = false\n' "$LUN" "$node"
        } >>"$RUN/goldrush.toml"
    done
}

goldrush_start() {
    "$BINARY" serve --config "$RUN/goldrush.toml" >>"$RUN/server.log" 2>&1 </dev/null &
    TARGET_PID=$!
    wait_for_target
}

goldrush_stop() {
    kill -TERM "$TARGET_PID" 2>/dev/null || true
    await_target_end 30
    case $TARGET_EXIT in
    0) ;;
    hung) fault "goldrush did not stop within 30 s of SIGTERM and was killed; see $RUN/server.log" ;;
    *) fault "goldrush ended with exit status $TARGET_EXIT after SIGTERM, not 0; see $RUN/server.log" ;;
    esac
}

goldrush_verify() {
    local i node child status raw=$RUN/child.raw
    verify_golden
    for ((i = 1; i <= NODES; i++)); do
        node=$(node_name "$i")
        child=$RUN/overlays/$node.vhd
        status=0
        goldrush_image check "$child" || status=$?
        case $status in
        0) ;;
        1) fault "goldrush image check found damage in $child: '$(tail -n 1 "$RUN/image.log")'; see $RUN/image.log" ;;
        *) fault "goldrush image check could not check $child: '$(tail -n 1 "$RUN/image.log")'; see $RUN/image.log" ;;
        esac
        rm -f "$raw"
        if goldrush_image convert "$child" "$raw" --format raw; then
            verify_file_system "$node" "$raw"
        else
            fault "goldrush image convert of $child to raw failed: '$(tail -n 1 "$RUN/image.log")'; see $RUN/image.log"
        fi
        rm -f "$raw"
    done
}

# ---- tgt, the peer: a raw copy of the golden per node

tgt_admin() {
    tgtadm -C "$TGT_CONTROL" --lld iscsi "$@" >>"$RUN/server.log" 2>&1 ||
        die "tgtadm $* failed: '$(tail -n 1 "$RUN/server.log")'; see $RUN/server.log"
}

tgt_prepare() {
    local i
    # LUN 0 of a tgt target is always its controller.
    LUN=1
    record_golden "$GOLDEN_RAW"
    note "making $NODES raw copies of the golden image"
    mkdir -p "$RUN/disks"
    for ((i = 1; i <= NODES; i++)); do
        cp --sparse=always --reflink=auto "$GOLDEN_RAW" "$RUN/disks/$(node_name "$i").raw"
    done
    make_secrets
    choose_port
    # A control number of our own, so that a tgtd of this machine is never spoken to.
    TGT_CONTROL=$((10000 + $$ % 20000))
    mkdir -p /run/tgtd
}

tgt_start() {
    local i node
    tgtd -f -C "$TGT_CONTROL" --iscsi "portal=127.0.0.1:$PORT" >>"$RUN/server.log" 2>&1 </dev/null &
    TARGET_PID=$!
    wait_for_target
    for ((i = 1; i <= NODES; i++)); do
        node=$(node_name "$i")
        tgt_admin --mode target --op new --tid "$i" -T "$(target_name "$i")"
        tgt_admin --mode logicalunit --op new --tid "$i" --lun "$LUN" -b "$RUN/disks/$node.raw"
        tgt_admin --mode target --op bind --tid "$i" --initiator-name "$(initiator_name "$i")"
        [[ $CHAP == yes ]] || continue
        tgt_admin --mode account --op new --user "$node" --password "$(<"$RUN/secrets/$node")"
        tgt_admin --mode account --op bind --tid "$i" --user "$node"
    done
}

tgt_stop() {
    local i
    for ((i = 1; i <= NODES; i++)); do
        tgt_admin --mode target --op delete --force --tid "$i"
    done
    tgt_admin --mode system --op delete
    await_target_end 10
    [[ $TARGET_EXIT == 0 ]] || fault "tgtd did not stop cleanly (exit status $TARGET_EXIT); see $RUN/server.log"
}

tgt_verify() {
    local i node
    verify_golden
    for ((i = 1; i <= NODES; i++)); do
        node=$(node_name "$i")
        verify_file_system "$node" "$RUN/disks/$node.raw"
    done
}
