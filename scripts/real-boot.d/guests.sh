# shellcheck shell=bash
# The QEMU guests of a run: start them all, watch their serial logs, judge what each reported. Sourced.

readonly FAIL_MARK=REAL-BOOT-SANBOOT-FAILED
readonly IO_ERROR_LINES='I/O error|EXT4-fs error|session recovery timed out|rejecting I/O|Medium Error|Remounting filesystem read-only'
# How long a guest may take to power off after its marker line.
readonly OFF_LIMIT=90

# By node number, for the boot in progress.
declare -a GUEST_PID=() GUEST_LOG=() GUEST_START=() GUEST_DEADLINE=() GUEST_SECONDS=() GUEST_CPU=()
declare -a GUEST_STATE=() GUEST_WHY=()

# A KVM device proves nothing: where an outer hypervisor emulates it, the firmware runs and then the kernel
# crawls. So boot one kernel, with a limit, once per boot of this machine.
choose_accelerator() {
    local memo=$WORK/accelerator boot_id log pid deadline
    ACCELERATOR=tcg
    [[ $ACCEL == auto ]] || { ACCELERATOR=$ACCEL; return 0; }
    [[ -r /dev/kvm && -w /dev/kvm ]] || return 0
    boot_id=$(</proc/sys/kernel/random/boot_id)
    if [[ -r $memo ]] && read -r seen ACCELERATOR <"$memo" && [[ $seen == "$boot_id" ]]; then
        return 0
    fi
    note "trying /dev/kvm with one kernel, 20 s at most"
    ACCELERATOR=tcg
    log=$WORK/accelerator.log
    : >"$log"
    qemu-system-x86_64 -accel kvm -cpu host,-arch-capabilities -m 256 -nodefaults -nographic -monitor none \
        -no-reboot -chardev "file,id=serial,path=$log" -serial chardev:serial \
        -kernel "$GOLDEN_KERNEL" -append 'console=ttyS0,115200 panic=-1' >/dev/null 2>>"$log" </dev/null &
    pid=$!
    PROBE_PID=$pid
    deadline=$((SECONDS + 20))
    while ((SECONDS < deadline)) && kill -0 "$pid" 2>/dev/null; do
        # The panic for want of a root disk is the end of a full kernel start.
        if grep -a -q 'Unable to mount root fs' "$log"; then break; fi
        sleep 0.5
    done
    if grep -a -q 'Unable to mount root fs' "$log"; then ACCELERATOR=kvm; fi
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    PROBE_PID=''
    printf '%s %s\n' "$boot_id" "$ACCELERATOR" >"$memo"
}

# 10.0.2.2 is this machine's loopback, seen through QEMU's user networking. iPXE of 2019 cannot power off, so on
# failure it says so and we end QEMU.
write_ipxe_script() { # directory, initiator name, target name, user, secret; no user without CHAP
    mkdir -p "$1"
    {
        printf '#!ipxe\nset initiator-iqn %s\n' "$2"
        [[ -z $4 ]] || printf 'set username %s\nset password %s\n' "$4" "$5"
        printf 'sanboot iscsi:10.0.2.2::%s:%x:%s || echo %s ${errno}\n' "$PORT" "$LUN" "$3" "$FAIL_MARK"
    } >"$1/boot.ipxe"
}

# Starts QEMU with boot.ipxe of $RUN/tftp/NAME.
start_guest() { # index, name, log without its ending
    local i=$1 name=$2 mac
    local -a command
    printf -v mac '52:54:00:67:%02x:%02x' $((i / 256)) $((i % 256))
    command=(qemu-system-x86_64 -name "$name" -smp 1 -nodefaults -nographic -monitor none -no-reboot
        -chardev "file,id=serial,path=$3.serial" -serial chardev:serial
        -smbios "type=1,serial=$name:$MODE"
        -netdev "user,id=net,tftp=$RUN/tftp/$name,bootfile=boot.ipxe" -boot n)
    if [[ $ACCELERATOR == kvm ]]; then
        command+=(-accel kvm -cpu 'host,-arch-capabilities')
    else
        command+=(-accel 'tcg,tb-size=128' -cpu qemu64)
    fi
    if [[ $FIRMWARE == uefi ]]; then
        command+=(-m 384 -bios /usr/share/ovmf/OVMF.fd
            -device "virtio-net-pci,netdev=net,mac=$mac,romfile=efi-virtio.rom")
    else
        command+=(-m 256 -device "virtio-net-pci,netdev=net,mac=$mac")
    fi
    : >"$3.serial"
    printf '%q ' "${command[@]}" >"$3.command"
    "${command[@]}" >/dev/null 2>"$3.qemu" </dev/null &
    GUEST_PID[i]=$!
    GUEST_LOG[i]=$3.serial
    GUEST_START[i]=$EPOCHREALTIME
    GUEST_DEADLINE[i]=$((SECONDS + TIMEOUT))
    GUEST_STATE[i]=booting
    GUEST_SECONDS[i]=-
    GUEST_CPU[i]=-
    GUEST_WHY[i]=''
}

start_node() { # node number, boot number
    local node user='' secret=''
    node=$(node_name "$1")
    if [[ $CHAP == yes ]]; then
        user=$node
        secret=$(<"$RUN/secrets/$node")
    fi
    write_ipxe_script "$RUN/tftp/$node" "$(initiator_name "$1")" "$(target_name "$1")" "$user" "$secret"
    start_guest "$1" "$node" "$RUN/$node-boot$2"
}

# A target that lets everybody in would pass every boot. So first two guests that must be refused try the disk
# of node 1: a stranger by name and, with CHAP, one with the right name and a wrong secret.
refuse_intruders() {
    local name i=$NODES log user='' secret=''
    local -a names=(stranger)
    if [[ $CHAP == yes ]]; then
        names+=(wrong-secret)
        user=$(node_name 1)
        secret=$(<"$RUN/secrets/$user")
    fi
    for name in "${names[@]}"; do
        i=$((i + 1))
        log=$RUN/$name
        if [[ $name == stranger ]]; then
            write_ipxe_script "$RUN/tftp/$name" 'iqn.2010-04.org.ipxe:stranger' "$(target_name 1)" "$user" "$secret"
        else
            write_ipxe_script "$RUN/tftp/$name" "$(initiator_name 1)" "$(target_name 1)" "$user" 'not-the-secret'
        fi
        start_guest "$i" "$name" "$log"
        until grep -a -q "$FAIL_MARK" "$log.serial"; do
            if grep -a -q 'Registered SAN device' "$log.serial"; then
                fault "$TARGET let guest '$name' log in to $(target_name 1); see $log.serial and $RUN/server.log"
                break
            elif ! kill -0 "${GUEST_PID[i]}" 2>/dev/null || ((SECONDS >= GUEST_DEADLINE[i])); then
                fault "guest '$name' was neither refused nor let in, last line: '$(last_line "$log.serial")'; see $log.serial"
                break
            fi
            sleep 0.5
        done
        end_guest "$i"
    done
    ((${#FAULTS[@]})) || note "refused as they must be: ${names[*]}"
}

seconds_since() { # EPOCHREALTIME then: seconds with one decimal
    local now=$EPOCHREALTIME then=$1 tenths
    tenths=$(((${now/[.,]/} - ${then/[.,]/}) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

cpu_seconds() { # pid
    local stat
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # Fields are counted after the command's closing bracket, which may hold spaces: utime and stime are 12 and 13.
    read -r -a stat <<<"${stat##*) }"
    printf '%d' $(((stat[11] + stat[12]) / CLOCK_TICKS))
}

end_guest() { # node number
    local pid=${GUEST_PID[$1]:-}
    [[ -n $pid ]] || return 0
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    GUEST_PID[$1]=''
}

last_line() { # serial log
    tr -d '\000\033' <"$1" | tr '\r' '\n' | grep -a '[[:alnum:]]' | tail -n 1 | tr -cd '[:print:]' | cut -c1-120 || true
}

guest_fails() { # node number, why
    GUEST_STATE[$1]=failed
    GUEST_WHY[$1]=$2
    end_guest "$1"
}

# One look at one guest.
watch_guest() { # node number
    local i=$1 pid=${GUEST_PID[$1]} log=${GUEST_LOG[$1]} alive=yes cpu
    kill -0 "$pid" 2>/dev/null || alive=no
    if cpu=$(cpu_seconds "$pid"); then GUEST_CPU[i]=$cpu; fi
    case ${GUEST_STATE[i]} in
    booting)
        if grep -a -q 'GOLDRUSH-BOOT .* end' "$log"; then
            GUEST_SECONDS[i]=$(seconds_since "${GUEST_START[i]}")
            GUEST_STATE[i]=reported
            GUEST_DEADLINE[i]=$((SECONDS + OFF_LIMIT))
        elif grep -a -q "$FAIL_MARK" "$log"; then
            guest_fails "$i" "iPXE could not boot from the target: '$(last_line "$log")'"
        elif grep -a -q 'Kernel panic' "$log"; then
            guest_fails "$i" "the guest's kernel panicked: '$(grep -a -m 1 -o 'Kernel panic.*' "$log" | tr -cd '[:print:]')'"
        elif [[ $alive == no ]]; then
            guest_fails "$i" "QEMU ended before the guest reported, after: '$(last_line "$log")'"
        elif ((SECONDS >= GUEST_DEADLINE[i])); then
            guest_fails "$i" "no report within $TIMEOUT s, last line: '$(last_line "$log")' (--timeout sets the limit)"
        fi
        ;;
    reported)
        if [[ $alive == no ]]; then
            wait "$pid" 2>/dev/null || GUEST_WHY[i]="QEMU ended with exit status $?"
            GUEST_PID[i]=''
            GUEST_STATE[i]=done
        elif ((SECONDS >= GUEST_DEADLINE[i])); then
            guest_fails "$i" "reported, but did not power off within $OFF_LIMIT s, last line: '$(last_line "$log")'"
        fi
        ;;
    esac
}

# Boots every node once, at the same time, and judges each.
boot_all() { # boot number
    local boot=$1 i busy
    note "boot $boot of $BOOTS: $NODES guest(s), $FIRMWARE, $ACCELERATOR, at most $TIMEOUT s each"
    for ((i = 1; i <= NODES; i++)); do
        start_node "$i" "$boot"
    done
    while :; do
        busy=0
        for ((i = 1; i <= NODES; i++)); do
            [[ ${GUEST_STATE[i]} == booting || ${GUEST_STATE[i]} == reported ]] || continue
            watch_guest "$i"
            busy=1
        done
        ((busy)) || break
        kill -0 "$TARGET_PID" 2>/dev/null || die "$TARGET died during boot $boot; see $RUN/server.log"
        sleep 0.5
    done
    for ((i = 1; i <= NODES; i++)); do
        judge "$i" "$boot"
    done
}

expect() { # node number, boot number, what, expected, found
    [[ $4 == "$5" ]] || fault "$(node_name "$1") boot $2: $3 is '$5', not '$4'; see ${GUEST_LOG[$1]}"
}

# Compares a guest's report with what this boot must have found, and adds its row to the table.
judge() { # node number, boot number
    local i=$1 boot=$2 log=${GUEST_LOG[$1]} node report word errors logged earlier=ok
    local -A field=()
    node=$(node_name "$i")
    ((boot > 1)) || earlier=first
    [[ -z ${GUEST_WHY[i]} ]] || fault "$node boot $boot: ${GUEST_WHY[i]}; see $log"
    report=$(tr -d '\r\000' <"$log" | grep -a -o 'GOLDRUSH-BOOT .* end' | tail -n 1) || true
    for word in $report; do
        [[ $word != *=* ]] || field[${word%%=*}]=${word#*=}
    done
    # What the console showed counts too: errors after the report, while powering off, are only there.
    logged=$(tr -d '\r\000' <"$log" | grep -a -c -E "$IO_ERROR_LINES") || true
    errors=${field[ioerr]:-0}
    ((errors >= logged)) || errors=$logged
    if [[ -n $report ]]; then
        expect "$i" "$boot" 'the guest name' "$node" "${field[node]:-}"
        expect "$i" "$boot" 'the mode' "$MODE" "${field[mode]:-}"
        expect "$i" "$boot" 'the boot counter on the disk' "$boot" "${field[boots]:-}"
        expect "$i" "$boot" 'the check of what the earlier boot wrote' "$earlier" "${field[earlier]:-}"
        expect "$i" "$boot" 'the check of the golden files' ok "${field[golden]:-}"
        expect "$i" "$boot" 'the read-back of what this boot wrote' ok "${field[reread]:-}"
        expect "$i" "$boot" 'root below an iSCSI session' yes "${field[session]:-}"
        expect "$i" "$boot" 'the target name in the iBFT' "$(target_name "$i")" "${field[target]:-}"
        expect "$i" "$boot" 'the initiator name in the iBFT' "$(initiator_name "$i")" "${field[initiator]:-}"
    elif [[ -z ${GUEST_WHY[i]} ]]; then
        fault "$node boot $boot: no report; see $log"
    fi
    ((errors == 0)) || fault "$node boot $boot: $errors I/O error line(s) in the guest; see $log"
    ROWS+=("$(printf '%s\t' "$node" "$FIRMWARE" "$CHAP" "$boot" "${GUEST_SECONDS[i]}" "${GUEST_CPU[i]}" \
        "${field[boots]:--}" "${field[earlier]:--}" "${field[golden]:--}" "${field[reread]:--}" \
        "${field[session]:--}" "$errors" "${field[connerr]:--}")")
}
